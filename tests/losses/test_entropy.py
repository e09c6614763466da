"""PLOP's confidence against loops over pixels and bins."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ucd_ray.errors import ConfigError
from ucd_ray.losses import histogram_medians, normalised_entropy, pseudo_labels

NUM_OLD, NUM_NOW = 4, 6
FORMS = ["standard", "authors"]


def old_logits(dtype: torch.dtype = torch.float64) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return (2 * torch.randn(2, NUM_OLD, 3, 5, generator=rng, dtype=torch.float64)).to(dtype)


def entropy_of_pixel(logits: list[float], form: str) -> float:
    powers = [math.exp(z) for z in logits]
    probs = [power / sum(powers) for power in powers]
    total = -sum(p * math.log(p) for p in probs)
    if form == "standard":
        return total / math.log(len(probs))
    return total / len(probs) / math.log(len(probs)) / math.log(NUM_NOW)


@pytest.mark.parametrize("form", FORMS)
def test_entropy_equals_a_loop_over_pixels(form: str) -> None:
    logits = old_logits()
    actual = normalised_entropy(logits, form=form, num_channels_now=NUM_NOW)
    expected = [
        entropy_of_pixel(logits[b, :, y, x].tolist(), form)
        for b in range(2)
        for y in range(3)
        for x in range(5)
    ]
    torch.testing.assert_close(
        actual.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12
    )


def test_entropy_goes_from_zero_to_one() -> None:
    flat, sharp = torch.zeros(1, 5, 1, 1), torch.tensor([200.0, 0, 0, 0, 0]).reshape(1, 5, 1, 1)
    assert normalised_entropy(flat).item() == 1
    assert normalised_entropy(sharp).item() == 0


def test_published_entropy_of_16_channels_stays_below_0_023() -> None:
    largest = normalised_entropy(torch.zeros(1, 16, 1, 1), form="authors", num_channels_now=17)
    assert largest.item() == pytest.approx(1 / (16 * math.log(17)))
    assert 0.022 < largest.item() < 0.023


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_entropy_is_defined_for_one_channel_and_large_logits(
    form: str, channels: int, dtype: torch.dtype
) -> None:
    logits = (200 * torch.randn(2, channels, 3, 3).sign()).to(dtype)
    entropy = normalised_entropy(logits, form=form, num_channels_now=channels)
    assert entropy.dtype == torch.float32
    assert ((entropy >= 0) & (entropy <= 1)).all()
    assert channels > 1 or (entropy == 0).all()


def test_entropy_has_no_gradient() -> None:
    assert not normalised_entropy(old_logits().requires_grad_()).requires_grad


@pytest.mark.parametrize("now", [None, NUM_OLD - 1])
def test_published_entropy_asks_for_the_channels_now(now: int | None) -> None:
    with pytest.raises(ConfigError, match=rf"num_channels_now \({now}\) must be at least the 4"):
        normalised_entropy(old_logits(), form="authors", num_channels_now=now)


def median_by_counts(counts: list[int]) -> float:
    """Walk through the bins until half of the values are behind."""
    if sum(counts) == 0:
        return 0.0
    left = sum(counts) / 2
    for position, count in enumerate(counts):
        if left <= count:
            return (position + left / count) / len(counts)
        left -= count
    raise AssertionError


def median_as_published(counts: list[int]) -> float:
    """The running sum grows by the bin's number instead of its count."""
    bins, half, running = len(counts), sum(counts) / 2, 0.0
    if half == 0:
        return 0.0
    for position in range(bins):
        border = position / bins
        if running <= half <= running + counts[position]:
            break
        running += border * bins
    inside = (half - running) / counts[position] if counts[position] else 0.0
    return border + inside / bins


HISTOGRAMS = {
    "empty": [0, 0, 0, 0, 0, 0],
    "one value": [0, 0, 1, 0, 0, 0],
    "last bin": [0, 0, 0, 0, 0, 7],
    "first bin": [9, 0, 0, 0, 0, 0],
    "half on a border": [2, 2, 2, 2, 0, 0],
    "gap": [3, 0, 0, 0, 0, 3],
    "skewed": [1, 5, 2, 0, 4, 9],
    "many": [1000, 3, 2, 1, 500, 0],
    "ends without a bin": [0, 0, 0, 0, 0, 400],
    "ends in an empty bin": [0, 900, 1, 0, 1000, 0],
}


