"""Distillation losses against loops over pixels, and their properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ucd_ray.errors import ConfigError
from ucd_ray.losses import (
    binary_distillation,
    feature_distillation,
    output_distillation,
    similarity_distillation,
    unbiased_binary_distillation,
    unbiased_distillation,
)

NUM_OLD, NUM_NEW = 3, 2
SOFTMAX = [output_distillation, unbiased_distillation]
SIGMOID = [binary_distillation, unbiased_binary_distillation]
LOSSES = [*SOFTMAX, *SIGMOID]
Loss = Callable[..., Tensor]


def sample(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    new = 2 * torch.randn(2, NUM_OLD + NUM_NEW, 3, 4, generator=rng, dtype=torch.float64)
    old = 2 * torch.randn(2, NUM_OLD, 3, 4, generator=rng, dtype=torch.float64)
    return new.to(dtype).requires_grad_(), old.to(dtype)


def output_pixel(student: Tensor, teacher: Tensor) -> Tensor:
    q, p = student[:NUM_OLD].exp(), teacher.exp()
    return sum(-p[c] / p.sum() * torch.log(q[c] / q.sum()) for c in range(NUM_OLD))  # type: ignore[return-value]


def unbiased_pixel(student: Tensor, teacher: Tensor) -> Tensor:
    q, p = student.exp() / student.exp().sum(), teacher.exp()
    q = torch.stack([q[0] + q[NUM_OLD:].sum(), *q[1:NUM_OLD]])
    return sum(-p[c] / p.sum() * torch.log(q[c]) for c in range(NUM_OLD))  # type: ignore[return-value]


def binary(odds: Tensor, target: Tensor) -> Tensor:
    return -target * odds.log() - (1 - target) * (1 - odds).log()


def binary_pixel(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = torch.sigmoid(student), torch.sigmoid(teacher)
    return torch.stack([binary(s[c], t[c]) for c in range(NUM_OLD)]).sum()


def unbiased_binary_pixel(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = torch.sigmoid(student), torch.sigmoid(teacher)
    none = 1 - s[0]
    for c in range(NUM_OLD, NUM_OLD + NUM_NEW):
        none = none * (1 - s[c])
    others = [binary(s[c], t[c]) for c in range(1, NUM_OLD)]
    return torch.stack([binary(1 - none, t[0]), *others]).sum()


PIXELS: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    output_distillation: output_pixel,
    unbiased_distillation: unbiased_pixel,
    binary_distillation: binary_pixel,
    unbiased_binary_distillation: unbiased_binary_pixel,
}


def by_loops(
    loss: Loss, new: Tensor, old: Tensor, alpha: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """The map [B, H, W], one pixel and one class at a time."""
    rows = []
    for b in range(new.shape[0]):
        for y in range(new.shape[2]):
            for x in range(new.shape[3]):
                student, teacher = (
                    new[b, :, y, x] / temperature,
                    alpha * old[b, :, y, x] / temperature,
                )
                rows.append(PIXELS[loss](student, teacher) * temperature**2 / NUM_OLD)
    return torch.stack(rows).reshape(new.shape[0], *new.shape[2:])


@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 1.0), (2.5, 1.0), (1.0, 3.0), (0.5, 0.4)])
@pytest.mark.parametrize("loss", LOSSES)
def test_map_and_gradient_equal_loops_over_pixels(
    loss: Loss, alpha: float, temperature: float
) -> None:
    new, old = sample()
    knobs: Any = {"alpha": alpha, "temperature": temperature}
    actual, expected = loss(new, old, reduction="none", **knobs), by_loops(loss, new, old, **knobs)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    weights = torch.rand(actual.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((actual * weights).sum(), new)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), new)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_mean_and_sum_reduce_the_map(loss: Loss) -> None:
    new, old = sample()
    loss_map = loss(new, old, reduction="none")
    assert loss(new, old).item() == pytest.approx(loss_map.sum().item() / 24)
    assert loss(new, old, reduction="sum").item() == pytest.approx(loss_map.sum().item())


@pytest.mark.parametrize("loss", LOSSES)
def test_float32_agrees_with_float64(loss: Loss) -> None:
    new, old = sample(torch.float32)
    value = loss(new, old, temperature=2.0)
    (gradient,) = torch.autograd.grad(value, new)
    double = new.detach().double().requires_grad_()
    exact = loss(double, old.double(), temperature=2.0)
    (exact_gradient,) = torch.autograd.grad(exact, double)
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    assert (gradient - exact_gradient).abs().max() < 5e-6 * exact_gradient.abs().max()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss: Loss) -> None:
    new, old = sample()
    assert torch.autograd.gradcheck(lambda z: loss(z, old, alpha=1.5, temperature=2.0), new)


def test_gradient_is_zero_when_models_agree_over_the_old_channels() -> None:
    _, old = sample()
    new = torch.cat([old, torch.randn(2, NUM_NEW, 3, 4, dtype=torch.float64)], 1).requires_grad_()
    (gradient,) = torch.autograd.grad(output_distillation(new, old), new)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


def test_unbiased_kd_is_minimal_when_models_agree_and_new_classes_are_empty() -> None:
    _, old = sample()
    empty = torch.full((2, NUM_NEW, 3, 4), -1e4, dtype=torch.float64)
    new = torch.cat([old, empty], 1).requires_grad_()
    loss = unbiased_distillation(new, old)
    (gradient,) = torch.autograd.grad(loss, new)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)
    p = old.softmax(1)
    assert loss.item() == pytest.approx((-(p * p.log()).sum(1).mean() / NUM_OLD).item())


def test_unbiased_kd_does_not_care_how_background_splits_into_new_classes() -> None:
    """Background initialisation: each of background and N new classes gets 1/(N+1) of the mass."""
    _, old = sample()
    split = old[:, :1] - torch.tensor(NUM_NEW + 1.0).log()
    new = torch.cat([split, old[:, 1:], split, split], 1)
    alone = output_distillation(old, old)
    assert unbiased_distillation(new, old).item() == pytest.approx(alone.item())


@pytest.mark.parametrize(("plain", "unbiased"), [SOFTMAX, SIGMOID])
def test_plain_and_unbiased_are_the_same_without_new_classes(plain: Loss, unbiased: Loss) -> None:
    new, old = sample()
    new = new[:, :NUM_OLD]
    torch.testing.assert_close(unbiased(new, old), plain(new, old), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", SOFTMAX)
def test_infinite_temperature_matches_centred_logits_by_squares(loss: Loss) -> None:
    """T^2 (cross-entropy - entropy) tends to half the variance of the logit difference."""
    new, old = sample()
    new = new[:, :NUM_OLD]
    temperature = 1e4
    excess = loss(new, old, temperature=temperature) - loss(old, old, temperature=temperature)
    difference = new - old
    expected = difference.var(dim=1, correction=0).mean() / 2 / NUM_OLD
    assert excess.item() == pytest.approx(expected.item(), rel=1e-3)


def test_alpha_sharpens_the_teacher_to_its_argmax() -> None:
    new, old = sample()
    log_q = new[:, :NUM_OLD].log_softmax(1)
    hard = -log_q.gather(1, old.argmax(1, keepdim=True)).mean() / NUM_OLD
    assert output_distillation(new, old, alpha=1e4).item() == pytest.approx(hard.item())


@pytest.mark.parametrize("loss", [output_distillation, binary_distillation])
def test_plain_distillation_gives_new_channels_no_gradient(loss: Loss) -> None:
    new, old = sample()
    (gradient,) = torch.autograd.grad(loss(new, old), new)
    assert (gradient[:, NUM_OLD:] == 0).all()
    assert (gradient[:, :NUM_OLD] != 0).all()


@pytest.mark.parametrize("loss", [*LOSSES, feature_distillation])
def test_the_old_model_gets_no_gradient(loss: Loss) -> None:
    new, old = sample()
    new = new.detach()[:, :NUM_OLD].requires_grad_()
    loss(new, old.requires_grad_()).backward()
    assert new.grad is not None
    assert old.grad is None


@pytest.mark.parametrize("loss", [*LOSSES, feature_distillation])
def test_old_outputs_from_inference_mode_are_accepted(loss: Loss) -> None:
    new, old = sample()
    new = new.detach()[:, :NUM_OLD].requires_grad_()
    with torch.inference_mode():
        frozen = old * 1
    loss(new, frozen).backward()
    assert new.grad is not None


@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_large_logits_give_finite_value_and_gradient(
    loss: Loss, dtype: torch.dtype, temperature: float
) -> None:
    new, old = sample(dtype)
    new = (new.detach().sign() * 200).requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        value = loss(new, old.sign() * 200, temperature=temperature)
    assert value.dtype == torch.float32
    assert value.isfinite()
    (gradient,) = torch.autograd.grad(value, new)
    assert gradient.isfinite().all()


def test_feature_distillation_is_the_mean_squared_difference() -> None:
    new, old = sample()
    new = new.detach()[:, :NUM_OLD].requires_grad_()
    loss = feature_distillation(new, old)
    squares = [(a - b) ** 2 for a, b in zip(new.flatten(), old.flatten(), strict=True)]
    assert loss.item() == pytest.approx(sum(x.item() for x in squares) / len(squares), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, new)
    torch.testing.assert_close(gradient, 2 * (new - old).detach() / len(squares))


def test_feature_distillation_of_half_precision_does_not_overflow() -> None:
    new = torch.full((1, 2, 2, 2), 300.0, dtype=torch.float16, requires_grad=True)
    assert feature_distillation(new, torch.zeros_like(new)).item() == 90000.0


@pytest.mark.parametrize("loss", LOSSES)
def test_unknown_reduction_is_refused(loss: Loss) -> None:
    new, old = sample()
    with pytest.raises(
        ConfigError, match="unknown reduction 'valid'; choose from: mean, none, sum"
    ):
        loss(new, old, reduction="valid")


@pytest.mark.parametrize("loss", LOSSES)
def test_more_old_than_new_channels_are_refused(loss: Loss) -> None:
    new, old = sample()
    with pytest.raises(ConfigError, match=r"num_old \(5\) must lie between 1 and the 3 channels"):
        loss(old, new)


def test_the_published_class_sum_is_num_old_times_the_mean() -> None:
    new, old = sample()
    entropies = torch.nn.functional.binary_cross_entropy_with_logits(
        new[:, :NUM_OLD], old.sigmoid(), reduction="none"
    )
    published = entropies.sum(dim=1).mean()
    assert NUM_OLD * binary_distillation(new, old).item() == pytest.approx(published.item(), 1e-12)


def test_unbiased_sigmoids_do_not_care_which_new_class_explains_the_old_background() -> None:
    new, old = sample()
    swapped = new[:, [3, 1, 2, 0, 4]]
    assert unbiased_binary_distillation(swapped, old).item() == pytest.approx(
        unbiased_binary_distillation(new, old).item(), rel=1e-12
    )


@pytest.mark.parametrize("magnitude", [-200.0, 200.0])
def test_unbiased_sigmoids_do_not_underflow(magnitude: float) -> None:
    """All of background and new classes off, or on: the exact cost of the opposite target."""
    new = torch.full((1, 3, 1, 1), magnitude, requires_grad=True)
    loss = unbiased_binary_distillation(new, torch.full((1, 1, 1, 1), -magnitude))
    expected = 200 - torch.tensor(3.0).log() if magnitude < 0 else torch.tensor(600.0)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, new)
    share = -1 / 3 if magnitude < 0 else 1.0
    torch.testing.assert_close(gradient, torch.full_like(gradient, share), rtol=1e-5, atol=0)


def test_similarity_distillation_and_its_gradient_equal_loops_over_image_pairs() -> None:
    rng = torch.Generator().manual_seed(1)
    new = torch.randn(3, 4, 2, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    old = torch.randn(3, 4, 2, 2, generator=rng, dtype=torch.float64)

    def rows(features: Tensor) -> list[list[Tensor]]:
        products = [[(a * b).sum() for b in features] for a in features]
        return [[p / torch.stack(row).norm() for p in row] for row in products]

    actual, expected = similarity_distillation(new, old), new.new_zeros(())
    for new_row, old_row in zip(rows(new), rows(old), strict=True):
        for mine, theirs in zip(new_row, old_row, strict=True):
            expected = expected + (mine - theirs) ** 2 / 9
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(actual, new)
    (expected_gradient,) = torch.autograd.grad(expected, new)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


def test_similarity_of_one_image_is_zero_and_connected() -> None:
    new = torch.randn(1, 4, 2, 2, requires_grad=True)
    value = similarity_distillation(new, torch.randn(1, 4, 2, 2))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(0, abs=1e-10)
    assert new.grad is not None
    assert new.grad.isfinite().all()


def test_similarity_of_large_half_precision_features_is_finite() -> None:
    new = torch.full((2, 4, 8, 8), 200.0, dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        value = similarity_distillation(new, torch.ones_like(new))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite()
    assert new.grad is not None
    assert new.grad.isfinite().all()


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("knob", ["alpha", "temperature"])
@pytest.mark.parametrize("loss", LOSSES)
def test_alpha_and_temperature_not_above_zero_are_refused(
    loss: Loss, knob: str, value: float
) -> None:
    with pytest.raises(ConfigError, match=rf"{knob} \({value}\) must be a finite number above 0"):
        loss(*sample(), **{knob: value})


@pytest.mark.parametrize("loss", LOSSES)
def test_logits_of_other_shapes_are_refused(loss: Loss) -> None:
    new, old = sample()
    with pytest.raises(
        ConfigError, match=r"new_logits has the shape \[5, 3, 4\]; it must be \[B, C, H, W\]"
    ):
        loss(new[0], old[0])
    with pytest.raises(
        ConfigError,
        match=r"old_logits has the shape \[2, 3, 3, 2\]; it must be \[2, num_old, 3, 4\]",
    ):
        loss(new, old[..., :2])


@pytest.mark.parametrize("loss", [feature_distillation, similarity_distillation])
def test_features_of_unequal_shapes_are_refused(loss: Loss) -> None:
    new, old = sample()
    with pytest.raises(
        ConfigError, match=r"old_features has the shape \[2, 3, 3, 4\]; it must be \[2, 5, 3, 4\]"
    ):
        loss(new, old)
    with pytest.raises(ConfigError, match=r"new_features has the shape \[2\]; it must be \[B, D"):
        loss(new[:, 0, 0, 0], old)
