"""Cross-entropies against loops over pixels."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ucd_ray.errors import ConfigError
from ucd_ray.losses import (
    binary_cross_entropy,
    cross_entropy,
    unbiased_binary_cross_entropy,
    unbiased_cross_entropy,
)

NUM_OLD = 3
Loss = Callable[..., Tensor]


def plain(logits: Tensor, labels: Tensor, **knobs: Any) -> Tensor:
    return cross_entropy(logits, labels, **knobs)


def unbiased(logits: Tensor, labels: Tensor, **knobs: Any) -> Tensor:
    return unbiased_cross_entropy(logits, labels, num_old=NUM_OLD, **knobs)


def per_class(logits: Tensor, labels: Tensor, **knobs: Any) -> Tensor:
    return binary_cross_entropy(logits, labels, **knobs)


def unbiased_per_class(logits: Tensor, labels: Tensor, **knobs: Any) -> Tensor:
    return unbiased_binary_cross_entropy(logits, labels, num_old=NUM_OLD, **knobs)


def plain_pixel(z: Tensor, label: int) -> Tensor:
    return -torch.log(z.exp()[label] / z.exp().sum())


def unbiased_pixel(z: Tensor, label: int) -> Tensor:
    q = z.exp() / z.exp().sum()
    return -torch.log(q[:NUM_OLD].sum() if label < NUM_OLD else q[label])


def per_class_pixel(z: Tensor, label: int) -> Tensor:
    q = 1 / (1 + (-z).exp())
    terms = [-torch.log(q[c] if c == label else 1 - q[c]) for c in range(len(z))]
    return torch.stack(terms).sum()


def unbiased_per_class_pixel(z: Tensor, label: int) -> Tensor:
    if label >= NUM_OLD:
        return per_class_pixel(z, label)
    off = 1 - 1 / (1 + (-z).exp())
    no_old = off[0] * off[1] * off[2]
    return -torch.log(1 - no_old) - torch.log(off[3]) - torch.log(off[4])


PAIRS = [
    (plain, plain_pixel),
    (unbiased, unbiased_pixel),
    (per_class, per_class_pixel),
    (unbiased_per_class, unbiased_per_class_pixel),
]
LOSSES = [loss for loss, _ in PAIRS]
UNBIASED = [unbiased_cross_entropy, unbiased_binary_cross_entropy]


def sample(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, 3, 4, generator=rng, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 3, 4), generator=rng)
    labels[0, 1], labels[1, 0, 0] = 255, 255
    return logits.to(dtype).requires_grad_(), labels


def by_loops(pixel: Callable[[Tensor, int], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    """The map [B, H, W], one pixel at a time."""
    rows = []
    for b in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                label = int(labels[b, y, x])
                z = logits[b, :, y, x]
                rows.append(z.sum() * 0.0 if label == 255 else pixel(z, label))
    return torch.stack(rows).reshape(labels.shape)


@pytest.mark.parametrize(("loss", "pixel"), PAIRS)
def test_map_and_gradient_equal_loops_over_pixels(loss: Loss, pixel: Any) -> None:
    logits, labels = sample()
    actual, expected = loss(logits, labels, reduction="none"), by_loops(pixel, logits, labels)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    weights = torch.rand(labels.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((actual * weights).sum(), logits)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), logits)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_mean_counts_every_position_and_valid_only_the_labelled_ones(loss: Loss) -> None:
    logits, labels = sample()
    loss_map = loss(logits, labels, reduction="none")
    valid = labels != 255
    assert (loss_map[~valid] == 0).all()
    assert (loss_map[valid] > 0).all()
    total = loss_map.sum().item()
    assert loss(logits, labels).item() == pytest.approx(total / 24)
    assert loss(logits, labels, reduction="valid").item() == pytest.approx(total / 19)
    assert loss(logits, labels, reduction="sum").item() == pytest.approx(total)


@pytest.mark.parametrize("loss", LOSSES)
def test_float32_agrees_with_float64(loss: Loss) -> None:
    logits, labels = sample(torch.float32)
    (gradient,) = torch.autograd.grad(loss(logits, labels), logits)
    double = logits.detach().double().requires_grad_()
    exact = loss(double, labels)
    (exact_gradient,) = torch.autograd.grad(exact, double)
    assert loss(logits, labels).item() == pytest.approx(exact.item(), rel=1e-6)
    assert (gradient - exact_gradient).abs().max() < 5e-6 * exact_gradient.abs().max()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss: Loss) -> None:
    logits, labels = sample()
    for reduction in ("none", "mean", "valid", "sum"):
        assert torch.autograd.gradcheck(
            lambda z, how=reduction: loss(z, labels, reduction=how), logits
        )


def test_per_class_loss_equals_torch_with_one_hot_labels() -> None:
    logits, labels = sample()
    one_hot = F.one_hot(labels.where(labels != 255, 0), 5).movedim(-1, 1).double()
    expected = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").sum(1)
    torch.testing.assert_close(
        binary_cross_entropy(logits, labels, reduction="none"), expected * (labels != 255)
    )


@pytest.mark.parametrize(
    ("loss", "plain_loss"),
    [
        (unbiased_cross_entropy, cross_entropy),
        (unbiased_binary_cross_entropy, binary_cross_entropy),
    ],
)
def test_unbiased_equals_plain_when_background_is_the_only_old_channel(
    loss: Loss, plain_loss: Loss
) -> None:
    logits, labels = sample()
    torch.testing.assert_close(
        loss(logits, labels, num_old=1), plain_loss(logits, labels), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("loss", [unbiased, unbiased_per_class])
def test_unbiased_treats_old_labels_as_background(loss: Loss) -> None:
    logits, labels = sample()
    as_background = torch.where(labels < NUM_OLD, 0, labels)
    assert loss(logits, labels).item() == loss(logits, as_background).item()


@pytest.mark.parametrize("loss", [unbiased, unbiased_per_class])
def test_unbiased_is_indifferent_to_which_old_class_explains_the_background(loss: Loss) -> None:
    logits = torch.tensor([5.0, -5.0, 0.0, 1.0, 2.0]).reshape(1, 5, 1, 1)
    labels = torch.zeros(1, 1, 1, dtype=torch.long)
    permuted = logits[:, [2, 0, 1, 3, 4]]
    assert loss(logits, labels).item() == pytest.approx(loss(permuted, labels).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("magnitude", [-200.0, -30.0, -1e-3, 30.0, 200.0])
def test_unbiased_sigmoids_neither_underflow_nor_overflow(
    magnitude: float, dtype: torch.dtype
) -> None:
    """Against 1 - (1 - s)^3 in numbers of 400 digits."""
    with localcontext(prec=400):
        odds = Decimal(magnitude).exp()
        none = 1 / (1 + odds) ** 3
        expected = float(-(1 - none).ln() + (1 + odds).ln())
        slope = float(-3 * odds / (1 + odds) * none / (1 - none))  # d/dz of the first summand
    logits = torch.full((1, 4, 1, 1), magnitude, dtype=dtype, requires_grad=True)
    loss = unbiased_binary_cross_entropy(logits, torch.zeros(1, 1, 1).long(), num_old=3)
    (gradient,) = torch.autograd.grad(loss, logits)
    relative = 1e-5 if dtype == torch.float32 else 1e-10
    assert loss.item() == pytest.approx(expected, rel=relative, abs=1e-30)
    assert gradient[0, :3].sum().item() == pytest.approx(slope, rel=relative, abs=1e-30)


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_pixels_get_no_gradient(loss: Loss) -> None:
    logits, labels = sample()
    (gradient,) = torch.autograd.grad(loss(logits, labels), logits)
    moved = gradient.abs().sum(1) > 0
    assert torch.equal(moved, labels != 255)


@pytest.mark.parametrize("loss", LOSSES)
def test_another_ignore_index_is_honoured(loss: Loss) -> None:
    logits, labels = sample()
    other = labels.masked_fill(labels == 255, -1)
    assert loss(logits, other, ignore_index=-1).item() == loss(logits, labels).item()


@pytest.mark.parametrize("reduction", ["mean", "valid", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fill", [0, 4, 255])
@pytest.mark.parametrize("magnitude", [1.0, 200.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradient_are_finite(
    loss: Loss, magnitude: float, fill: int, dtype: torch.dtype, reduction: str
) -> None:
    """One class everywhere, or nothing but ignored pixels."""
    logits, labels = sample(dtype)
    logits = (logits.detach().sign() * magnitude).requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        value = loss(logits, labels.fill_(fill), reduction=reduction)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert (value.item() == 0.0) == (fill == 255)
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_unknown_reduction_is_refused(loss: Loss) -> None:
    logits, labels = sample()
    with pytest.raises(ConfigError, match="unknown reduction 'means'; did you mean 'mean'"):
        loss(logits, labels, reduction="means")


@pytest.mark.parametrize("num_old", [0, 6])
@pytest.mark.parametrize("loss", UNBIASED)
def test_impossible_num_old_is_refused(loss: Loss, num_old: int) -> None:
    logits, labels = sample()
    with pytest.raises(ConfigError, match=rf"num_old \({num_old}\) must lie between 1 and the 5"):
        loss(logits, labels, num_old=num_old)


@pytest.mark.parametrize("loss", LOSSES)
def test_arguments_of_other_shapes_are_refused(loss: Loss) -> None:
    logits, labels = sample()
    with pytest.raises(
        ConfigError, match=r"logits has the shape \[5, 3, 4\]; it must be \[B, C, H, W\]"
    ):
        loss(logits[0], labels)
    with pytest.raises(
        ConfigError, match=r"labels has the shape \[2, 1, 3, 4\]; it must be \[2, 3, 4\]"
    ):
        loss(logits, labels[:, None])


@pytest.mark.parametrize("label", [-1, 5, 254])
@pytest.mark.parametrize("loss", LOSSES)
def test_labels_outside_the_channels_are_refused(loss: Loss, label: int) -> None:
    logits, labels = sample()
    labels[1, 2, 3] = label
    with pytest.raises(ConfigError, match=f"labels holds {label}; allowed are 0 to 4, .* and 255"):
        loss(logits, labels)


@pytest.mark.parametrize("loss", LOSSES)
def test_labels_that_are_no_integers_are_refused(loss: Loss) -> None:
    logits, labels = sample()
    with pytest.raises(
        ConfigError, match=r"labels must be int64, not torch.uint8; labels.long\(\)"
    ):
        loss(logits, labels.byte())