@pytest.mark.parametrize(
    ("form", "slow"), [("standard", median_by_counts), ("authors", median_as_published)]
)
def test_medians_equal_a_loop_over_bins(form: str, slow: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    random = torch.randint(0, 40, (200, 6), generator=rng)
    random[::2] //= 4
    histogram = torch.cat([torch.tensor(list(HISTOGRAMS.values())), random])
    expected = torch.tensor([slow(row) for row in histogram.tolist()], dtype=torch.float64)
    torch.testing.assert_close(
        histogram_medians(histogram, form=form), expected, rtol=1e-12, atol=1e-12
    )


def test_published_medians_of_100_bins_equal_a_loop_over_bins() -> None:
    rng = torch.Generator().manual_seed(1)
    histogram = torch.randint(0, 3000, (20, 100), generator=rng)
    histogram[:, 5:] //= 100
    expected = torch.tensor(
        [median_as_published(row) for row in histogram.tolist()], dtype=torch.float64
    )
    actual = histogram_medians(histogram, form="authors")
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_medians_are_those_of_the_values_up_to_a_bin() -> None:
    rng = torch.Generator().manual_seed(0)
    values = torch.rand(3, 4001, generator=rng) ** torch.tensor([[1.0], [2.0], [5.0]])
    histogram = torch.stack([torch.histc(row, 100, 0, 1) for row in values])
    exact = values.median(dim=1).values.double()
    assert (histogram_medians(histogram) - exact).abs().max() < 0.01


def loop_pseudo_labels(
    labels: Tensor, logits: Tensor, uncertainty: Tensor, thresholds: Tensor, form: str
) -> tuple[list[list[list[int]]], list[float]]:
    targets, factors = labels.tolist(), []
    for b in range(len(labels)):
        background = trusted = 0
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                if targets[b][y][x] != 0:
                    continue
                background += 1
                column = logits[b, :, y, x].tolist()
                guess = column.index(max(column))
                certain = uncertainty[b, y, x].item() < thresholds[guess].item()
                trusted += certain
                targets[b][y][x] = guess if certain else 255
        if form == "authors":
            factors.append(trusted / (background + 1e-6))
        else:
            factors.append(trusted / background if background else 1.0)
    return targets, factors


def labels_with_background() -> Tensor:
    rng = torch.Generator().manual_seed(1)
    labels = torch.randint(0, NUM_NOW, (2, 3, 5), generator=rng)
    labels[torch.rand(2, 3, 5, generator=rng) < 0.6] = 0
    labels[0, 0, 0] = 255
    return labels


@pytest.mark.parametrize("emptied", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_pseudo_labels_and_factors_equal_loops_over_pixels(form: str, emptied: bool) -> None:
    """With an image of which no pixel is background, too."""
    labels, logits = labels_with_background(), old_logits()
    if emptied:
        labels[1] = 5
    uncertainty = normalised_entropy(logits)
    thresholds = torch.tensor([0.6, 0.5, 0.4, 0.7], dtype=torch.float64)
    targets, factor = pseudo_labels(
        labels, logits, uncertainty, thresholds, num_old=NUM_OLD, form=form
    )
    expected, factors = loop_pseudo_labels(labels, logits, uncertainty, thresholds, form)
    assert targets.tolist() == expected
    torch.testing.assert_close(factor, torch.tensor(factors), rtol=1e-6, atol=1e-6)
    assert set(targets[labels == 0].tolist()) >= {255, 0}
    assert torch.equal(targets[labels != 0], labels[labels != 0])
    assert 0 < factor[0].item() < 1
    if emptied:
        assert factor[1].item() == (form == "standard")


def test_without_thresholds_every_background_pixel_takes_the_argmax() -> None:
    labels, logits = labels_with_background(), old_logits()
    targets, factor = pseudo_labels(labels, logits, num_old=NUM_OLD)
    background = labels == 0
    assert torch.equal(targets[background], logits.argmax(1)[background])
    assert torch.equal(targets[~background], labels[~background])
    assert factor.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fill", [0, 255, NUM_OLD])
@pytest.mark.parametrize("form", FORMS)
def test_pseudo_labels_of_inference_mode_are_defined_everywhere(
    form: str, fill: int, dtype: torch.dtype
) -> None:
    """All background, all ignored, all new; logits from a frozen model, of any size."""
    with torch.inference_mode():
        logits = old_logits(dtype).sign() * 200
        uncertainty = normalised_entropy(logits, form=form, num_channels_now=NUM_NOW)
    labels = torch.full((2, 3, 5), fill)
    targets, factor = pseudo_labels(
        labels, logits, uncertainty, torch.zeros(NUM_OLD), num_old=NUM_OLD, form=form
    )
    assert (targets == (255 if fill == 0 else fill)).all()
    assert (factor == (0 if fill == 0 or form == "authors" else 1)).all()


def test_wrong_arguments_are_refused() -> None:
    labels, logits = labels_with_background(), old_logits()
    uncertainty, thresholds = normalised_entropy(logits), torch.ones(NUM_OLD)
    with pytest.raises(ConfigError, match="unknown form 'author'; did you mean 'authors'"):
        pseudo_labels(labels, logits, num_old=NUM_OLD, form="author")
    with pytest.raises(ConfigError, match="unknown form 'both'"):
        normalised_entropy(logits, form="both")
    with pytest.raises(ConfigError, match="unknown form 'both'"):
        histogram_medians(torch.ones(2, 3), form="both")
    with pytest.raises(ConfigError, match=r"histogram has the shape \[3\]; .* \[C, bins\]"):
        histogram_medians(torch.ones(3))
    with pytest.raises(ConfigError, match=r"logits has the shape \[4, 3, 5\]"):
        normalised_entropy(logits[0])
    with pytest.raises(ConfigError, match=r"labels has the shape \[3, 5\]; it must be \[B, H, W\]"):
        pseudo_labels(labels[0], logits, num_old=NUM_OLD)
    with pytest.raises(ConfigError, match=r"old_logits .* it must be \[2, 3, 3, 5\]"):
        pseudo_labels(labels, logits, num_old=3)
    with pytest.raises(ConfigError, match=r"thresholds has the shape \[3\]; it must be \[4\]"):
        pseudo_labels(labels, logits, uncertainty, thresholds[:3], num_old=NUM_OLD)
    with pytest.raises(ConfigError, match="thresholds need an uncertainty"):
        pseudo_labels(labels, logits, None, thresholds, num_old=NUM_OLD)
    with pytest.raises(ConfigError, match=r"uncertainty .* it must be \[2, 3, 5\]"):
        pseudo_labels(labels, logits, uncertainty[:1], thresholds, num_old=NUM_OLD)
