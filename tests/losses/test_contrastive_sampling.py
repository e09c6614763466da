"""UCD with caps on what is compared: exact for what is drawn, unbiased or consistent over draws."""

from __future__ import annotations

import pytest
import torch

from tests.losses.contrastive_batch import (
    CAPS,
    Batch,
    check_against_loops,
)


def test_generous_caps_change_nothing() -> None:
    batch = Batch()
    expected = batch.loss().item()
    assert batch.loss(max_anchors=40, max_old=40, max_per_class=40).item() == expected


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("form", ["standard", "authors"])
@pytest.mark.parametrize("temperature", [0.01, 0.07])
@pytest.mark.parametrize(
    "caps",
    [
        {"max_anchors": 9},
        {"max_anchors": 2},
        {"max_per_class": 3},
        {"max_per_class": 1},
        {"max_old": 5},
        {"max_old": 1},
        {"max_old": 0},
        CAPS,
    ],
    ids=str,
)
def test_sampled_loss_equals_loops_over_what_was_drawn(
    caps: dict[str, int], temperature: float, form: str
) -> None:
    check_against_loops(Batch(5), {"temperature": temperature, "form": form, **caps})


def test_nothing_is_drawn_unless_a_cap_is_exceeded() -> None:
    batch = Batch()
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    batch.loss(max_anchors=40, max_old=40, max_per_class=40, generator=generator)
    assert torch.equal(generator.get_state(), state)
    batch.loss(max_anchors=5, generator=generator)
    assert not torch.equal(generator.get_state(), state)


@pytest.mark.usefixtures("arithmetic")
def test_max_anchors_caps_all_anchors_and_spares_scarce_classes() -> None:
    batch = Batch()
    batch.labels.fill_(4)
    batch.labels[0, 0, :2] = 3
    (gradient,) = torch.autograd.grad(batch.loss(max_anchors=9), batch.new)
    chosen = gradient.abs().sum(1) > 0
    assert [int((batch.labels[chosen] == label).sum()) for label in (3, 4)] == [2, 7]


@pytest.mark.parametrize("cap", [2, 8, 25])
def test_sampling_anchors_is_unbiased_in_value_and_gradient(cap: int) -> None:
    batch = Batch(1)
    exact = batch.loss()
    (exact_gradient,) = torch.autograd.grad(exact, batch.new)
    generator = torch.Generator().manual_seed(0)
    values, gradients = [], []
    for _ in range(800):
        loss = batch.loss(max_anchors=cap, generator=generator)
        gradients.append(torch.autograd.grad(loss, batch.new)[0])
        values.append(loss.detach())
    for samples, expected in (
        (torch.stack(values), exact.detach()),
        (torch.stack(gradients), exact_gradient),
    ):
        deviation, error = samples.std(0), samples.mean(0) - expected
        assert (deviation > 1e-3).any()
        assert (error.abs() <= 4.5 * deviation / 800**0.5 + 1e-12).all()


@pytest.mark.parametrize("name", ["max_per_class", "max_old"])
def test_sampling_columns_is_consistent(name: str) -> None:
    """The mean error and the spread shrink towards 0 as the cap approaches the number of pixels."""
    batch = Batch(2, size=(2, 12, 12))
    exact = batch.loss().item()
    generator = torch.Generator().manual_seed(0)
    errors, spreads = [], []
    for cap in (4, 16, 48):
        values = [batch.loss(**{name: cap}, generator=generator).item() for _ in range(150)]
        errors.append(abs(sum(values) / 150 - exact) / exact)
        spreads.append(float(torch.tensor(values).std()) / exact)
    assert errors[0] > errors[1] > errors[2]
    assert spreads[0] > spreads[1] > spreads[2]
    assert errors[2] < 0.01


def test_max_old_of_zero_removes_the_old_vectors() -> None:
    batch = Batch()
    without = batch.loss(max_old=0).item()
    assert without != batch.loss().item()
    batch.old = torch.randn_like(batch.old)
    assert batch.loss(max_old=0).item() == without


@pytest.mark.parametrize(
    "caps", [{"max_anchors": 8}, {"max_old": 3}, {"max_per_class": 2}, CAPS], ids=str
)
def test_same_seed_same_sample(caps: dict[str, int]) -> None:
    batch = Batch()
    first, again, other = (
        batch.loss(**caps, generator=torch.Generator().manual_seed(seed)).item()
        for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize("caps", [{"max_anchors": 1}, {"max_per_class": 1}, {"max_old": 1}])
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_tiny_samples_are_finite(caps: dict[str, int], temperature: float) -> None:
    batch = Batch(0, torch.float32)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        loss = batch.loss(**caps, temperature=temperature, generator=generator)
        (gradient,) = torch.autograd.grad(loss, batch.new)
        assert loss.isfinite()
        assert gradient.isfinite().all()
