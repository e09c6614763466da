"""The spec of a study: a recipe, what varies in it, and how long.  Needs neither torch, Optuna nor Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from ucd_ray.config import SECTIONS, Config
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.recipe import TOP_KEYS, Recipe, describe, method_keys
from ucd_ray.tune.checks import check_spec
from ucd_ray.tune.constraints import parse
from ucd_ray.tune.domain import Conditions, Domain
from ucd_ray.tune.goals import Goals, goals_of
from ucd_ray.tune.names import EXHAUSTIVE, METHOD
from ucd_ray.tune.parameter import Parameter, Value
from ucd_ray.tune.replicates import check_replicates
from ucd_ray.tune.worded import name_of

SETTINGS = ("trials", "max_concurrent", "max_hours", "max_gpu_hours", "patience")  # can be edited


class StudySpec(Config):
    """One study: a recipe, what varies in it, and how long."""

    name: Annotated[str, name_of(81)]
    """Name of the study; also the name of its directory."""
    recipe: dict[str, Value]
    """Fixed values under their flat keys, scenario, setting and method among them."""
    search: dict[str, Parameter] = {}
    """How keys vary.  `method` may be among them: other keys then exist in trials whose method has them."""
    constraints: tuple[str, ...] = ()
    """What params of a trial must fulfil, such as `optim.lr_new <= optim.lr_base`, or its results, such as
    `drop <= 2`."""
    first: dict[str, Value] | tuple[dict[str, Value], ...] = {}
    """Values of the first trial, or of the first trials."""
    trials: Annotated[int, Field(gt=0)] = 20
    """Trials to run: complete, pruned and failed ones count."""
    objective: str = "miou_all"
    """What the best trial has most of, on the images of `eval.select_on` after the last step: a mIoU; or
    least of: forgetting, drop or seconds."""
    objectives: tuple[str, ...] = ()
    """Several of these at once, instead of `objective`: the result is their Pareto set."""
    prune_on: str | None = None
    """What the pruner compares after every epoch: a mIoU, forgetting or drop.  Null: the objective, if
    there is one and it is measured so often."""
    sampler: str = "tpe"
    """How new params are proposed: tpe, gp, cmaes, nsga2, nsga3, qmc, random, grid or brute-force."""
    pruner: str = "median"
    """How weak trials are stopped early: none, median, percentile, successive-halving, hyperband, patient,
    threshold or forgetting, with options as in `forgetting:limit=10,warmup=2`."""
    seed: int = 0
    """Seed of the sampler."""
    seeds: Annotated[int, Field(gt=0)] = 1
    """Seeds under which a trial's params are measured; its value is the mean."""
    class_orders: Annotated[int, Field(gt=0)] = 1
    """Class orders under each of which all seeds are run; the first is the scenario's own."""
    racing: Annotated[float, Field(gt=0, lt=1)] | None = 0.3
    """A trial is dropped before all its replicates are run once it is weaker than the best one with a p of
    Wilcoxon's signed-rank test below this; null: never."""
    workers: Annotated[int, Field(gt=0)] = 1
    """Training workers of one trial (DDP)."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPUs of one worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """GPUs of one worker; null: one if the cluster has GPUs, else none."""
    max_concurrent: Annotated[int, Field(gt=0)] | None = None
    """Trials at a time; null: as many as fit."""
    trials_per_run: Annotated[int, Field(gt=0)] | None = None
    """Trials that a gang of workers trains before new ones are started; null: no limit."""
    oom_retries: Annotated[int, Field(ge=0)] = 0
    """How often a trial that runs out of memory is tried again with half the micro-batch."""
    keep_best: Annotated[int, Field(gt=0)] = 1
    """Best trials whose networks are kept."""
    max_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of wall time after which no more trials start; running ones are finished."""
    max_gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """GPU hours after which no more trials start."""
    patience: Annotated[int, Field(gt=0)] | None = None
    """Trials without a better one after which no more start."""
    terminator: bool = False
    """Whether Optuna's terminator may end the study."""
    same_failures: Annotated[int, Field(gt=0)] = 3
    """Trials that fail with the same traceback after which the study stops."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_spec(self)
        check_replicates(self, self.base_recipe())
        return self

    @property
    def replicates(self) -> int:
        """How often a trial's params are measured."""
        return self.seeds * self.class_orders

    @property
    def firsts(self) -> tuple[dict[str, Value], ...]:
        """The params of the first trials, as far as they are given."""
        if isinstance(self.first, tuple):
            return self.first
        return (self.first,) if self.first else ()

    @property
    def first_params(self) -> dict[str, Value]:
        """The params of the first trial, as far as they are given."""
        return self.firsts[0] if self.firsts else {}

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of the trials, that of the first one first."""
        if METHOD not in self.search:
            return (str(self.recipe.get(METHOD, Recipe.model_fields[METHOD].default)),)
        found = [str(first[METHOD]) for first in self.firsts if METHOD in first]
        return tuple(dict.fromkeys([*found, *map(str, self.search[METHOD].choices or ())]))

    def methods_with(self, key: str) -> list[str]:
        """The methods of the trials in which `key` has an effect."""
        if METHOD in self.search:
            return [method for method in self.methods if uses(method, key)]
        return [method for method in self.methods if key in method_keys(method)]

    @property
    def goals(self) -> Goals:
        """What the study is after."""
        return goals_of(vars(self))

    def domain(self) -> Domain:
        """What trials may have as params."""
        limits = self.goals.limits
        constraints = tuple(c for c in map(parse, self.constraints) if c not in limits)
        fixed = {name for c in constraints for name in c.names} - set(self.search)
        implied: dict[str, Conditions] = {}
        for key in set(self.search) - {METHOD}:
            methods = tuple(self.methods_with(key))
            if len(methods) < len(self.methods):
                implied[key] = {METHOD: methods}
        return Domain(self.search, constraints, implied, self.defaults(fixed))

    def defaults(self, keys: set[str]) -> dict[str | None, dict[str, Any]]:
        """By method (None: it is not searched), the values that trials have under keys without params."""
        found: dict[str | None, dict[str, Any]] = {}
        for method in self.methods if keys else ():
            searched = METHOD in self.search
            flat = self.trial_recipe({METHOD: method} if searched else {}).flat()
            found[method if searched else None] = {k: flat[k] for k in keys if k in flat}
        return found

    @property
    def num_points(self) -> int | None:
        """How many trials the sampler has; None: no end."""
        return len(self.domain().points) if self.sampler in EXHAUSTIVE else None

    def base_recipe(self) -> Recipe:
        """The recipe that all trials share, searched keys at their defaults; the first method's."""
        return self.trial_recipe({})

    def trial_recipe(self, params: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial with these params.  Fixed keys that its method has not are left out."""
        if METHOD not in self.search:
            return Recipe.from_flat({**self.recipe, **params})
        method = params.get(METHOD, self.methods[0])
        known = method_keys(method)
        fixed = {key: value for key, value in self.recipe.items() if key in known}
        return Recipe.from_flat({**fixed, **params, METHOD: method})


def uses(method: str, key: str) -> bool:
    """Whether a run of `method` has `key`, and it can change something there: joint has step 0 only."""
    return key in method_keys(method) and (method != "joint" or acts_at_first(key))


def acts_at_first(key: str) -> bool:
    """Whether a key acts at step 0."""
    section, _, field = key.partition(".")
    if section in SECTIONS:
        return SECTIONS[section].acts_from(field) == 0
    return key in TOP_KEYS


def changed(spec: StudySpec, settings: Mapping[str, Any]) -> StudySpec:
    """A spec with other values in some of its fields.  Raises ConfigError."""
    try:
        return StudySpec.model_validate({**spec.model_dump(), **settings})
    except ValidationError as error:
        raise ConfigError(describe(error)) from None


def parsed(stored: Mapping[str, Any]) -> StudySpec:
    """A spec that was stored before.  Raises StudyError."""
    try:
        return StudySpec.model_validate(stored)
    except ValidationError as error:
        raise StudyError(
            f"the stored spec of study '{stored.get('name')}' is of another version of ucd-ray: "
            f"{describe(error)}"
        ) from None


def conditional_keys(stored: Mapping[str, Any]) -> set[str]:
    """Searched keys of a stored spec that not every trial has."""
    try:
        domain = StudySpec.model_validate(stored).domain()
    except ValidationError:  # of another version
        return {key for key, parameter in stored["search"].items() if parameter.get("when")}
    return {key for key, conditions in domain.conditions.items() if conditions}
