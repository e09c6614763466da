"""Orders of classes: permutations that are distinct, shared by scenarios, and the same everywhere."""

from __future__ import annotations

from itertools import chain, pairwise, permutations

import pytest

from ucd_ray.class_orders import count_orders, in_order
from ucd_ray.errors import ScenarioError
from ucd_ray.recipe import Recipe
from ucd_ray.scenarios import KNOWN_SCENARIOS, Scenario, parse_scenario


def small(*sizes: int) -> Scenario:
    """Classes 1, 2, ... in steps of these sizes."""
    ids = iter(range(1, 20))
    steps = tuple(tuple(next(ids) for _ in range(size)) for size in sizes)
    return Scenario(dataset="voc", steps=steps, background=True, name="small")


@pytest.mark.parametrize("name", KNOWN_SCENARIOS)
def test_an_order_has_the_same_classes_in_steps_of_the_same_sizes(name: str) -> None:
    scenario = parse_scenario(name)
    for order in range(4):
        other = in_order(scenario, order)
        assert [len(step) for step in other.steps] == [len(step) for step in scenario.steps]
        assert sorted(chain(*other.steps)) == sorted(chain(*scenario.steps))
        assert (other.dataset, other.background) == (scenario.dataset, scenario.background)


def test_order_0_is_the_published_one() -> None:
    scenario = parse_scenario("voc-15-1")
    assert in_order(scenario, 0) is scenario


@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (1, 1, 1), (2, 2), (3,), (2, 1, 1)])
def test_all_orders_that_exist_are_found_and_no_more(sizes: tuple[int, ...]) -> None:
    scenario = small(*sizes)
    ids = sorted(chain(*scenario.steps))
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    expected = {
        tuple(frozenset(order[a:b]) for a, b in pairwise(ends)) for order in permutations(ids)
    }
    assert count_orders(scenario) == len(expected)
    found = [in_order(scenario, k) for k in range(len(expected))]
    assert {tuple(map(frozenset, other.steps)) for other in found} == expected
    with pytest.raises(ScenarioError, match=r"class order \d+ of scenario 'small' does not exist"):
        in_order(scenario, len(expected))


def test_scenarios_of_a_data_set_share_their_permutations() -> None:
    one, other = (in_order(parse_scenario(name), 1) for name in ("voc-15-1", "voc-15-5"))
    assert one.steps[0] == other.steps[0]
    assert sorted(chain(*one.steps[1:])) == sorted(other.steps[1])


def test_an_order_never_changes() -> None:
    """Written down once: a stored step of an order must be found by every later version."""
    assert in_order(parse_scenario("voc-15-1"), 1).steps == (
        (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 17, 19, 20),
        *((1,), (18,), (15,), (14,), (13,)),
    )


def test_a_recipe_keeps_its_order_on_its_way_through_flat_values() -> None:
    recipe = Recipe.from_flat({"scenario": "voc-15-5"})
    other = recipe.with_overrides(
        {"scenario": in_order(recipe.scenario, 2).model_dump(mode="json")}
    )
    assert Recipe.from_flat(other.flat()) == other
    assert other.scenario.steps == in_order(recipe.scenario, 2).steps
    assert other.acting_until(0) == recipe.acting_until(0)
