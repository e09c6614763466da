"""When a trial is hopeless beside the best one."""

from __future__ import annotations

import random

import pytest
from scipy import stats

from ucd_ray.tune.racing import is_hopeless


def numbered(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


BEST = numbered(50.0, 60.0, 40.0, 70.0)


@pytest.mark.parametrize(
    ("values", "p", "expected"),
    [
        ((49.0,), 0.9, False),  # one pair tells nothing
        ((49.0, 58.0), 0.3, True),  # p 0.25
        ((49.0, 58.0), 0.25, False),
        ((49.0, 61.0), 0.3, False),
        ((49.0, 58.0, 37.0), 0.2, True),  # p 0.125
        ((49.0, 58.0, 37.0), 0.1, False),
        ((49.0, 58.0, 37.0, 66.0), 0.1, True),  # p 0.0625
        ((50.0, 60.0, 40.0), 0.4, False),  # the same
        ((60.0, 70.0, 50.0), 0.9, False),  # better
    ],
)
def test_a_trial_is_hopeless_once_it_loses_often_enough(
    values: tuple[float, ...], p: float, expected: bool
) -> None:
    assert is_hopeless(numbered(*values), BEST, p=p) is expected


def test_only_replicates_that_both_have_count() -> None:
    """Replicate 2 is a hard one; the mean of the best trial over all is below the other's over two."""
    best = numbered(50.0, 60.0, 10.0)
    assert is_hopeless(numbered(49.0, 58.0), best, p=0.3)
    assert not is_hopeless({0: 49.0, 7: 1.0}, best, p=0.9)


def test_the_verdict_is_that_of_scipys_test() -> None:
    draw = random.Random(1)
    verdicts = []
    for _ in range(60):
        best = [draw.gauss(50, 5) for _ in range(5)]
        mine = [value + draw.gauss(-1, 2) for value in best]
        differences = [a - b for a, b in zip(mine, best, strict=True)]
        p = stats.wilcoxon(differences, alternative="less", zero_method="zsplit").pvalue
        expected = bool(p < 0.2 and sum(differences) < 0)
        assert is_hopeless(numbered(*mine), numbered(*best), p=0.2) == expected
        verdicts.append(expected)
    assert len(set(verdicts)) == 2
