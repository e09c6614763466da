"""What a search space fixes and searches, for all methods or for one, and what fixed values leave of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ucd_ray.config import Config
from ucd_ray.errors import ConfigError
from ucd_ray.methods import METHODS
from ucd_ray.recipe import Recipe, method_keys
from ucd_ray.tune.constraints import Constraint, parse
from ucd_ray.tune.names import METHOD
from ucd_ray.tune.parameter import Parameter, Value


class SpacePart(Config):
    """What a search space says for all methods, or for one."""

    recipe: dict[str, Value] = {}
    """Fixed values under their flat keys."""
    search: dict[str, Parameter] = {}
    """How keys vary."""
    first: dict[str, Value] = {}
    """Values of the first trial: the published ones."""
    constraints: tuple[str, ...] = ()
    """What params of a trial must fulfil, such as `optim.lr_new <= optim.lr_base`."""


def narrowed(part: SpacePart, method: str, fixed_keys: set[str]) -> SpacePart:
    """A part for one method without the searched keys that a user fixes, and what follows from that.

    Conditions and constraints that concern fixed values alone are decided now.  Raises ConfigError.
    """
    search = {key: parameter for key, parameter in part.search.items() if key not in fixed_keys}
    constraints = [c for c in map(parse, part.constraints) if _is_about(c, method)]
    named = {n for c in constraints for n in c.names}
    named.update(parent for parameter in search.values() for parent in parameter.conditions)
    if named - set(search):
        flat = Recipe.from_flat({**part.recipe, METHOD: method}).flat()
        fixed = {key: value for key, value in flat.items() if key not in search}
        search = settled(search, fixed)
        constraints = [c for c in constraints if not _is_met(c, fixed)]
    first = {key: value for key, value in part.first.items() if key in search}
    texts = tuple(constraint.text for constraint in constraints)
    return SpacePart(recipe=part.recipe, search=search, first=first, constraints=texts)


def settled(search: Mapping[str, Parameter], fixed: Mapping[str, Any]) -> dict[str, Parameter]:
    """The parameters that exist under fixed values, without the conditions that these meet."""
    gone = {
        key
        for key, parameter in search.items()
        if any(p in fixed and fixed[p] not in values for p, values in parameter.conditions.items())
    }
    while more := {k for k, p in search.items() if k not in gone and gone & set(p.conditions)}:
        gone |= more
    kept = {}
    for key in [key for key in search if key not in gone]:
        when = {p: values for p, values in search[key].conditions.items() if p not in fixed}
        kept[key] = search[key].model_copy(update={"when": when})
    return kept


def _is_about(constraint: Constraint, method: str) -> bool:
    """Whether a constraint of a search space is one for `method`; unknown keys are found out later."""
    others = {key for other in METHODS for key in method_keys(other)} - set(method_keys(method))
    return not others & set(constraint.names)


def _is_met(constraint: Constraint, fixed: Mapping[str, Any]) -> bool:
    """Whether fixed values alone decide a constraint.  Raises ConfigError if they break it."""
    if not constraint.holds(fixed):
        values = ", ".join(f"{name} = {fixed[name]}" for name in constraint.names)
        raise ConfigError(f"fixed values break the constraint '{constraint.text}': {values}")
    return constraint.applies(fixed)
