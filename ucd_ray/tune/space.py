"""Search spaces: which keys of a recipe vary, and how; and the study spec made from one.

A file names a scenario, fixes recipe values, lists what is searched, and gives the published values as
first trial; `by_method` replaces parts of it for one method.  Needs neither torch nor Ray.
"""

from __future__ import annotations

import importlib.resources
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from ucd_ray.config import SECTIONS, Config
from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.methods import ADDED, METHODS
from ucd_ray.recipe import Recipe, check_key, check_method, check_searched, describe, method_keys
from ucd_ray.scenarios import read_scenario
from ucd_ray.tune.names import EXHAUSTIVE, check_sampler, pruner_options

Value = str | int | float | bool | None | list[float] | dict[str, Any]
OBJECTIVES = tuple(
    f"miou_{group}{bg}" for group in ("all", "base", "added", "old", "new") for bg in ("", "_bg")
)


class Parameter(Config):
    """How one key varies: a range (`low`, `high`, optionally `log` or `step`) or `choices`."""

    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    log: bool = False
    """Sample evenly in the logarithm."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Distance of neighbouring values."""
    type: Literal["float", "int"] = "float"
    """Kind of the values of a range."""
    choices: tuple[str | int | float | bool | None, ...] | None = None
    """The values to choose from, instead of a range."""

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            if self.low is not None or self.high is not None:
                raise ValueError("give either low and high, or choices")
            if not self.choices:
                raise ValueError("choices is empty")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low > 0 and no step")
        numbers = (self.low, self.high, self.step or 1.0)
        if self.type == "int" and not all(number.is_integer() for number in numbers):
            raise ValueError("type int needs whole numbers for low, high and step")
        return self

    def samples(self) -> tuple[str | int | float | bool | None, ...]:
        """Values that tell whether all fit a key: a range's ends and a value between, or all choices."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None
        if self.type == "int":
            return (int(self.low), int(self.high))
        inner = self.low + (self.step or (self.high - self.low) / 2**0.5)
        return (self.low, self.high, inner)

    def points(self) -> tuple[str | int | float | bool | None, ...] | None:
        """All values, if they can be counted: choices, whole numbers, or a range with a step."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None
        whole = self.type == "int"
        step = self.step or (1.0 if whole else None)
        if step is None:
            return None
        values = (self.low + step * i for i in range(int((self.high - self.low) / step + 1e-9) + 1))
        return tuple(int(value) if whole else value for value in values)

    def holds(self, value: Value) -> bool:
        """Whether `value` lies in the range or is a choice."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None and self.high is not None
        return isinstance(value, int | float) and self.low <= value <= self.high


class SpacePart(Config):
    """What a search space says for all methods, or for one."""

    recipe: dict[str, Value] = {}
    """Fixed values under their flat keys."""
    search: dict[str, Parameter] = {}
    """How keys vary."""
    first: dict[str, Value] = {}
    """Values of the first trial: the published ones."""


class SearchSpace(SpacePart):
    """A search-space file."""

    scenario: str
    """Scenario that the values are for."""
    method: str = "mib+ucd"
    """Method that is tuned when none is asked for."""
    by_method: dict[str, SpacePart] = {}
    """Parts that replace the values above for one method."""

    def part(self, method: str) -> SpacePart:
        """The part for `method`: keys that only other methods have are left out."""
        host = method.removesuffix(ADDED)
        named = {**method_parts(), **self.by_method}
        own = named.get(method) or named.get(host) or SpacePart()
        known = set(method_keys(method))
        merged: dict[str, Any] = {}
        for field in ("recipe", "search", "first"):
            values = {**getattr(self, field), **getattr(own, field)}
            for key in values:
                if key not in known:  # of another method, or a mistake
                    _check_some_method_has(key)
            merged[field] = {key: v for key, v in values.items() if key in known}
        if method == "joint":  # it has one step: what acts on later ones cannot be searched
            for field in ("search", "first"):
                merged[field] = {key: v for key, v in merged[field].items() if acts_at_first(key)}
        return SpacePart.model_construct(**merged)


class StudySpec(Config):
    """One study: a recipe, what varies in it, and how long."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,80}$")]
    """Name of the study; also the name of its directory."""
    recipe: dict[str, Value]
    """Fixed values under their flat keys, scenario, setting and method among them."""
    search: dict[str, Parameter] = {}
    """How keys vary."""
    first: dict[str, Value] = {}
    """Values of the first trial."""
    trials: Annotated[int, Field(gt=0)] = 20
    """Trials to run: complete, pruned and failed ones count."""
    objective: str = "miou_all"
    """What is maximised, on the images of `eval.select_on` after the last step."""
    sampler: str = "tpe"
    """How new params are proposed: tpe, gp, cmaes, qmc, random, grid or brute-force."""
    pruner: str = "median"
    """How weak trials are stopped early: none, median, percentile, successive-halving, hyperband, patient,
    threshold or forgetting, with options as in `forgetting:limit=10,warmup=2`."""
    seed: int = 0
    """Seed of the sampler."""
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
        both = sorted(set(self.recipe) & set(self.search))
        if both:
            raise ConfigError(f"key '{both[0]}' is both fixed and searched; remove it from one")
        if self.objective not in OBJECTIVES:
            hint = did_you_mean(self.objective, OBJECTIVES)
            raise ConfigError(f"unknown objective '{self.objective}'; {hint}")
        check_sampler(self.sampler)
        pruner_options(self.pruner)
        self._check_points()
        unknown = sorted(set(self.first) - set(self.search))
        if unknown:
            raise ConfigError(f"first value of '{unknown[0]}', which is not searched")
        self._check_ranges()
        return self

    @property
    def num_points(self) -> int | None:
        """How many trials the sampler has; None: no end."""
        if self.sampler not in EXHAUSTIVE:
            return None
        return math.prod(len(parameter.points() or ()) for parameter in self.search.values())

    def _check_points(self) -> None:
        for key, parameter in self.search.items():
            if self.sampler in EXHAUSTIVE and parameter.points() is None:
                raise ConfigError(
                    f"sampler '{self.sampler}' tries every value, but '{key}' has a range without a "
                    "step; give it choices, or low, high and step"
                )

    def _check_ranges(self) -> None:
        recipe = self.base_recipe()
        for key, parameter in self.search.items():
            check_key(key, recipe.method)
            check_searched(recipe, key)
            for value in parameter.samples():
                try:
                    recipe.with_overrides({key: value})
                except ConfigError as error:
                    raise ConfigError(f"search range of '{key}': {error}") from None
        for key, first in self.first.items():
            if not self.search[key].holds(first):
                raise ConfigError(
                    f"first value of '{key}' ({first}) is outside of its search range"
                )
        added = ("miou_old", "miou_added")
        if len(recipe.steps.steps) == 1 and self.objective.removesuffix("_bg") in added:
            raise ConfigError(f"objective '{self.objective}' needs a second step; there is one")
        if recipe.steps.background is False and self.objective.endswith("_bg"):
            raise ConfigError(
                f"objective '{self.objective}': {recipe.scenario.dataset} does not score background"
            )

    def base_recipe(self) -> Recipe:
        """The recipe that all trials share, searched keys at their defaults."""
        return Recipe.from_flat(self.recipe)

    def trial_recipe(self, params: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial with these params."""
        return self.base_recipe().with_overrides(params)


@cache
def method_parts() -> dict[str, SpacePart]:
    """What single methods search, in scenarios whose file says nothing about them."""
    return load_search_space("methods").by_method


def known_spaces() -> list[str]:
    """Names of the search spaces that come with the package."""
    files = importlib.resources.files("ucd_ray.search_spaces").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def space_of(scenario: str, space: str | None, *, generated: bool) -> SearchSpace:
    """What a command searches: the space asked for, else the scenario's own.

    generated: on generated images, which are small: a small network and budget, unless it is `shapes`
    """
    found = load_search_space(space) if space else space_for(scenario)
    found = found.model_copy(update={"scenario": scenario})
    return small_budget(found) if generated and not scenario.startswith("shapes") else found


def load_search_space(name: str) -> SearchSpace:
    """The search space called `name`, or in the YAML file at that path.

    Raises ConfigError naming file, key and value.
    """
    if name.endswith((".yaml", ".yml")):
        return _parse(_read(Path(name)), name)
    spaces = known_spaces()
    if name in spaces:
        file = importlib.resources.files("ucd_ray.search_spaces") / f"{name}.yaml"
        return _parse(file.read_text(), f"{name}.yaml")
    raise ConfigError(f"no search space '{name}'; {did_you_mean(name, spaces)}")


def space_for(scenario: str) -> SearchSpace:
    """The search space of a scenario: its own, else the one of its data set's kind."""
    name = scenario if scenario in known_spaces() else "default"
    return load_search_space(name).model_copy(update={"scenario": scenario})


def small_budget(space: SearchSpace) -> SearchSpace:
    """The same search on the network and budget of `generated.yaml`, to try it on generated images."""
    small = load_search_space("generated").recipe
    return space.model_copy(update={"recipe": {**space.recipe, **small}})


def build_spec(
    space: SearchSpace,
    *,
    name: str | None = None,
    method: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    **settings: Any,
) -> StudySpec:
    """The study of a search space: `overrides` fix keys, which are then no longer searched.

    settings: other fields of StudySpec.  Raises ConfigError.
    """
    overrides = dict(overrides or {})
    method = method or overrides.get("method") or space.method
    check_method(method)
    part = space.part(method)
    recipe = {"scenario": space.scenario, **part.recipe, **overrides, "method": method}
    if str(recipe["scenario"]).endswith((".yaml", ".yml")):  # the file may change or move
        recipe["scenario"] = read_scenario(Path(recipe["scenario"])).model_dump(mode="json")
    search = {key: parameter for key, parameter in part.search.items() if key not in overrides}
    values: dict[str, Any] = {
        "name": name or default_name(recipe),
        "recipe": recipe,
        "search": search,
        "first": {key: value for key, value in part.first.items() if key in search},
        **settings,
    }
    try:
        return StudySpec.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error)) from None


