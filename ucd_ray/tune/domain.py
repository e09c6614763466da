"""What a study may try: which searched keys exist beside which, and what constraints leave of them.

Needs neither torch, Optuna nor Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.tune.constraints import Constraint
from ucd_ray.tune.names import METHOD
from ucd_ray.tune.parameter import Choice, Parameter

Params = dict[str, Any]
Conditions = dict[str, tuple[Choice, ...]]

DRAWS = 10_000  # random params after which constraints count as contradictory
MOST_POINTS = 100_000  # that a sampler may be asked to try one by one


@dataclass(frozen=True)
class Domain:
    """The searched keys of a study, how they depend on one another, and its constraints.

    implied: conditions beside those that parameters have: keys exist under the methods that use them
    fixed: by method (None: it is not searched), values of keys that constraints name and nobody searches
    Raises ConfigError for conditions that cannot be.
    """

    search: Mapping[str, Parameter]
    constraints: tuple[Constraint, ...] = ()
    implied: Mapping[str, Conditions] = field(default_factory=dict)
    fixed: Mapping[str | None, Params] = field(default_factory=dict)

    @cached_property
    def conditions(self) -> dict[str, Conditions]:
        """For every key, the values of others under which it exists."""
        return {key: self._conditions(key) for key in self.search}

    def _conditions(self, key: str) -> Conditions:
        found = dict(self.implied.get(key, {}))
        for parent, values in self.search[key].conditions.items():
            self._check_condition(key, parent, values)
            both = found.get(parent, values)
            found[parent] = tuple(value for value in values if value in both)
            if not found[parent]:
                raise ConfigError(
                    f"'{key}' would exist where {parent} is {_listed(values)}, "
                    f"but it is used only where {parent} is {_listed(both)}"
                )
        return found

    def _check_condition(self, key: str, parent: str, values: tuple[Choice, ...]) -> None:
        if parent not in self.search:
            raise ConfigError(
                f"'{key}' exists only under values of '{parent}', which is not searched; "
                f"{did_you_mean(parent, self.search)}"
            )
        if not values:
            raise ConfigError(f"'{key}' exists under no value of '{parent}': the list is empty")
        for value in values:
            if not self.search[parent].holds(value):
                raise ConfigError(
                    f"'{key}' would exist where {parent} is {_shown(value)}, "
                    "which is not among the values searched"
                )

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The keys, those that others depend on before them."""
        found: dict[str, None] = {}

        def visit(key: str, path: tuple[str, ...]) -> None:
            if key in path:
                circle = " -> ".join((*path[path.index(key) :], key))
                raise ConfigError(f"conditions in a circle, so none can be met: {circle}")
            for parent in sorted(self.conditions[key]):
                visit(parent, (*path, key))
            found[key] = None

        for key in sorted(self.search):
            visit(key, ())
        return tuple(found)

    def exists(self, key: str, params: Mapping[str, Any]) -> bool:
        """Whether a key exists beside other params."""
        return all(
            parent in params and params[parent] in values
            for parent, values in self.conditions[key].items()
        )

    def beside(self, key: str, method: str) -> Params:
        """Values of other keys beside which `key` exists, under a method if that is searched."""
        found: Params = {METHOD: method} if METHOD in self.search else {}
        for parent, values in self.conditions[key].items():
            if parent != METHOD:
                found = {**self.beside(parent, method), parent: values[0], **found}
        return found

    def broken(self, params: Mapping[str, Any]) -> Constraint | None:
        """The first constraint that params break."""
        values = {**self.fixed.get(params.get(METHOD), {}), **params}
        return next((c for c in self.constraints if not c.holds(values)), None)

    def outside(self, params: Mapping[str, Any]) -> list[str]:
        """The searched keys whose values are not among those searched."""
        return [k for k, v in params.items() if k in self.search and not self.search[k].holds(v)]

    def check(self, params: Mapping[str, Any], what: str, *, ranges: bool = True) -> None:
        """Raises ConfigError if no trial can have `params`; keys that are left out may have any value.

        what: such as `first value`; ranges: whether values must be among those searched
        """
        for key, value in params.items():
            if key not in self.search:
                raise ConfigError(f"{what} of '{key}', which is not searched")
            if ranges and not self.search[key].holds(value):
                raise ConfigError(f"{what} of '{key}' ({value}) is outside of its search range")
            for parent, values in self.conditions[key].items():
                if parent in params and params[parent] not in values:
                    raise ConfigError(
                        f"{what} of '{key}', which does not exist where {parent} is {params[parent]}"
                    )
        constraint = self.broken(params)
        if constraint is not None:
            raise ConfigError(f"{what}s break the constraint '{constraint.text}'")

    def draw(self, random: Random, given: Mapping[str, Any] | None = None) -> Params:
        """Any params beside those that are given, constraints left aside."""
        params: Params = {}
        for key in self.order:
            if self.exists(key, params):
                drawn = self.search[key].draw(random)
                params[key] = given[key] if given and key in given else drawn
        return params

    def draw_fitting(self, random: Random, given: Mapping[str, Any]) -> Params:
        """Any params that fulfil the constraints; if none of `DRAWS` do, the last ones drawn."""
        params: Params = {}
        for _ in range(DRAWS):
            params = self.draw(random, given)
            if self.broken(params) is None:
                break
        return params

    def check_possible(self) -> None:
        """Raises ConfigError if constraints leave nothing to try of some method, or next to nothing."""
        methods = self.search[METHOD].choices or () if METHOD in self.search else (None,)
        for method in methods:
            given = {METHOD: method} if method else {}
            if self.broken(self.draw_fitting(Random(0), given)):
                where = f" with method '{method}'" if method else ""
                raise ConfigError(
                    f"{self._said} nothing to try{where}: of {DRAWS} params drawn from the search space "
                    "none fit"
                )

    @property
    def _said(self) -> str:
        texts = ", ".join(f"'{constraint.text}'" for constraint in self.constraints)
        return (
            f"constraint {texts} leaves"
            if len(self.constraints) == 1
            else f"constraints {texts} leave"
        )

    @cached_property
    def points(self) -> list[Params]:
        """All params that can be tried, where every key has a countable number of values.

        Raises ConfigError if there are none, or too many.
        """
        found: list[Params] = []
        for seen, params in enumerate(self._combinations()):
            if seen >= 10 * MOST_POINTS or len(found) >= MOST_POINTS:
                raise ConfigError(
                    f"more than {MOST_POINTS} points to try one by one; take fewer values, or another "
                    "sampler, such as random or qmc"
                )
            if self.broken(params) is None:
                found.append(params)
        if not found:
            raise ConfigError(f"{self._said} none of the points")
        return found

    def _combinations(self, place: int = 0, params: Params | None = None) -> Iterator[Params]:
        params = params or {}
        if place == len(self.order):
            yield dict(params)
            return
        key = self.order[place]
        if not self.exists(key, params):
            yield from self._combinations(place + 1, params)
            return
        values = self.search[key].points()
        assert values is not None, "the spec refuses a range without a step"
        for value in values:
            yield from self._combinations(place + 1, {**params, key: value})


def _listed(values: tuple[Choice, ...]) -> str:
    return " or ".join(_shown(value) for value in values)


def _shown(value: Choice) -> str:
    return "null" if value is None else str(value)
