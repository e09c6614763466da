from __future__ import annotations

import numpy as np
import pytest

from ucd_ray.confusion import decoded, pack, shares, summed, unpack


@pytest.mark.parametrize("classes", [1, 2, 21, 151])
def test_a_packed_matrix_comes_back_as_it_was(classes: int) -> None:
    counts = np.random.default_rng(classes).integers(0, 2**40, (classes, classes))
    assert np.array_equal(unpack(decoded(pack(counts.tolist()))), counts)


def test_zeros_and_small_counts_cost_little() -> None:
    random = np.random.default_rng(0)
    counts = random.integers(0, 1000, (151, 151)) * (random.random((151, 151)) < 0.2)
    assert len(decoded(pack(counts))) < 16_000


def test_groups_hold_the_pixels_of_their_classes() -> None:
    counts = np.random.default_rng(1).integers(0, 100, (6, 6))
    groups = [[0], [1, 2], [3, 4, 5]]
    expected = [[sum(counts[i, j] for i in a for j in b) for b in groups] for a in groups]
    assert summed(counts, [1, 2, 3]).tolist() == expected


def test_shares_of_a_row_are_percent_of_its_truth_and_unknown_without_any() -> None:
    found = shares(np.array([[3, 1], [0, 0]]))
    assert found[0].tolist() == [75.0, 25.0]
    assert np.isnan(found[1]).all()
