"""From what a client sent to a spec of the library: everything that is wrong with it, at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ucd_ray.errors import ConfigError, UcdRayError
from ucd_ray.recipe import Recipe, check_key, micro_batches
from ucd_ray.scenarios import GENERATED_DATASETS
from ucd_ray.service.bodies import FromScenario
from ucd_ray.service.pointing import place, pointed, refuse
from ucd_ray.service.problems import pointer
from ucd_ray.service.registered import (
    Finding,
    files_that_vary,
    known,
    method_of,
    not_plain,
    with_names,
    with_paths,
)
from ucd_ray.service.settings import Settings
from ucd_ray.tune.checks import check_start
from ucd_ray.tune.names import METHOD
from ucd_ray.tune.space import build_spec, space_of
from ucd_ray.tune.spec import StudySpec

LONGEST_TITLE = 61  # of 81 characters, the rest is the study's id
QUESTION = ("scenario", "setting", METHOD)


@dataclass(frozen=True)
class Built:
    """A spec in both forms."""

    spec: StudySpec  # the library's: with paths, under a name of its own
    shown: dict[str, Any]  # the client's: with registered names, under its name

    @property
    def title(self) -> str:
        """The name that the client gave."""
        return str(self.shown["name"])


def from_scenario(asked: FromScenario, settings: Settings, study_id: str) -> Built:
    """The spec of a scenario's search space.  Raises Problem (422)."""
    at = ("tune", "values")
    values, found = with_paths(asked.values, settings, at)
    found += [*not_plain(asked.values, at), *not_plain(asked.scenario, ("tune", "scenario"))]
    found += not_plain(asked.space, ("tune", "space"))
    found += files_that_vary(asked.settings.get("search"), ("tune", "settings", "search"))
    found += not_plain(asked.settings.get("search", {}), ("tune", "settings", "search"))
    found += not_plain(asked.settings.get("first", {}), ("tune", "settings", "first"))
    taken = {"name", "recipe", "search", "first", "method"} & set(asked.settings)
    for key in sorted(taken):
        told = f"'{key}' is no setting; give it in `tune` or send a whole `spec`"
        found.append(Finding(pointer(("body", "tune", "settings", key)), "NOT_A_SETTING", told))
    refuse(found)
    generated = asked.values.get("data.source") == "generated"
    with pointed(asked.model_dump(), "tune"):
        space = space_of(asked.scenario, asked.space, generated=generated)
        spec = build_spec(
            space, name=asked.name, method=asked.method, overrides=values, **asked.settings
        )
    return _built(spec, settings, study_id, "tune")


def from_spec(content: Mapping[str, Any], settings: Settings, study_id: str) -> Built:
    """A whole spec.  Raises Problem (422) with everything that is wrong."""
    recipe = content.get("recipe")
    found: list[Finding] = []
    paths: dict[str, Any] = {}
    for part in ("recipe", "search", "first"):
        found += not_plain(content.get(part, {}), ("spec", part))
    found += files_that_vary(content.get("search"), ("spec", "search"))
    if isinstance(recipe, Mapping):
        paths, unknown = with_paths(recipe, settings, ("spec", "recipe"))
        found += unknown
        if not found:
            found += _wrong_values(paths, content.get("search"))
    try:
        spec = StudySpec.model_validate({**content, **({"recipe": paths} if paths else {})})
    except ValidationError as error:
        found += _of_pydantic(error, content, {finding.pointer for finding in found})
    refuse(found)
    return _built(spec, settings, study_id, "spec")


def _built(spec: StudySpec, settings: Settings, study_id: str, part: str) -> Built:
    title = spec.name[:LONGEST_TITLE]
    own = spec.model_copy(update={"name": f"{title}-{study_id}"})
    refuse(_without_data(spec, settings, part))
    with pointed({}, part):
        _check_start(own)
    shown = spec.model_dump(mode="json")
    return Built(own, {**shown, "name": title, "recipe": with_names(shown["recipe"], settings)})


def _without_data(spec: StudySpec, settings: Settings, part: str) -> list[Finding]:
    """That images are missing, in the words of a client: a start would say --data."""
    recipe = spec.base_recipe()
    if recipe.data.source is not None or recipe.scenario.dataset in GENERATED_DATASETS:
        return []
    names = ", ".join(sorted(known(settings, "data.source")))
    told = f"data set '{recipe.scenario.dataset}' needs data.source; the service has: {names}"
    at = ("tune", "values") if part == "tune" else (part, "recipe")
    return [Finding(pointer(("body", *at, "data.source")), "NEEDS_DATA", told)]


def _check_start(spec: StudySpec) -> None:
    """Raises ConfigError for what a start would refuse without a look at the data."""
    check_start(spec)
    for step in range(2):
        micro_batches(spec.base_recipe(), spec.workers, step=step)


def _wrong_values(recipe: Mapping[str, Any], search: Any) -> list[Finding]:
    """Keys and values of a recipe that are wrong each for itself."""
    method = method_of(recipe)
    question = {key: recipe[key] for key in QUESTION if key in recipe}
    try:
        Recipe.from_flat(question)
    except (UcdRayError, TypeError):  # one of its three: the whole is looked at once
        return []
    found = []
    for key in recipe.keys() - set(QUESTION):
        try:
            Recipe.from_flat({**question, key: recipe[key]})
        except ConfigError as error:
            found.append(Finding(pointer(("body", "spec", "recipe", key)), "INVALID", str(error)))
    for key in search if isinstance(search, Mapping) and method else ():
        try:
            check_key(key, str(method))
        except ConfigError as error:
            found.append(Finding(pointer(("body", "spec", "search", key)), "INVALID", str(error)))
    return found


def _of_pydantic(
    error: ValidationError, content: Mapping[str, Any], told: set[str]
) -> list[Finding]:
    found = []
    for finding in error.errors():
        text = str(finding["msg"]).removeprefix("Value error, ")
        at = pointer(("body", "spec", *finding["loc"]))
        if not finding["loc"]:
            at = place(text, content, "spec")
            if told:  # the first of what has been found already
                continue
        found.append(Finding(at, str(finding["type"]).upper(), text))
    return found


def differing(stored: Any, wanted: Any, at: str = "") -> list[str]:
    """JSON pointers of what differs between two specs as clients see them."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [
            place
            for key in sorted(stored.keys() | wanted.keys())
            for place in differing(
                stored.get(key), wanted.get(key), at + pointer(("body", str(key)))
            )
        ]
    return [] if json.dumps(stored) == json.dumps(wanted) else [at]
