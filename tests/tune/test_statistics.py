"""Intervals and tests against scipy's own, and against counting."""

from __future__ import annotations

import random
from itertools import product

import pytest
from scipy import stats

from ucd_ray.tune.statistics import Spread, compare, paired, spread, welch

CASES = [
    [50.0, 52.0],
    [50.0, 52.0, 47.5],
    [10.25, 10.5, 10.0, 12.0, 9.0],
]


@pytest.mark.parametrize("values", CASES)
def test_the_interval_is_students(values: list[float]) -> None:
    found = spread(values)
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values)
    )
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert found.std == pytest.approx(stats.tstd(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.count == len(values)


def test_one_value_has_no_interval() -> None:
    assert spread([40.0]) == Spread(1, 40.0, None, None, None)


def test_the_interval_holds_the_true_mean_nineteen_times_of_twenty() -> None:
    draw = random.Random(0)
    held = 0
    for _ in range(2000):
        found = spread([draw.gauss(30, 2) for _ in range(3)])
        assert found.low is not None and found.high is not None
        held += found.low < 30 < found.high
    assert held / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("first", "second"), [(a, b) for a, b in product(CASES, CASES) if a != b])
def test_welchs_test_is_scipys(first: list[float], second: list[float]) -> None:
    found, theirs = welch(first, second), stats.ttest_ind(first, second, equal_var=False)
    assert found.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.counts == (len(first), len(second))


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_paired_test_is_scipys(count: int) -> None:
    draw = random.Random(count)
    first = [draw.gauss(50, 3) for _ in range(count)]
    second = [value - draw.gauss(1, 1) for value in first]
    found, theirs = paired(first, second), stats.ttest_rel(first, second)
    assert found.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


@pytest.mark.parametrize("test", [paired, welch])
def test_values_without_spread_differ_surely_or_not_at_all(test: type) -> None:
    same, other = test([5.0, 5.0], [5.0, 5.0]), test([6.0, 6.0], [5.0, 5.0])
    assert (same.p, same.is_distinguishable) == (1.0, False)
    assert (other.p, other.is_distinguishable) == (0.0, True)
    assert (other.low, other.high) == (1.0, 1.0)


def test_two_results_are_paired_over_what_they_share() -> None:
    first = {(42, 0): 50.0, (43, 0): 60.0, (44, 0): 70.0, (45, 0): 0.0}
    second = {(42, 0): 49.0, (43, 0): 58.9, (44, 0): 69.1, (46, 0): 99.0}
    found = compare(first, second)
    assert found == paired([50.0, 60.0, 70.0], [49.0, 58.9, 69.1])
    assert found.is_distinguishable
    unpaired = compare(first, {(1, 0): 49.0, (2, 0): 58.9, (42, 0): 69.1})
    assert unpaired is not None
    assert (unpaired.test, unpaired.counts) == ("welch", (4, 3))
    assert not unpaired.is_distinguishable


def test_single_values_cannot_be_compared() -> None:
    assert compare({0: 50.0}, {0: 20.0}) is None
    assert compare({0: 50.0}, {1: 20.0, 2: 30.0}) is None


def test_the_outcome_is_said_in_one_sentence() -> None:
    clear = paired([52.0, 53.0, 54.1], [50.0, 51.0, 52.0])
    assert clear.sentence("trial 4", "trial 2") == (
        "trial 4 is better than trial 2 by 2.03 (95 %: 1.89 .. 2.18); "
        "paired t-test over 3 replicates, p < 0.001"
    )
    turned = paired([50.0, 51.0, 52.0], [52.0, 53.0, 54.1])
    assert turned.sentence("a", "b").startswith("b is better than a by 2.03 (95 %: 1.89 .. 2.18)")
    noise = welch([50.0, 52.0], [51.0, 50.5, 49.0])
    assert noise.sentence("a", "b") == (
        "a and b are not distinguishable: difference 0.83 (95 %: -4.98 .. 6.65); "
        "Welch's t-test, 2 and 3 replicates, p = 0.56"
    )
    assert str(spread([52.0, 50.0])) == "51.00 ± 1.41 (95 %: 38.29 .. 63.71)"
