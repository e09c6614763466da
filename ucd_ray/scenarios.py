"""Scenarios: which classes are learned at which step, and what a label means then.

A scenario is named `<dataset>-<A>-<B>`: A classes in step 0, then B at a time to the end
(reference: the task tables of MiB, PLOP and UCD).  It runs under a *setting*:

    setting      images of step t                                  labels kept
    sequential   a new-class pixel, no pixel of a future class     old and new classes
    disjoint     as sequential                                     new classes
    overlapped   a new-class pixel                                 new classes

All other labels become 0, 255 stays ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import yaml
from pydantic import ValidationInfo, field_validator, model_validator

from ucd_ray.config import Config
from ucd_ray.errors import ScenarioError, did_you_mean

Setting = Literal["sequential", "disjoint", "overlapped"]


class DatasetClasses(NamedTuple):
    """What a scenario needs to know about a data set."""

    num_classes: int | None  # without background; None: the data says
    background: bool  # class 0 is scored


DATASET_CLASSES: dict[str, DatasetClasses] = {
    "voc": DatasetClasses(20, True),
    "ade": DatasetClasses(150, False),  # 0 is "other", not scored
    "cityscapes": DatasetClasses(19, True),  # void is an output and is scored, as in UCD
    "msrc": DatasetClasses(21, False),  # 0 never appears in the masks
    "shapes": DatasetClasses(12, True),
    "folder": DatasetClasses(None, True),
}

# Data sets of images that are generated; the others are read from a directory.
GENERATED_DATASETS = frozenset({"shapes"})

# The scenarios of the publications (and ours on MSRC-v2); any other A and B parse as well.
KNOWN_SCENARIOS: tuple[str, ...] = (
    *(f"voc-{split}" for split in ("19-1", "15-5", "15-1", "10-10", "10-1", "5-3")),
    *(f"ade-{split}" for split in ("100-50", "100-10", "50-50", "100-5")),
    *(f"cityscapes-{split}" for split in ("13-6", "13-1", "17-2")),
    *(f"msrc-{split}" for split in ("16-5", "16-1", "11-5")),
    "shapes-8-4",
    "shapes-8-2",
)

# Published "disjoint" splits that are fixed lists of images, not a rule (MiB's and UCD's index files).
LISTED_DISJOINT = frozenset({"ade", "cityscapes"})


class Scenario(Config):
    """Classes per step of one data set.  Step 0 is the base step; background (0) is left out."""

    dataset: str
    """Name of the data set."""
    steps: tuple[tuple[int, ...], ...]
    """Class ids learned at each step, in learning order."""
    background: bool
    """Whether class 0 is scored."""
    name: str = ""
    """The name it was made from, or of its file."""

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, dataset: str, _info: ValidationInfo) -> str:
        if dataset not in DATASET_CLASSES:
            raise ValueError(
                f"unknown data set '{dataset}'; {did_you_mean(dataset, DATASET_CLASSES)}"
            )
        return dataset

    @model_validator(mode="after")
    def _each_class_once(self) -> Self:
        ids = [c for step in self.steps for c in step]
        if not self.steps or any(not step for step in self.steps):
            raise ValueError("every step needs at least one class")
        twice = sorted({c for c in ids if ids.count(c) > 1})
        if twice:
            raise ValueError(f"classes {twice} are learned more than once")
        limit = DATASET_CLASSES[self.dataset].num_classes or 254
        wrong = [c for c in ids if not 1 <= c <= limit]
        if wrong:
            raise ValueError(f"class ids {wrong} are outside 1..{limit} of '{self.dataset}'")
        return self

    def classes_until(self, step: int) -> tuple[int, ...]:
        """Class ids in channel order after `step`: 0, then the classes in learning order."""
        return (0, *(c for classes in self.steps[: step + 1] for c in classes))

    def classes_per_step(self) -> tuple[int, ...]:
        """Channels that each step adds; the background belongs to step 0."""
        return (len(self.steps[0]) + 1, *(len(step) for step in self.steps[1:]))

    def joined(self) -> Scenario:
        """All classes in one step: the joint upper bound."""
        return self.model_copy(update={"steps": (self.classes_until(len(self.steps) - 1)[1:],)})


def parse_scenario(name: str, *, num_classes: int | None = None) -> Scenario:
    """The scenario called `name`: `<dataset>-<A>-<B>`, or the path of a YAML file.

    num_classes: of a `folder` data set, whose size the name does not tell.
    Raises ScenarioError if the name does not parse or A and B do not fit the data set.
    """
    if name.endswith((".yaml", ".yml")):
        return read_scenario(Path(name))
    match = re.fullmatch(r"([a-z]+)-(\d+)-(\d+)", name)
    if match is None or match[1] not in DATASET_CLASSES:
        raise ScenarioError(
            f"unknown scenario '{name}'; {_suggest(name)} "
            f"A name is <dataset>-<A>-<B>: A classes first, then B at a time."
        )
    dataset, first, then = match[1], int(match[2]), int(match[3])
    total = DATASET_CLASSES[dataset].num_classes or num_classes
    if total is None:
        raise ScenarioError(f"'{name}' needs --data DIR with a classes.txt to know its classes")
    if not 1 <= first <= total or then < 1 or (total - first) % then:
        raise ScenarioError(
            f"'{name}' does not fit: {dataset} has {total} classes, {total} - {first} = "
            f"{total - first} must be a multiple of {then}"
        )
    starts = range(first, total, then)
    groups = [range(1, first + 1), *(range(s + 1, s + then + 1) for s in starts)]
    return Scenario(
        dataset=dataset,
        steps=tuple(tuple(group) for group in groups),
        background=DATASET_CLASSES[dataset].background,
        name=name,
    )


def read_scenario(path: Path) -> Scenario:
    """A scenario from YAML: `dataset` and either `steps` (lists of ids) or `order` and `sizes`.

    Raises ScenarioError naming the file and the key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"cannot read scenario file '{path}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise ScenarioError(f"scenario file '{path}' is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ScenarioError(f"scenario file '{path}' is not YAML: {error}") from None
    if not isinstance(content, Mapping):
        raise ScenarioError(f"scenario file '{path}' must be a mapping with 'dataset' and 'steps'")
    try:
        return scenario_from_mapping({"name": path.stem, **content})
    except ScenarioError as error:
        raise ScenarioError(f"scenario file '{path}': {error}") from None


