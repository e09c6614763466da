"""What clients send to start and change studies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ucd_ray.config import Config
from ucd_ray.tune.parameter import Choice, Parameter, Value
from ucd_ray.tune.worded import Worded, name_of

Name = Annotated[str, name_of(61)]
TEXT = Worded(
    r"^[^\x00-\x1f]{1,200}$",
    "a text has 1 to 200 characters on one line, none of them a control character",
)
Text = Annotated[str, TEXT]
ID = r"^[a-z0-9]{1,20}$"  # of a study
Id = Annotated[str, Worded(ID, "the id of a study has 1 to 20 letters (a to z) and digits")]
SCENARIO = Worded(r"^[A-Za-z0-9._+-]{1,60}$", "a scenario has a name such as voc-15-1")
Labels = Annotated[dict[Name, Text], Field(max_length=32)]
Priority = Annotated[int, Field(ge=-100, le=100)]
Count = Annotated[int, Field(gt=0, le=1_000_000)]
Hours = Annotated[float, Field(gt=0, le=1e9)]


class FromScenario(Config):
    """A study of a scenario's own search space, as `ucd-ray tune` builds it."""

    scenario: Annotated[str, SCENARIO]
    """Such as voc-15-1."""
    name: Name | None = None
    """Null: scenario, setting and method."""
    method: str | None = None
    """Null: that of the search space; several, separated by commas, are compared."""
    space: Name | None = None
    """A search space of the package; null: the scenario's own."""
    values: dict[str, Value] = {}
    """Keys that are fixed, and then not searched.  Data sets and weights are registered names."""
    settings: dict[str, Any] = {}
    """Other fields of a spec: trials, workers, sampler, pruner ..."""


class NewStudy(Config):
    """A study to be started: either `tune` or `spec`."""

    tune: FromScenario | None = None
    """A scenario, and what differs from its search space."""
    spec: dict[str, Any] | None = None
    """A whole spec; `ucd-ray config --schema study` has its schema.  Paths are registered names."""
    external_id: Text | None = None
    """The owner's own id: a second study under it is refused, the same one is found again."""
    priority: Priority = 0
    """Studies of a higher one go first, and take the cluster from those of a lower one."""
    parallelism: Count | None = None
    """Trials at a time, at most; null: the study's share of the cluster."""
    labels: Labels = {}
    """Text by name, to find studies by."""
    shared: bool = False
    """Whether every user of the service may read it."""
    warm_start: Annotated[tuple[Id, ...], Field(max_length=20)] = ()
    """Ids of studies of the same question: the sampler is given their finished trials that fit."""


class SpaceRevision(Config):
    """What shall be other in the search space of a study."""

    search: dict[str, Parameter] = {}
    """Keys with their new range or choices; those not searched so far are added."""
    fix: dict[str, Value] = {}
    """Searched keys that are searched no more, with their value from then on."""
    add: tuple[tuple[str, Choice], ...] = ()
    """Choices that come to searched keys."""
    remove: tuple[tuple[str, Choice], ...] = ()
    """Choices that go."""
    constraints: tuple[str, ...] | None = None
    """All constraints; null: they stay."""


class Change(Config):
    """What shall be other in a study.  What is left out stays."""

    trials: Count | None = None
    """Trials in all."""
    max_hours: Hours | None = None
    """Hours of wall time; null: no limit."""
    max_gpu_hours: Hours | None = None
    """GPU hours; null: no limit."""
    patience: Count | None = None
    """Trials without a better one; null: no limit."""
    parallelism: Count | None = None
    """Trials at a time, at most; null: the study's share of the cluster."""
    priority: Priority | None = None
    """Studies of a higher one go first."""
    labels: Labels | None = None
    """All labels."""
    shared: bool | None = None
    """Whether every user of the service may read it."""
    space: SpaceRevision | None = None
    """An edit of the search space."""


class Stop(Config):
    """How a study ends."""

    how: Literal["drain", "checkpoint", "kill"] = "checkpoint"
    """drain: running trials are finished; checkpoint: they can go on later; kill: at once, cancelled."""


class Copy(Config):
    """What is other in a copy of a study."""

    name: Name | None = None
    """Null: the same."""
    external_id: Text | None = None
    """The owner's own id of the copy."""
    spec: dict[str, Any] = {}
    """Fields of the spec that differ.  `recipe` and `search` are merged with the original's key by key: a
    key that is fixed is no longer searched, one that is searched no longer fixed; null under `search` ends
    a search."""


class NewTrial(Config):
    """A trial to be queued."""

    params: Annotated[dict[str, Choice], Field(min_length=1, max_length=200)]
    """Values of searched keys, also outside of their ranges; the sampler adds the others."""
