"""The one-pass losses against loops over pixels and against the two separate functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ucd_ray.errors import ConfigError
from ucd_ray.losses import (
    unbiased,
    unbiased_cross_entropy,
    unbiased_distillation,
    unbiased_losses,
    unbiased_sums,
)
from ucd_ray.losses.unbiased_knobs import Knobs

NUM_OLD, NUM_NEW = 3, 2
SIZE = (2, 3, 4)  # images, height, width
WEIGHTS = (2.0, -3.0)  # different from each other, and one negative
KNOBS: list[dict[str, Any]] = [
    {},
    {"alpha": 2.5},
    {"temperature": 3.0},
    {"alpha": 0.5, "temperature": 0.4, "reduction": "valid"},
    {"reduction": "valid"},
]


def sample(
    dtype: torch.dtype = torch.float64,
    num_old: int = NUM_OLD,
    num_new: int = NUM_NEW,
    size: tuple[int, int, int] = SIZE,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """New logits, old logits and labels of all classes, a tenth of them ignored."""
    rng = torch.Generator().manual_seed(seed)
    images, height, width = size
    new, old = (
        3 * torch.randn(images, width_, height, width, generator=rng, dtype=torch.float64)
        for width_ in (num_old + num_new, num_old)
    )
    labels = torch.randint(0, num_old + num_new, size, generator=rng)
    labels = labels.masked_fill(torch.rand(size, generator=rng) < 0.1, 255)
    return new.to(dtype).requires_grad_(), old.to(dtype), labels


def separate(
    new: Tensor, old: Tensor, labels: Tensor, *, ignore_index: int = 255, **knobs: Any
) -> tuple[Tensor, Tensor]:
    reduction = knobs.pop("reduction", "mean")
    cross_entropy = unbiased_cross_entropy(
        new, labels, num_old=old.shape[1], ignore_index=ignore_index, reduction=reduction
    )
    return cross_entropy, unbiased_distillation(new, old, **knobs)


def by_loops(
    new: Tensor,
    old: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Both losses, one pixel and one class at a time."""
    num_old, images, height, width = old.shape[1], *labels.shape
    cross_entropy = distillation = new.sum() * 0.0
    for b in range(images):
        for y in range(height):
            for x in range(width):
                z, label = new[b, :, y, x], int(labels[b, y, x])
                q = z.exp() / z.exp().sum()
                if label != 255:
                    truth = q[:num_old].sum() if label < num_old else q[label]
                    cross_entropy = cross_entropy - truth.log()
                q = (z / temperature).exp() / (z / temperature).exp().sum()
                p = (alpha * old[b, :, y, x] / temperature).exp()
                for c in range(num_old):
                    guess = q[c] + q[num_old:].sum() if c == 0 else q[c]
                    distillation = distillation - p[c] / p.sum() * guess.log()
    counted = labels.numel() if reduction == "mean" else max(1, int((labels != 255).sum()))
    return cross_entropy / counted, distillation * temperature**2 / num_old / labels.numel()


def gradient_of(
    losses: tuple[Tensor, Tensor], new: Tensor, weights: tuple[float, float] = WEIGHTS
) -> Tensor:
    total = weights[0] * losses[0] + weights[1] * losses[1]
    (gradient,) = torch.autograd.grad(total, new, retain_graph=True)
    return gradient


def assert_same(
    actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], new: Tensor, rtol: float
) -> None:
    """Equal values, and equal gradients of three weightings."""
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol)
    for weights in ((1.0, 0.0), (0.0, 1.0), WEIGHTS):
        gradient, wanted = (gradient_of(losses, new, weights) for losses in (actual, expected))
        torch.testing.assert_close(gradient, wanted, rtol=rtol, atol=rtol)