def changed(spec: StudySpec, settings: Mapping[str, Any]) -> StudySpec:
    """A spec with other values in some of its fields.  Raises ConfigError."""
    try:
        return StudySpec.model_validate({**spec.model_dump(), **settings})
    except ValidationError as error:
        raise ConfigError(describe(error)) from None


def default_name(recipe: Mapping[str, Any]) -> str:
    """scenario + setting + method."""
    scenario = recipe["scenario"]
    if not isinstance(scenario, str):
        scenario = str(scenario.get("name") or scenario.get("dataset"))
    name = f"{Path(scenario).stem}-{recipe.get('setting', 'overlapped')}-{recipe['method']}"
    return re.sub(r"[^A-Za-z0-9._+-]", "-", name)


def acts_at_first(key: str) -> bool:
    """Whether a key of a recipe section acts at step 0."""
    section, _, field = key.partition(".")
    return section in SECTIONS and SECTIONS[section].acts_from(field) == 0


def _check_some_method_has(key: str) -> None:
    if not any(key in method_keys(method) for method in METHODS):
        everything = {k for method in METHODS for k in method_keys(method)}
        raise ConfigError(f"unknown key '{key}'; {did_you_mean(key, everything)}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read search space '{path}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"search space '{path}' is not UTF-8 text") from None


def _parse(text: str, name: str) -> SearchSpace:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"search space '{name}' is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"search space '{name}' must be a mapping with 'scenario' and 'search'")
    try:
        space = SearchSpace.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"search space '{name}': {describe(error)}") from None
    both = sorted(set(space.recipe) & set(space.search))
    if both:
        raise ConfigError(f"search space '{name}': key '{both[0]}' is both fixed and searched")
    return space
