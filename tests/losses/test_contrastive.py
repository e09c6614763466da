"""UCD against loops over pixels, its properties, and the defects of the published code."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.losses.contrastive_batch import (
    CAPS,
    Batch,
    by_loops,
    by_published_procedure,
    check_against_loops,
)
from ucd_ray.losses import (
    contrastive,
    contrastive_kernel,
    contrastive_plan,
    contrastive_tiles,
)

pytestmark = pytest.mark.usefixtures("arithmetic")


@pytest.mark.parametrize("form", ["standard", "authors"])
@pytest.mark.parametrize("uncertainty", [True, False])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_equal_loops_over_pixels(
    seed: int, temperature: float, uncertainty: bool, form: str
) -> None:
    knobs = {"temperature": temperature, "uncertainty": uncertainty, "form": form}
    check_against_loops(Batch(seed), knobs)


@pytest.mark.parametrize("temperature", [0.05, 0.07, 1.0])
def test_authors_form_equals_the_published_procedure(temperature: float) -> None:
    batch = Batch(6)
    loss = batch.loss(form="authors", temperature=temperature)
    expected = by_published_procedure(
        batch.new, batch.old, batch.logits, batch.labels, temperature=temperature
    )
    (gradient,) = torch.autograd.grad(loss, batch.new)
    (expected_gradient,) = torch.autograd.grad(expected, batch.new)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["standard", "authors"])
@pytest.mark.parametrize(
    ("temperature", "value_error", "gradient_error"),
    [(0.07, 1e-6, 5e-6), (0.1, 1e-6, 5e-6), (1.0, 1e-6, 5e-6), (0.01, 1e-5, 5e-5)],
)
@pytest.mark.parametrize("width", [4, 64])
def test_float32_agrees_with_float64(
    width: int, temperature: float, value_error: float, gradient_error: float, form: str
) -> None:
    for seed in range(3):
        single = Batch(seed, torch.float32, size=(2, 16, 16), width=width)
        double = Batch(seed, size=(2, 16, 16), width=width)
        double.new = single.new.detach().double().requires_grad_()
        double.old, double.logits = single.old.double(), single.logits.double()
        loss = single.loss(form=form, temperature=temperature)
        exact = double.loss(form=form, temperature=temperature)
        (gradient,) = torch.autograd.grad(loss, single.new)
        (exact_gradient,) = torch.autograd.grad(exact, double.new)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact.item(), rel=value_error)
        error = (gradient - exact_gradient).abs().max() / exact_gradient.abs().max()
        assert error < gradient_error


@pytest.mark.parametrize("form", ["standard", "authors"])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_gradcheck_with_a_fixed_contrast_set(
    temperature: float, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite differences would move the anchors' detached copies too, so these are held."""
    batch = Batch(2, size=(2, 3, 3))
    gather = contrastive_kernel.gather
    kept: list[Any] = []

    def with_first_columns(*inputs: Any) -> Any:
        anchors, lengths, columns = gather(*inputs)
        kept.append(columns)
        return anchors, lengths, kept[0]

    def loss(features: Tensor) -> Tensor:
        batch.new = features
        return batch.loss(temperature=temperature, form=form)

    monkeypatch.setattr(contrastive_kernel, "gather", with_first_columns)
    assert torch.autograd.gradcheck(loss, batch.new)


@pytest.mark.parametrize("tile", [(1, 1), (3, 7), (5, 20), (8, 1000), (1000, 40)])
@pytest.mark.parametrize("knobs", [{}, {"form": "authors"}, {"temperature": 0.01}, CAPS])
def test_tiles_of_any_size_give_the_same_answer(
    knobs: dict[str, Any], tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch(4)
    monkeypatch.setitem(contrastive_plan.FEW, "cpu", 2**21)
    whole = batch.loss(**knobs, generator=torch.Generator().manual_seed(0))
    (whole_gradient,) = torch.autograd.grad(whole, batch.new)
    monkeypatch.setitem(contrastive_plan.FEW, "cpu", 0)
    monkeypatch.setitem(contrastive_tiles.TILES, "cpu", tile)
    loss = batch.loss(**knobs, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss, batch.new)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-12)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.01}, CAPS])
def test_many_small_classes_share_tiles_with_large_ones(knobs: dict[str, Any]) -> None:
    """Rows of one pixel, of a few and of most of the batch, compared with loops."""
    batch = Batch(7, size=(1, 9, 9))
    sizes = torch.tensor([1, 1, 2, 3, 1, 4, 2, 30, 5, 32])
    batch.labels = (10 + torch.arange(10)).repeat_interleave(sizes).view(1, 9, 9)
    batch.labels[0, 4] = 0
    check_against_loops(batch, knobs)