def scenario_from_mapping(content: Mapping[str, Any]) -> Scenario:
    """A scenario from its parts, as in a file.  Raises ScenarioError."""
    values = {str(key): value for key, value in content.items()}
    if "order" in values or "sizes" in values:
        if "steps" in values:
            raise ScenarioError("give either 'steps' or 'order' and 'sizes', not both")
        values["steps"] = _cut(values.pop("order", None), values.pop("sizes", None))
    unknown = set(values) - set(Scenario.model_fields)
    if unknown:
        key = min(unknown)
        raise ScenarioError(f"unknown key '{key}'; {did_you_mean(key, Scenario.model_fields)}")
    dataset = values.get("dataset")
    if isinstance(dataset, str) and dataset in DATASET_CLASSES:
        values.setdefault("background", DATASET_CLASSES[dataset].background)
    else:
        values.setdefault("background", True)
    try:
        return Scenario.model_validate(values)
    except ValueError as error:
        raise ScenarioError(_first_message(error)) from None


def _cut(order: Any, sizes: Any) -> list[list[int]]:
    lists = isinstance(order, list) and isinstance(sizes, list)
    counts = lists and all(isinstance(size, int) and size > 0 for size in sizes)
    if not counts or sum(sizes) != len(order):
        raise ScenarioError(
            "'order' (all class ids in learning order) and 'sizes' (classes per step) "
            "must both be given, with sizes summing to the length of order"
        )
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [order[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _first_message(error: ValueError) -> str:
    details = getattr(error, "errors", None)
    if details is None:
        return str(error)
    first = details()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _suggest(name: str) -> str:
    hint = did_you_mean(name, KNOWN_SCENARIOS)
    return hint if hint.startswith("did") else f"known ones: {', '.join(KNOWN_SCENARIOS)}."
