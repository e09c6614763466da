"""Search spaces: which keys of a recipe vary, and how; and the study spec made from one.

A file names a scenario, fixes recipe values, lists what is searched, and gives the published values as
first trial; `by_method` replaces parts of it for one method.  Needs neither torch nor Ray.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.methods import ADDED, METHODS
from ucd_ray.recipe import by_epochs, check_method, describe, method_keys
from ucd_ray.scenarios import read_scenario
from ucd_ray.tune.names import METHOD
from ucd_ray.tune.parameter import Value
from ucd_ray.tune.several_methods import together_fixed, together_searched
from ucd_ray.tune.space_part import SpacePart, narrowed
from ucd_ray.tune.spec import StudySpec, uses


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
        own = self._own(self.by_method, method)
        usual = SpacePart() if own else self._own(method_parts(), method) or SpacePart()
        # What a file says for the methods it is about counts more than what is usual for them.
        about = method in self.methods()
        parts = (usual, self, own or SpacePart()) if about else (self, usual, own or SpacePart())
        merged: dict[str, Any] = {
            "constraints": tuple(c for part in parts for c in part.constraints)
        }
        for field in ("recipe", "search", "first"):
            values = {key: value for part in parts for key, value in getattr(part, field).items()}
            for key in set(values) - set(method_keys(method)):  # of another method, or a mistake
                _check_some_method_has(key)
            known = (
                method_keys(method) if field == "recipe" else [k for k in values if uses(method, k)]
            )
            merged[field] = {k: v for k, v in values.items() if k in known and k != METHOD}
        return SpacePart.model_construct(**merged)

    def _own(self, parts: Mapping[str, SpacePart], method: str) -> SpacePart | None:
        return parts.get(method) or parts.get(method.removesuffix(ADDED))

    def methods(self) -> tuple[str, ...]:
        """The methods that are tuned when none is asked for."""
        searched = self.search.get(METHOD)
        if searched is None:
            return (self.method,)
        if searched.choices is None:
            raise ConfigError("search range of 'method': give choices, such as [mib, mib+ucd]")
        first = self.first.get(METHOD)
        found = (first, *searched.choices) if first in searched.choices else searched.choices
        return tuple(dict.fromkeys(map(str, found)))


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
    """The search space called `name`, or in the YAML or JSON file at that path.

    Raises ConfigError naming file, key and value.
    """
    if name.endswith((".yaml", ".yml", ".json")):
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
    overrides = by_epochs(overrides or {})
    set_method = overrides.pop(METHOD, None)
    asked = set_method if method is None else method
    methods = space.methods() if asked is None else tuple(str(asked).split(","))
    first: dict[str, Value] | tuple[dict[str, Value], ...]
    for each in methods:
        check_method(each)
    parts = {each: _part(space, each, overrides) for each in dict.fromkeys(methods)}
    recipe = together_fixed({each: part.recipe for each, part in parts.items()})
    if len(parts) == 1:
        (part,) = parts.values()
        recipe[METHOD], search, first = methods[0], part.search, part.first
    else:
        search = together_searched({each: part.search for each, part in parts.items()})
        first = tuple({METHOD: each, **part.first} for each, part in parts.items())
    given = [c for part in parts.values() for c in part.constraints]
    values: dict[str, Any] = {
        "name": name or default_name(recipe),
        "recipe": {**overrides, **recipe},
        "search": search,
        "first": first,
        **settings,
        "constraints": tuple(dict.fromkeys([*given, *settings.get("constraints", ())])),
    }
    try:
        return StudySpec.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error)) from None


def _part(space: SearchSpace, method: str, overrides: Mapping[str, Any]) -> SpacePart:
    """What is fixed and searched for one method, under values that a user fixes."""
    part = space.part(method)
    recipe: dict[str, Any] = {"scenario": space.scenario, **part.recipe}
    recipe |= {key: value for key, value in overrides.items() if key in method_keys(method)}
    if str(recipe["scenario"]).endswith((".yaml", ".yml")):  # the file may change or move
        recipe["scenario"] = read_scenario(Path(recipe["scenario"])).model_dump(mode="json")
    return narrowed(part.model_copy(update={"recipe": recipe}), method, set(overrides))


def default_name(recipe: Mapping[str, Any]) -> str:
    """scenario + setting + method, `methods` if it is searched."""
    scenario = recipe["scenario"]
    if not isinstance(scenario, str):
        scenario = str(scenario.get("name") or scenario.get("dataset"))
    method = recipe.get(METHOD, "methods")
    name = f"{Path(scenario).stem}-{recipe.get('setting', 'overlapped')}-{method}"
    return re.sub(r"[^A-Za-z0-9._+-]", "-", name)


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