class LargestOutput(TorchDispatchMode):
    """Notes the number of elements of the largest tensor any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_larger_than_a_tile_is_made_or_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(5, torch.float32, size=(2, 20, 20))
    inputs = batch.new.numel()
    limit = max(4000, inputs)
    monkeypatch.setitem(contrastive_plan.FEW, "cpu", 4000)
    monkeypatch.setitem(contrastive_tiles.TILES, "cpu", (50, 4000))
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with LargestOutput() as largest, torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        batch.loss().backward()
    num_foreground = int((batch.labels > 0).sum()) - 1
    # Contrast vectors are at most twice the inputs; the full matrix would be far larger.
    assert largest.elements <= 2 * limit < num_foreground**2 / 10
    assert max(saved) <= inputs


def test_gradient_reaches_only_the_new_features() -> None:
    batch = Batch()
    batch.old.requires_grad_()
    batch.logits.requires_grad_()
    batch.loss().backward()
    assert batch.new.grad is not None
    assert batch.old.grad is None
    assert batch.logits.grad is None


def test_gradient_is_zero_at_background_and_ignored_pixels() -> None:
    batch = Batch()
    (gradient,) = torch.autograd.grad(batch.loss(), batch.new)
    classes = torch.where(batch.labels == 0, batch.logits.argmax(1), batch.labels)
    silent = (classes == 0) | (classes == 255)
    assert silent.any()
    moved = gradient.abs().sum(1) > 0
    assert not moved[silent].any()
    assert moved[~silent].all()


def test_value_does_not_depend_on_the_length_of_features() -> None:
    batch = Batch()
    expected = batch.loss().item()
    with torch.no_grad():
        batch.new *= torch.rand(2, 1, 5, 4, dtype=torch.float64) + 0.1
    assert batch.loss().item() == pytest.approx(expected, rel=1e-12)


def test_infinite_temperature_counts_the_negatives() -> None:
    batch = Batch()
    loss = batch.loss(temperature=1e9, uncertainty=False)
    classes = torch.where(batch.labels == 0, batch.logits.argmax(1), batch.labels).flatten()
    anchors = classes[(classes > 0) & (classes != 255)]
    part = (batch.labels.flatten() == 0) & (classes > 0)
    keys = torch.cat([anchors, classes[part]])
    terms = [
        math.log(1 + int((keys != label).sum()))
        for label in anchors
        if int((keys == label).sum()) > 1
    ]
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-8)


def test_authors_form_without_negatives_is_zero_too() -> None:
    batch = Batch()
    batch.labels.fill_(4)
    assert batch.loss(form="authors").item() == 0.0
    assert batch.loss(form="standard").item() == 0.0


def test_uncertainty_leaves_pairs_of_new_classes_alone() -> None:
    batch = Batch()
    batch.labels = torch.where(batch.labels % 2 == 0, 3, 4)
    assert batch.loss(uncertainty=True).item() == batch.loss(uncertainty=False).item()


def test_uncertainty_lowers_the_weight_of_true_labels_of_old_classes() -> None:
    batch = Batch()
    batch.labels = torch.where(batch.labels % 2 == 0, 1, 2)
    assert batch.loss(uncertainty=True).item() < 0.9 * batch.loss(uncertainty=False).item()


# The defects of the published code, each with what must happen instead.


def test_batch_without_new_class_pixels_works() -> None:
    batch = Batch()
    batch.labels.zero_()
    loss = batch.loss()
    expected = by_loops(batch.new, batch.old, batch.logits, batch.labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    assert loss.item() > 0.1


@pytest.mark.parametrize("ids", [(21, 22), (120, 149), (128, 254)])
def test_class_ids_above_20_are_kept(ids: tuple[int, int]) -> None:
    batch = Batch()
    expected = batch.loss().item()
    labels = batch.labels.clone()
    labels[batch.labels == 3], labels[batch.labels == 4] = ids
    batch.labels = labels
    assert batch.loss().item() == pytest.approx(expected, rel=1e-12)


def test_label_255_takes_no_part_and_gets_no_pseudo_label() -> None:
    batch = Batch()
    batch.labels[:, 2:] = 255
    batch.logits[:, 1] += 100.0  # the old model is sure of class 1 everywhere
    loss = batch.loss().item()
    for name in ("new", "old", "logits"):
        setattr(batch, name, getattr(batch, name)[:, :, :2].detach())
    batch.labels = batch.labels[:, :2]
    assert loss == pytest.approx(batch.loss().item(), rel=1e-12)


def test_single_image_works() -> None:
    batch = Batch(size=(1, 5, 4))
    expected = by_loops(batch.new, batch.old, batch.logits, batch.labels)
    assert batch.loss().item() == pytest.approx(expected.item(), rel=1e-10)


def test_shrinking_labels_invents_no_classes_at_borders() -> None:
    labels = torch.zeros(1, 64, 64, dtype=torch.long)
    labels[:, :, 24:] = 16  # the border runs through the middle of the second column
    shrunk = contrastive._shrink(labels, torch.Size((4, 4)))
    assert shrunk.unique().tolist() == [0, 16]
    assert shrunk[0].tolist() == [[0, 16, 16, 16]] * 4


def test_labels_of_image_size_equal_their_pixels_at_the_centre() -> None:
    batch = Batch()
    expected = batch.loss().item()
    batch.labels = batch.labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    assert batch.loss().item() == pytest.approx(expected, rel=1e-12)


def test_uint8_labels_are_accepted() -> None:
    batch = Batch()
    expected = batch.loss().item()
    batch.labels = batch.labels.to(torch.uint8)
    assert batch.loss().item() == expected


# Defined everywhere.


def only_background(batch: Batch) -> None:
    batch.labels.zero_()
    batch.logits[:, 0] += 100.0


def only_ignored(batch: Batch) -> None:
    batch.labels.fill_(255)


def one_new_class(batch: Batch) -> None:
    batch.labels.fill_(3)


def no_old_class(batch: Batch) -> None:
    batch.labels = 3 + batch.labels % 2


def no_positive_pair(batch: Batch) -> None:
    batch.labels.fill_(255)
    batch.labels[0, 0, 0], batch.labels[1, 0, 0] = 3, 4


def one_pixel(batch: Batch) -> None:
    batch.labels.fill_(255)
    batch.labels[0, 0, 0] = 3


def large_logits(batch: Batch) -> None:
    batch.logits *= 200.0 / batch.logits.abs().max()


def zero_features(batch: Batch) -> None:
    with torch.no_grad():
        batch.new[:, :, 1:3] = 0.0


def huge_features(batch: Batch) -> None:
    with torch.no_grad():
        batch.new *= 1e4


CORNERS = [
    only_background,
    only_ignored,
    one_new_class,
    no_old_class,
    no_positive_pair,
    one_pixel,
    large_logits,
    zero_features,
    huge_features,
]
ZERO = {only_background, only_ignored, one_new_class, no_positive_pair, one_pixel}


@pytest.mark.parametrize("form", ["standard", "authors"])
@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("corner", CORNERS, ids=lambda corner: corner.__name__)
def test_value_and_gradient_are_finite(
    corner: Any, dtype: torch.dtype, temperature: float, form: str
) -> None:
    batch = Batch(0, dtype)
    batch.labels[0, 0, 0] = 3
    corner(batch)
    autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with autocast:
        loss = batch.loss(temperature=temperature, form=form)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert (loss.item() == 0.0) == (corner in ZERO)
    loss.backward()
    assert batch.new.grad is not None
    assert batch.new.grad.isfinite().all()
    assert batch.new.grad.any() == (corner not in ZERO)


def test_autocast_does_not_lower_the_precision() -> None:
    batch = Batch(0, torch.float32)
    expected = batch.loss().item()
    with torch.autocast("cpu", torch.bfloat16):
        assert batch.loss().item() == expected


@pytest.mark.parametrize("caps", [{}, CAPS])
def test_old_outputs_from_inference_mode_are_accepted(caps: dict[str, int]) -> None:
    batch = Batch()
    expected = batch.loss(**caps, generator=torch.Generator().manual_seed(0)).item()
    with torch.inference_mode():
        batch.old, batch.logits = batch.old * 1, batch.logits * 1
    loss = batch.loss(**caps, generator=torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.item() == expected
    assert batch.new.grad is not None
    assert batch.new.grad.any()


def test_nan_features_give_a_nan_loss() -> None:
    batch = Batch()
    batch.labels.fill_(3)
    batch.labels[1] = 4
    with torch.no_grad():
        batch.new[0, 0, 1, 1] = torch.nan
    assert batch.loss().isnan()
