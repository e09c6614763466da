"""Other orders in which the classes of a scenario may be learned.

Order 0 is the published one.  Order k is a permutation of the same classes that depends on k and the class
ids alone, so that all scenarios of a data set share it and studies can be paired by it.  Which classes a
step has is what counts: within a step they are sorted, and no two orders have the same steps.
"""

from __future__ import annotations

import hashlib
import math

from ucd_ray.errors import ScenarioError
from ucd_ray.scenarios import Scenario


def count_orders(scenario: Scenario) -> int:
    """How many orders there are: ways to deal the classes out to steps of the same sizes."""
    sizes = [len(step) for step in scenario.steps]
    return math.factorial(sum(sizes)) // math.prod(map(math.factorial, sizes))


def in_order(scenario: Scenario, order: int) -> Scenario:
    """The scenario with its classes in another order; 0 is the scenario itself.

    Raises ScenarioError if there are not so many.
    """
    if order == 0:
        return scenario
    if order >= count_orders(scenario):
        raise ScenarioError(
            f"class order {order} of scenario '{scenario.name}' does not exist: its "
            f"{len(scenario.steps)} step(s) have {count_orders(scenario)} order(s), 0 is the published one"
        )
    found = [_sorted(scenario.steps)]
    attempt = 0
    while len(found) <= order:
        attempt += 1
        if (steps := _dealt(scenario, attempt)) not in found:
            found.append(steps)
    name = f"{scenario.name}, class order {order}"
    return scenario.model_copy(update={"steps": found[order], "name": name})


def _dealt(scenario: Scenario, attempt: int) -> tuple[tuple[int, ...], ...]:
    """The classes, shuffled, cut into steps of the scenario's sizes."""

    def place(class_id: int) -> bytes:
        return hashlib.sha256(f"{attempt}:{class_id}".encode()).digest()

    shuffled = iter(sorted((c for step in scenario.steps for c in step), key=place))
    return _sorted(tuple(tuple(next(shuffled) for _ in step) for step in scenario.steps))


def _sorted(steps: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sorted(step)) for step in steps)