@pytest.fixture(params=[unbiased.CPU_PIECE, (1, 7)], ids=["one piece", "many pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unbiased, "CPU_PIECE", request.param)


@pytest.fixture(params=[unbiased.BY_SUMS, ()], ids=["sums", "logarithms"], autouse=True)
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By sums where they are in range, and always by logarithms."""
    monkeypatch.setattr(unbiased, "BY_SUMS", request.param)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_values_and_gradients_equal_loops_over_pixels(knobs: dict[str, Any]) -> None:
    inputs = sample()
    assert_same(unbiased_losses(*inputs, **knobs), by_loops(*inputs, **knobs), inputs[0], 1e-10)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize(("num_old", "num_new"), [(3, 2), (16, 5), (1, 4), (4, 0), (1, 1), (1, 0)])
def test_values_and_gradients_equal_the_separate_functions(
    num_old: int, num_new: int, knobs: dict[str, Any]
) -> None:
    inputs = sample(num_old=num_old, num_new=num_new)
    assert_same(unbiased_losses(*inputs, **knobs), separate(*inputs, **knobs), inputs[0], 1e-10)


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_float32_agrees_with_float64(knobs: dict[str, Any]) -> None:
    new, old, labels = sample(torch.float32, 16, 5, (2, 32, 32))
    losses = unbiased_losses(new, old, labels, **knobs)
    double = new.detach().double().requires_grad_()
    exact = separate(double, old.double(), labels, **knobs)
    for loss, expected in zip(losses, exact, strict=True):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradient, wanted = gradient_of(losses, new), gradient_of(exact, double)
    assert (gradient - wanted).abs().max() < 5e-6 * wanted.abs().max()


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_gradcheck(knobs: dict[str, Any]) -> None:
    new, old, labels = sample()
    assert torch.autograd.gradcheck(lambda z: unbiased_losses(z, old, labels, **knobs), new)


def test_backward_twice_gives_the_same_gradient() -> None:
    new, old, labels = sample()
    losses = unbiased_losses(new, old, labels)
    assert torch.equal(gradient_of(losses, new), gradient_of(losses, new))


@pytest.mark.parametrize("reduction", ["mean", "valid"])
@pytest.mark.parametrize("label", [0, NUM_OLD - 1, NUM_OLD, 255])
def test_labels_that_are_all_alike(label: int, reduction: str) -> None:
    new, old, labels = sample()
    labels = torch.full_like(labels, label)
    losses = unbiased_losses(new, old, labels, reduction=reduction)
    assert_same(losses, separate(new, old, labels, reduction=reduction), new, 1e-10)
    if label == 255:
        assert losses[0].item() == 0
        assert (gradient_of(losses, new, (1.0, 0.0)) == 0).all()


def test_ignored_pixels_count_for_the_distillation_only() -> None:
    new, old, labels = sample()
    labels[:] = 255
    labels[0, 1] = NUM_OLD
    cross_entropy, distillation = unbiased_losses(new, old, labels)
    ignored = labels == 255
    (gradient,) = torch.autograd.grad(cross_entropy, new, retain_graph=True)
    assert (gradient.movedim(1, -1)[ignored] == 0).all()
    assert (gradient.movedim(1, -1)[~ignored] != 0).all()
    (gradient,) = torch.autograd.grad(distillation, new)
    assert (gradient != 0).all()


@pytest.mark.parametrize("ignore_index", [-1, 1, NUM_OLD])
def test_any_label_may_be_the_ignored_one(ignore_index: int) -> None:
    new, old, labels = sample()
    labels = labels.where(labels != 255, ignore_index)
    losses = unbiased_losses(new, old, labels, ignore_index=ignore_index)
    assert_same(losses, separate(new, old, labels, ignore_index=ignore_index), new, 1e-10)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_logits_give_finite_values_and_gradients(
    dtype: torch.dtype, temperature: float
) -> None:
    new, old, labels = sample(dtype)
    new = (new.detach().sign() * 200).requires_grad_()
    losses = unbiased_losses(new, old.sign() * 200, labels, temperature=temperature)
    assert all(loss.isfinite() for loss in losses)
    gradient = gradient_of(losses, new)
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


def test_logits_of_magnitude_200_are_exact() -> None:
    """Whole groups of classes underflow: a sum of exponentials with one maximum would be zero."""
    new, old, labels = sample()
    new = (new.detach().sign() * 200).requires_grad_()
    old = old.sign() * 200
    losses = unbiased_losses(new, old, labels)
    assert_same(losses, separate(new, old, labels), new, 1e-10)
    assert losses[0] > 10


@pytest.mark.parametrize("offset", [-300.0, -41.0, 41.0, 300.0])
def test_an_offset_of_all_logits_of_a_pixel_changes_nothing(offset: float) -> None:
    """Whether the exponentials are taken as they are or of differences to the maximum."""
    new, old, labels = sample(torch.float32)
    offsets = offset * (torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.5)
    moved = (new.detach() + offsets.unsqueeze(1)).requires_grad_()
    losses = unbiased_losses(moved, old + offsets.unsqueeze(1), labels)
    expected = unbiased_losses(new, old, labels)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)
    wanted = gradient_of(expected, new)
    torch.testing.assert_close(gradient_of(losses, moved), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype: torch.dtype) -> None:
    new, old, labels = sample(dtype)
    with torch.autocast("cpu", dtype):
        losses = unbiased_losses(new, old, labels, temperature=2.0)
        gradient = gradient_of(losses, new)
    wide = new.detach().float().requires_grad_()
    exact = separate(wide, old.float(), labels, temperature=2.0)
    for loss, expected in zip(losses, exact, strict=True):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert gradient.dtype == dtype
    wanted = gradient_of(exact, wide)
    torch.testing.assert_close(gradient.float(), wanted.to(dtype).float(), rtol=1e-2, atol=1e-6)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_channels_last_logits_get_a_channels_last_gradient(dtype: torch.dtype) -> None:
    new, old, labels = sample(dtype)
    turned = new.detach().to(memory_format=torch.channels_last).requires_grad_()
    losses = unbiased_losses(turned, old.to(memory_format=torch.channels_last), labels)
    gradient = gradient_of(losses, turned)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(gradient, gradient_of(unbiased_losses(new, old, labels), new))


def test_logits_cut_out_of_larger_ones() -> None:
    new, old, labels = sample(size=(3, 5, 6))
    cut = (slice(1, None), slice(None), slice(1, 4), slice(2, 6))
    part = new[cut]
    labels = labels[1:, 1:4, 2:6]
    losses = unbiased_losses(part, old[cut], labels)
    assert_same(losses, separate(part, old[cut], labels), new, 1e-10)


def test_tensors_made_in_inference_mode_are_accepted() -> None:
    new, old, labels = sample()
    with torch.inference_mode():
        frozen, relabelled = old * 1, labels * 1
    losses = unbiased_losses(new, frozen, relabelled)
    assert_same(losses, separate(new, old, labels), new, 1e-10)


def test_old_logits_changed_before_backward_are_noticed() -> None:
    new, old, labels = sample()
    losses = unbiased_losses(new, old, labels)
    old.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient_of(losses, new)


def test_the_old_model_gets_no_gradient() -> None:
    new, old, labels = sample()
    cross_entropy, distillation = unbiased_losses(new, old.requires_grad_(), labels)
    torch.autograd.backward(cross_entropy + distillation)
    assert new.grad is not None
    assert old.grad is None


def test_nothing_is_kept_when_no_gradient_is_wanted() -> None:
    new, old, labels = sample()
    for losses in (
        unbiased_losses(new.detach(), old, labels),
        torch.inference_mode()(unbiased_losses)(new, old, labels),
    ):
        assert not any(loss.requires_grad for loss in losses)
        assert losses[0].item() == pytest.approx(separate(new, old, labels)[0].item())


sizes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
seeds = st.integers(0, 2**16)


@given(sizes, st.integers(1, 4), st.integers(0, 3), seeds)
def test_order_of_pixels_and_images_does_not_matter(
    size: tuple[int, int, int], num_old: int, num_new: int, seed: int
) -> None:
    new, old, labels = sample(torch.float64, num_old, num_new, size, seed)
    rng = torch.Generator().manual_seed(seed)
    images, height, width = size
    pixels = torch.randperm(height * width, generator=rng)
    order = torch.randperm(images, generator=rng)

    def moved(maps: Tensor) -> Tensor:
        return maps[order].flatten(-2)[..., pixels].reshape(maps.shape)

    losses = unbiased_losses(new, old, labels)
    assert_same(unbiased_losses(moved(new), moved(old), moved(labels)), losses, new, 1e-10)


@given(sizes, st.integers(1, 4), st.integers(1, 4), seeds)
def test_names_of_new_classes_do_not_matter(
    size: tuple[int, int, int], num_old: int, num_new: int, seed: int
) -> None:
    new, old, labels = sample(torch.float64, num_old, num_new, size, seed)
    shuffled = num_old + torch.randperm(num_new, generator=torch.Generator().manual_seed(seed))
    names = torch.cat([torch.arange(num_old), shuffled])  # new name of each class
    renamed = torch.where(labels == 255, 255, names[labels.where(labels != 255, 0)])
    losses = unbiased_losses(new, old, labels)
    assert_same(unbiased_losses(new[:, names.argsort()], old, renamed), losses, new, 1e-10)


@given(sizes, st.integers(1, 4), st.integers(0, 4), seeds)
def test_which_old_class_a_label_names_does_not_matter(
    size: tuple[int, int, int], num_old: int, num_new: int, seed: int
) -> None:
    new, old, labels = sample(torch.float64, num_old, num_new, size, seed)
    losses = unbiased_losses(new, old, labels)
    background = labels.where(labels >= num_old, 0)
    assert_same(unbiased_losses(new, old, background), losses, new, 1e-10)


def test_wrong_arguments_are_refused() -> None:
    new, old, labels = sample()
    for message, arguments, knobs in [
        ("num_old \\(5\\) must lie between 1 and the 3 channels", (old, new, labels), {}),
        ("old_logits has the shape", (new, old[:1], labels), {}),
        ("old_logits has the shape", (new, old[..., :2], labels), {}),
        ("new_logits has the shape", (new[0], old, labels), {}),
        ("labels has the shape", (new, old, labels[:1]), {}),
        ("labels has the shape", (new, old, labels[:, None]), {}),
        ("hold no pixel", (new[:0], old[:0], labels[:0]), {}),
        ("labels must be int64", (new, old, labels.int()), {}),
        ("labels holds 5; allowed are 0 to 4", (new, old, labels * 0 + 5), {}),
        ("labels holds -1; allowed are 0 to 4", (new, old, labels * 0 - 1), {}),
        ("labels holds 255", (new, old, labels * 0 + 255), {"ignore_index": 254}),
        ("temperature \\(0\\) must be", (new, old, labels), {"temperature": 0}),
        ("temperature \\(-1\\) must be", (new, old, labels), {"temperature": -1}),
        ("alpha \\(0\\) must be", (new, old, labels), {"alpha": 0}),
        (
            "unknown reduction 'sum'; choose from: mean, valid",
            (new, old, labels),
            {"reduction": "sum"},
        ),
    ]:
        with pytest.raises(ConfigError, match=message):
            unbiased_losses(*arguments, **knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sums_are_refused_where_one_leaves_the_range(temperature: float) -> None:
    new, old, labels = sample(torch.float32)
    knobs = Knobs(NUM_OLD, 255, 1.0, temperature)

    def found(new: Tensor, old: Tensor) -> Tensor | None:
        pieces = new.detach().flatten(2), old.flatten(2), labels.flatten(1)
        return unbiased_sums.values(*pieces, torch.empty(2, 5, 12), knobs)

    assert found(new, old) is not None
    for change in (100.0, -100.0, torch.inf, torch.nan):
        one_pixel = torch.zeros(SIZE).index_put_((torch.tensor(1),) * 3, torch.tensor(change))
        assert found(new + one_pixel.unsqueeze(1), old) is None
        assert found(new, old + one_pixel.unsqueeze(1)) is None
