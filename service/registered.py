"""Data sets and weights by registered names: nothing that a client sends is a path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ucd_ray.errors import did_you_mean
from ucd_ray.service.problems import pointer
from ucd_ray.service.settings import Settings
from ucd_ray.tune.names import METHOD

GENERATED = "generated"  # images that are made, not read
# Keys of a recipe that name files, and what of the settings names them for clients.
FILES = {
    "data.source": "data_sets",
    "data.split_lists": "data_sets",
    "model.weights": "weights",
    "model.base": "weights",
    "model.base_classes": "weights",
}
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+, -]*")  # a timm name with a colon would be a place


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with what a client sent."""

    pointer: str
    code: str
    detail: str


def known(settings: Settings, key: str) -> dict[str, str]:
    """By name, the paths that a key may have."""
    found: dict[str, str] = dict(getattr(settings, FILES[key]))
    return {**found, GENERATED: GENERATED} if key == "data.source" else found


def with_paths(
    recipe: Mapping[str, Any], settings: Settings, at: tuple[str, ...]
) -> tuple[dict[str, Any], list[Finding]]:
    """A recipe with paths in place of registered names, and what is no registered name."""
    values, found = dict(recipe), []
    for key in FILES.keys() & recipe.keys():
        name, names = recipe[key], known(settings, key)
        if name is None:
            continue
        if isinstance(name, str) and name in names:
            values[key] = names[name]
            continue
        hint = did_you_mean(str(name), names) if names else "the service has none"
        kind = FILES[key].replace("_", " ")
        told = f"'{name}' is not among the registered {kind}; {hint}"
        found.append(Finding(pointer(("body", *at, key)), "NOT_REGISTERED", told))
    return values, found


def with_names(recipe: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The same recipe as clients see it."""
    values = dict(recipe)
    for key in FILES.keys() & recipe.keys():
        names = {path: name for name, path in known(settings, key).items()}
        values[key] = names.get(str(recipe[key])) if recipe[key] is not None else None
    return values


def not_plain(content: Any, at: tuple[Any, ...]) -> Iterator[Finding]:
    """Texts that could be a place: a path, a URL, a hub.  Names of files may not vary either."""
    if isinstance(content, str):
        if not PLAIN.fullmatch(content) or content.endswith((".yaml", ".yml", ".json")):
            yield Finding(pointer(("body", *at)), "NOT_PLAIN", f"{content!r} is not a plain name")
    elif isinstance(content, Mapping):
        for key, value in content.items():
            if key not in FILES:
                yield from not_plain(value, (*at, key))
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from not_plain(value, (*at, index))


def files_that_vary(search: Any, at: tuple[Any, ...]) -> Iterator[Finding]:
    """Keys of files in a search space."""
    for key in FILES.keys() & (search.keys() if isinstance(search, Mapping) else set()):
        told = f"'{key}' names files and cannot be searched"
        yield Finding(pointer(("body", *at, key)), "NOT_SEARCHABLE", told)


def method_of(recipe: Mapping[str, Any]) -> str | None:
    """The method that a recipe fixes, if it is text."""
    found = recipe.get(METHOD)
    return found if isinstance(found, str) else None
