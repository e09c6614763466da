"""The spec of a copy of a study: the original's, with what is asked for in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ucd_ray.methods import METHODS
from ucd_ray.recipe import by_epochs, method_keys
from ucd_ray.tune.names import METHOD
from ucd_ray.tune.spec import uses


def copied_spec(spec: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """A spec with other fields: `recipe` and `search` are merged key by key, all others replaced.

    A key that is fixed is no longer searched, one that is searched no longer fixed; null under `search`
    ends a search.  Keys that another method does not have are left out, and of `first` those that are asked
    for otherwise.  Nothing is checked here.
    """
    found = {**spec, **asked}
    recipe, search = asked.get("recipe", {}), asked.get("search", {})
    if not isinstance(recipe, Mapping) or not isinstance(search, Mapping):
        return found  # which is refused
    recipe = by_epochs(recipe)
    method = recipe.get(METHOD)
    old_recipe, old_search = spec["recipe"], spec["search"]
    if isinstance(method, str) and method in METHODS:
        old_recipe = {k: v for k, v in old_recipe.items() if k in method_keys(method)}
        old_search = {k: v for k, v in old_search.items() if uses(method, k)}
    sought = {key: range_ for key, range_ in search.items() if range_ is not None}
    found["recipe"] = {**_without(old_recipe, sought), **recipe}
    found["search"] = {**_without(old_search, {**recipe, **search}), **sought}
    if "first" not in asked:
        gone = spec["search"].keys() - found["search"].keys()
        found["first"] = _firsts(spec["first"], {*gone, *sought}, method)
    return found


def _firsts(stored: Any, lost: set[str], method: Any) -> Any:
    """Values of one first trial or of several, without some keys; of a method only, unless that is None."""
    if isinstance(stored, Mapping):
        own = method in (None, stored.get(METHOD, method))
        return {key: value for key, value in stored.items() if own and key not in lost}
    return [first for first in (_firsts(one, lost, method) for one in stored) if first]


def _without(values: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}
