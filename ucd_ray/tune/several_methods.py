"""One search over several methods, from what a search space says for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ucd_ray.errors import ConfigError
from ucd_ray.recipe import method_keys
from ucd_ray.tune.names import METHOD
from ucd_ray.tune.parameter import Parameter


def together_fixed(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The fixed values of all methods.  Raises ConfigError where methods that have a key disagree."""
    fixed: dict[str, Any] = {}
    for key in dict.fromkeys(key for recipe in recipes.values() for key in recipe):
        having = [method for method in recipes if key in method_keys(method)]
        values = [recipes[method].get(key, "its default") for method in having]
        other = next((i for i, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            raise ConfigError(
                f"'{key}' is fixed at {values[0]} for method '{having[0]}' and at {values[other]} for "
                f"'{having[other]}'; fix it for all with --set {key}=VALUE, or search it"
            )
        fixed[key] = values[0]
    return fixed


def together_searched(searches: Mapping[str, Mapping[str, Parameter]]) -> dict[str, Parameter]:
    """What is searched for all methods, each key in the widest of its ranges, and the method itself."""
    merged = {METHOD: Parameter(choices=tuple(searches))}
    for key in dict.fromkeys(key for search in searches.values() for key in search):
        searching = [method for method, search in searches.items() if key in search]
        parameter = searches[searching[0]][key]
        for method in searching[1:]:
            parameter = widest(key, parameter, searches[method][key])
        if any(key in method_keys(method) for method in searches if method not in searching):
            when = {**parameter.when, METHOD: tuple(searching)}
            parameter = parameter.model_copy(update={"when": when})
        merged[key] = parameter
    return merged


def widest(key: str, one: Parameter, other: Parameter) -> Parameter:
    """All values of two parameters of the same kind.  Raises ConfigError for different kinds."""
    if one == other:
        return one
    if one.choices is not None and other.choices is not None and one.when == other.when:
        return one.model_copy(
            update={"choices": tuple(dict.fromkeys([*one.choices, *other.choices]))}
        )
    varying: dict[str, Any] = {"low": None, "high": None}
    if one.choices is not None or one.model_copy(update=varying) != other.model_copy(
        update=varying
    ):
        raise ConfigError(
            f"'{key}' is searched in different ways for different methods, so not for them together; "
            f"fix it with --set {key}=VALUE, or search one method at a time"
        )
    assert one.low is not None and other.low is not None
    assert one.high is not None and other.high is not None
    span = {"low": min(one.low, other.low), "high": max(one.high, other.high)}
    return one.model_copy(update=span)
