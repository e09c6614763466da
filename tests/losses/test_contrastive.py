"""UCD against loops over pixels, its properties, and the defects of the published code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ucd_ray.errors import ConfigError
from ucd_ray.losses import (
    balanced_sample,
    contrastive,
    contrastive_distillation,
    contrastive_kernel,
)

NUM_OLD = 3
CAPS = {"max_anchors": 20, "max_old": 4, "max_per_class": 5}


class Batch:
    """Random inputs: 2 images of 5 x 4 positions, 4 features, classes 0..4, some ignored."""

    def __init__(
        self,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        size: tuple[int, int, int] = (2, 5, 4),
        width: int = 4,
    ) -> None:
        rng = torch.Generator().manual_seed(seed)
        batch, height, columns = size
        maps = (batch, width, height, columns)
        self.new = torch.randn(maps, generator=rng, dtype=torch.float64).to(dtype)
        self.new.requires_grad_()
        self.old = torch.randn(maps, generator=rng, dtype=torch.float64).to(dtype)
        logits = torch.randn((batch, NUM_OLD, height, columns), generator=rng, dtype=torch.float64)
        self.logits = (2 * logits).to(dtype)
        self.labels = torch.randint(0, 5, size, generator=rng)
        self.labels[torch.rand(size, generator=rng) < 0.4] = 0
        self.labels[0, 0, 0] = 255

    def loss(self, **knobs: Any) -> Tensor:
        return contrastive_distillation(
            self.new, self.old, self.logits, self.labels, **{"num_old": NUM_OLD, **knobs}
        )


def pixels(maps: Tensor) -> Iterator[Tensor]:
    for image in maps:
        for row in range(image.shape[1]):
            for column in range(image.shape[2]):
                yield image[:, row, column]


def unit(vector: Tensor) -> Tensor:
    return vector / vector.pow(2).sum().sqrt()


Weights = dict[int, float]  # of flat positions


def by_loops(
    new: Tensor,
    old: Tensor,
    logits: Tensor,
    labels: Tensor,
    *,
    num_old: int = NUM_OLD,
    temperature: float = 0.07,
    uncertainty: bool = True,
    form: str = "standard",
    drawn: tuple[Weights, Weights, Weights] | None = None,
) -> Tensor:
    """The loss as methods are described: one pixel, one pair at a time, labels at feature size.

    The authors' form follows the published procedure: negatives summed, then positives shifted.
    drawn: weights of the chosen anchors, new columns and old columns.
    """
    anchors, keys = [], []
    truths = labels.flatten().tolist()
    for at, (truth, f_new, f_old, z) in enumerate(
        zip(truths, pixels(new), pixels(old), pixels(logits), strict=True)
    ):
        label = truth if truth > 0 else int(z.argmax())
        if label in (0, 255):
            continue
        p = torch.exp(z) / torch.exp(z).sum()
        anchors.append((unit(f_new), label, p, at))
        keys.append((unit(f_new).detach(), label, p, at, at))
        if truth == 0:
            keys.append((unit(f_old), label, p, -1, at))
    present = [key[1] for key in keys]
    num_anchors = sum(present.count(anchor[1]) > 1 for anchor in anchors)
    total = new.sum() * 0.0
    for a, label, p, at in anchors:
        if drawn and at not in drawn[0]:
            continue
        negatives, terms, weights = torch.zeros((), dtype=new.dtype), [], []
        shift = 1 / temperature if form == "authors" else 0.0
        chosen = []
        for k, key_label, q, owner, key_at in keys:
            column_weight = 1.0
            if drawn:
                column_weight = drawn[2 if owner < 0 else 1].get(key_at, 0.0)
            if column_weight:
                chosen.append((a @ k / temperature, key_label, q, owner, column_weight))
        for s, key_label, _, _, column_weight in chosen:
            if key_label != label:
                negatives = negatives + column_weight * torch.exp(s)
        for s, key_label, q, owner, column_weight in chosen:
            if key_label != label or owner == at:
                continue
            certain = not uncertainty or (label >= num_old and key_label >= num_old)
            weight = 1.0 if certain else (p * q).sum()
            logit = s - shift
            terms.append(-column_weight * weight * (logit - (logit.exp() + negatives).log()))
            weights.append(column_weight)
        if terms:
            row = torch.stack(terms).sum() / sum(weights)
            total = total + row * (drawn[0][at] if drawn else 1.0)
    return total / max(1, num_anchors)


def by_published_procedure(
    new: Tensor, old: Tensor, logits: Tensor, labels: Tensor, *, temperature: float
) -> Tensor:
    """The published code's order of operations, with its masks and its subtraction of the maximum.

    Labels are at feature size already, so its resizing takes no part.
    """

    def rows(maps: Tensor) -> Tensor:
        return maps.movedim(1, -1).flatten(0, 2)

    truth = labels.flatten()
    classes = torch.where(truth == 0, logits.argmax(1).flatten(), truth)
    foreground = (classes > 0) & (truth != 255)
    pseudo = foreground & (truth == 0)
    anchor = torch.nn.functional.normalize(rows(new)[foreground], dim=1)
    contrast = torch.nn.functional.normalize(rows(old)[pseudo], dim=1)
    contrast = torch.cat([anchor, contrast]).detach()
    row, column = classes[foreground], torch.cat([classes[foreground], classes[pseudo]])
    probs = rows(logits).softmax(1)
    joint = probs[foreground] @ torch.cat([probs[foreground], probs[pseudo]]).T
    joint[(row >= NUM_OLD)[:, None] & (column >= NUM_OLD)] = 1.0
    positive = (row[:, None] == column).to(new.dtype)
    negative = 1 - positive
    positive[:, : len(row)].fill_diagonal_(0.0)

    similarity = anchor @ contrast.T / temperature
    negatives = (similarity.exp() * negative).sum(1, keepdim=True)
    similarity = similarity - similarity.max(1, keepdim=True).values.detach()
    log_prob = similarity - (similarity.exp() + negatives).log()
    count = positive.sum(1)
    kept = count > 0
    return -((log_prob * joint * positive).sum(1)[kept] / count[kept]).mean()


@pytest.mark.parametrize("form", ["standard", "authors"])
@pytest.mark.parametrize("uncertainty", [True, False])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_gradient_equal_loops_over_pixels(
    seed: int, temperature: float, uncertainty: bool, form: str
) -> None:
    batch = Batch(seed)
    knobs: Any = {"temperature": temperature, "uncertainty": uncertainty, "form": form}
    loss = batch.loss(**knobs)
    expected = by_loops(batch.new, batch.old, batch.logits, batch.labels, **knobs)
    (gradient,) = torch.autograd.grad(loss, batch.new)
    (expected_gradient,) = torch.autograd.grad(expected, batch.new)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)
    assert gradient.abs().max() > 1e-3


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
def test_gradcheck(temperature: float, form: str) -> None:
    batch = Batch(2, size=(2, 3, 3))

    def loss(features: Tensor) -> Tensor:
        batch.new = features
        return batch.loss(temperature=temperature, form=form)

    assert torch.autograd.gradcheck(loss, batch.new)


@pytest.mark.parametrize("tile", [(1, 1), (3, 7), (5, 20), (8, 1000), (1000, 40)])
@pytest.mark.parametrize("knobs", [{}, {"form": "authors"}, {"temperature": 0.01}, CAPS])
def test_tiles_of_any_size_give_the_same_answer(
    knobs: dict[str, Any], tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch(4)
    whole = batch.loss(**knobs, generator=torch.Generator().manual_seed(0))
    (whole_gradient,) = torch.autograd.grad(whole, batch.new)
    monkeypatch.setitem(contrastive_kernel.TILES, "cpu", tile)
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
    monkeypatch.setitem(contrastive_kernel.TILES, "cpu", (50, 4000))
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


def test_value_does_not_depend_on_the_order_of_pixels() -> None:
    batch = Batch()
    expected = batch.loss().item()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    for name in ("new", "old", "logits", "labels"):
        maps = getattr(batch, name).detach()
        setattr(batch, name, maps.flatten(-2)[..., order].unflatten(-1, (5, 4)).flip(0))
    assert batch.loss().item() == pytest.approx(expected, rel=1e-12)


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


def test_old_outputs_from_inference_mode_are_accepted() -> None:
    batch = Batch()
    with torch.inference_mode():
        batch.old, batch.logits = batch.old * 1, batch.logits * 1
    batch.loss().backward()
    assert batch.new.grad is not None


def test_nan_features_give_a_nan_loss() -> None:
    batch = Batch()
    batch.labels.fill_(3)
    batch.labels[1] = 4
    with torch.no_grad():
        batch.new[0, 0, 1, 1] = torch.nan
    assert batch.loss().isnan()


# Sampling.


def test_generous_caps_change_nothing() -> None:
    batch = Batch()
    expected = batch.loss().item()
    assert batch.loss(max_anchors=40, max_old=40, max_per_class=40).item() == expected


def test_capped_loss_equals_the_loss_of_the_chosen_pixels() -> None:
    """All labels are new classes, so the old model takes no part and unchosen pixels can be 255."""
    batch = Batch()
    batch.labels = torch.where(batch.labels % 2 == 0, 3, 4)
    loss = batch.loss(max_per_class=4, generator=torch.Generator().manual_seed(7))
    (gradient,) = torch.autograd.grad(loss, batch.new)
    chosen = gradient.abs().sum(1) > 0
    assert [int((batch.labels[chosen] == label).sum()) for label in (3, 4)] == [4, 4]
    batch.labels = batch.labels.masked_fill(~chosen, 255)
    assert batch.loss().item() == pytest.approx(loss.item(), rel=1e-12)


def test_max_anchors_caps_all_anchors_and_spares_scarce_classes() -> None:
    batch = Batch()
    batch.labels.fill_(4)
    batch.labels[0, 0, :2] = 3
    (gradient,) = torch.autograd.grad(batch.loss(max_anchors=9), batch.new)
    chosen = gradient.abs().sum(1) > 0
    assert [int((batch.labels[chosen] == label).sum()) for label in (3, 4)] == [2, 7]


def test_max_old_of_zero_removes_the_old_vectors() -> None:
    batch = Batch()
    without = batch.loss(max_old=0).item()
    assert without != batch.loss().item()
    batch.old = torch.randn_like(batch.old)
    assert batch.loss(max_old=0).item() == without


def test_same_seed_same_sample() -> None:
    batch = Batch()
    first, again, other = (
        batch.loss(max_anchors=8, max_old=3, generator=torch.Generator().manual_seed(seed)).item()
        for seed in (1, 1, 2)
    )
    assert first == again != other


# Errors.


def test_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown form 'author'; did you mean 'authors'"):
        Batch().loss(form="author")


def test_wrong_num_old_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"old_logits \(2, 3, 5, 4\) must be .* \(2, 4, 5, 4\)"):
        Batch().loss(num_old=4)


def test_old_features_of_another_size_are_refused() -> None:
    batch = Batch()
    batch.old = batch.old[:, :, :4]
    with pytest.raises(ConfigError, match="must have the shape of new_features"):
        batch.loss()


def test_labels_of_another_batch_are_refused() -> None:
    batch = Batch()
    batch.labels = batch.labels[:1]
    with pytest.raises(ConfigError, match=r"labels \(1, 5, 4\) must be \[B, H, W\] with B = 2"):
        batch.loss()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", ["standard", "authors"])
def test_cuda_agrees_with_cpu(form: str) -> None:
    batch = Batch(size=(2, 16, 16))
    (gradient,) = torch.autograd.grad(batch.loss(form=form), batch.new)
    expected = batch.loss(form=form).item()
    for name in ("new", "old", "logits", "labels"):
        setattr(batch, name, getattr(batch, name).detach().cuda())
    batch.new.requires_grad_()
    loss = batch.loss(form=form)
    (cuda_gradient,) = torch.autograd.grad(loss, batch.new)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(cuda_gradient.cpu(), gradient, rtol=1e-9, atol=1e-12)
