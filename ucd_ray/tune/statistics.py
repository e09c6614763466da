"""How sure a result is: mean, standard deviation, 95 % interval, and whether two results differ.

The values are those of a trial's replicates, each under its own seed and class order.  Intervals and tests
are Student's; two results are paired over the replicates that they share, else Welch's test is used.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

CONFIDENCE = 0.95
K = TypeVar("K", bound=Hashable)
ALPHA = 1 - CONFIDENCE  # two results with a larger p are not distinguishable


@dataclass(frozen=True)
class Spread:
    """Values in four numbers; `std`, `low` and `high` are None for a single value."""

    count: int
    mean: float
    std: float | None  # of the sample: divided by count - 1
    low: float | None  # ends of the interval of the mean
    high: float | None

    def __str__(self) -> str:
        if self.std is None:
            return f"{self.mean:.2f}, one replicate"
        return f"{self.mean:.2f} ± {self.std:.2f} {_interval(self.low, self.high)}"


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and 95 % interval of at least one value."""
    count, mean = len(values), statistics.fmean(values)
    if count < 2:
        return Spread(count, mean, None, None, None)
    std = statistics.stdev(values)
    half = _quantile(count - 1) * std / math.sqrt(count)
    return Spread(count, mean, std, mean - half, mean + half)


@dataclass(frozen=True)
class Comparison:
    """The difference of two means, first minus second."""

    test: Literal["paired", "welch"]
    counts: tuple[int, int]  # values of both that the test used
    difference: float
    low: float  # ends of the 95 % interval of the difference
    high: float
    p: float  # that means as far apart come by chance, two-sided

    @property
    def is_distinguishable(self) -> bool:
        """Whether the difference is more than chance explains."""
        return self.p < ALPHA

    def sentence(self, first: str, second: str) -> str:
        """The outcome in words; first and second name what was compared, the larger is better."""
        if self.difference < 0:
            return self._turned().sentence(second, first)
        by = f"{self.difference:.2f} {_interval(self.low, self.high)}"
        if self.is_distinguishable:
            said = f"{first} is better than {second} by {by}"
        else:
            said = f"{first} and {second} are not distinguishable: difference {by}"
        return f"{said}; {self._test()}, p {_probability(self.p)}"

    def _turned(self) -> Comparison:
        """Second minus first."""
        counts = (self.counts[1], self.counts[0])
        return Comparison(self.test, counts, -self.difference, -self.high, -self.low, self.p)

    def _test(self) -> str:
        if self.test == "paired":
            return f"paired t-test over {self.counts[0]} replicates"
        return f"Welch's t-test, {self.counts[0]} and {self.counts[1]} replicates"


def compare(first: Mapping[K, float], second: Mapping[K, float]) -> Comparison | None:
    """Compares values by what they were measured under; None if there are too few.

    Paired over the keys that both have, if these are at least two; else unpaired, which takes two of each.
    """
    shared = sorted(first.keys() & second.keys(), key=repr)
    if len(shared) >= 2:
        return paired([first[key] for key in shared], [second[key] for key in shared])
    if min(len(first), len(second)) >= 2:
        return welch(list(first.values()), list(second.values()))
    return None


def paired(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """The paired t-test of equally many values, at least two."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    count = len(differences)
    error = statistics.stdev(differences) / math.sqrt(count)
    found = _t_test(statistics.fmean(differences), error, count - 1)
    return Comparison("paired", (count, count), *found)


def welch(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Welch's t-test of at least two values each, whose variances may differ."""
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    error = math.sqrt(sum(parts))
    shares = [part**2 / (len(v) - 1) for part, v in zip(parts, (first, second), strict=True)]
    freedom = sum(parts) ** 2 / sum(shares) if sum(shares) else len(first) + len(second) - 2.0
    difference = statistics.fmean(first) - statistics.fmean(second)
    return Comparison("welch", (len(first), len(second)), *_t_test(difference, error, freedom))


def _t_test(difference: float, error: float, freedom: float) -> tuple[float, float, float, float]:
    """Difference, ends of its interval and p; without any spread a difference is certain."""
    from scipy import stats

    half = _quantile(freedom) * error
    if error == 0:
        p = 1.0 if difference == 0 else 0.0
    else:
        p = float(2 * stats.t.sf(abs(difference) / error, freedom))
    return difference, difference - half, difference + half, p


def _quantile(freedom: float) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def _interval(low: float | None, high: float | None) -> str:
    return f"({100 * CONFIDENCE:.0f} %: {low:.2f} .. {high:.2f})"


def _probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"
