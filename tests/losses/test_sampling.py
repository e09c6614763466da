"""Class-balanced sampling: shares, randomness, determinism."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ucd_ray.losses import balanced_sample
from ucd_ray.losses.sampling import Sample, fair_shares


@pytest.mark.parametrize(
    ("counts", "total", "shares"),
    [
        ([10, 2, 10], 12, [5, 2, 5]),
        ([1, 100, 3], 20, [1, 16, 3]),
        ([5, 5, 5], 7, [2, 2, 3]),
        ([0, 4, 0], 2, [0, 2, 0]),
        ([3, 4], 100, [3, 4]),
        ([3, 4], 0, [0, 0]),
        ([], 5, []),
    ],
)
def test_fair_shares(counts: list[int], total: int, shares: list[int]) -> None:
    assert fair_shares(counts, total) == shares


def test_fair_shares_always_use_the_whole_total() -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(200):
        counts = torch.randint(0, 20, (6,), generator=rng).tolist()
        total = int(torch.randint(0, 80, (), generator=rng))
        shares = fair_shares(counts, total)
        assert sum(shares) == min(total, sum(counts))
        assert all(share <= count for share, count in zip(shares, counts, strict=True))
        level = max(shares)
        assert all(s in (c, level - 1, level) for s, c in zip(shares, counts, strict=True))


def classes() -> Tensor:
    """20 pixels of class 7, 3 of class 1, 12 of class 4, mixed."""
    labels = torch.tensor([7] * 20 + [1] * 3 + [4] * 12)
    return labels[torch.randperm(35, generator=torch.Generator().manual_seed(0))]


def sizes(labels: Tensor, sample: Sample) -> dict[int, int]:
    values, counts = labels[sample.at].unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_no_cap_keeps_all_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    kept = balanced_sample(classes(), max_total=35, max_per_class=20, generator=generator)
    assert kept.at.tolist() == list(range(35))
    assert kept.weights is None
    assert torch.equal(generator.get_state(), state)


def test_both_caps_hold() -> None:
    labels = classes()
    assert sizes(labels, balanced_sample(labels, max_per_class=5)) == {1: 3, 4: 5, 7: 5}
    assert sizes(labels, balanced_sample(labels, max_total=15)) == {1: 3, 4: 6, 7: 6}
    both = balanced_sample(labels, max_total=8, max_per_class=2)
    assert sizes(labels, both) == {1: 2, 4: 2, 7: 2}


def test_positions_are_distinct_and_ascending() -> None:
    chosen = balanced_sample(classes(), max_total=20).at
    assert len(chosen) == 20
    assert (chosen.diff() > 0).all()


def test_same_seed_same_choice() -> None:
    first, again, other = (
        balanced_sample(
            classes(), max_total=9, generator=torch.Generator().manual_seed(s)
        ).at.tolist()
        for s in (3, 3, 4)
    )
    assert first == again != other


def test_every_pixel_of_a_class_is_chosen_equally_often() -> None:
    labels, generator = classes(), torch.Generator().manual_seed(0)
    draws = torch.stack(
        [
            torch.zeros(35).index_fill(
                0, balanced_sample(labels, max_per_class=4, generator=generator).at, 1
            )
            for _ in range(3000)
        ]
    ).mean(0)
    assert (draws[labels == 1] == 1).all()
    torch.testing.assert_close(draws[labels == 4], torch.full((12,), 4 / 12), rtol=0, atol=0.04)
    torch.testing.assert_close(draws[labels == 7], torch.full((20,), 4 / 20), rtol=0, atol=0.04)


@pytest.mark.parametrize(
    "caps", [{"max_per_class": 4}, {"max_total": 9}, {"max_total": 2}, {"max_total": 1}], ids=str
)
def test_weighted_sum_over_the_sample_is_unbiased(caps: dict[str, int]) -> None:
    labels, generator = classes(), torch.Generator().manual_seed(0)
    values = torch.arange(35, dtype=torch.float64) + 10 * labels
    sums = []
    for _ in range(3000):
        sample = balanced_sample(labels, **caps, generator=generator)
        assert sample.weights is not None
        sums.append((values[sample.at] * sample.weights).sum())
    estimates = torch.stack(sums)
    assert abs(estimates.mean() - values.sum()) < 4 * estimates.std() / 3000**0.5


def test_weights_count_what_each_chosen_pixel_stands_for() -> None:
    labels = classes()
    sample = balanced_sample(labels, max_total=15)
    assert sample.weights is not None
    weights = {int(label): sample.weights[labels[sample.at] == label] for label in (1, 4, 7)}
    assert weights[1].tolist() == [1.0] * 3
    assert weights[4].tolist() == [2.0] * 6
    torch.testing.assert_close(weights[7], torch.full((6,), 20 / 6, dtype=torch.float64))


def test_a_total_below_the_number_of_classes_ignores_them() -> None:
    """Shared by class, the scarcest would never be chosen."""
    labels, generator = classes(), torch.Generator().manual_seed(0)
    samples = [balanced_sample(labels, max_total=2, generator=generator) for _ in range(200)]
    assert {int(label) for sample in samples for label in labels[sample.at]} == {1, 4, 7}
    assert all(
        sample.weights is not None and sample.weights.tolist() == [17.5] * 2 for sample in samples
    )


def test_empty_input_gives_empty_output() -> None:
    assert balanced_sample(torch.zeros(0, dtype=torch.long), max_total=5).at.tolist() == []


@pytest.mark.gpu
def test_a_cpu_generator_chooses_the_same_on_cuda() -> None:
    chosen = [
        balanced_sample(
            classes().to(device), max_total=9, generator=torch.Generator().manual_seed(3)
        ).at.tolist()
        for device in ("cpu", "cuda")
    ]
    assert chosen[0] == chosen[1]
