"""UCD against loops over pixels, its properties, and the defects of the published code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ucd_ray.errors import ConfigError
from ucd_ray.losses import (
    balanced_sample,
    contrastive,
    contrastive_distillation,
    contrastive_kernel,
    contrastive_plan,
    contrastive_tiles,
    contrastive_whole,
)

NUM_OLD = 3
CAPS = {"max_anchors": 20, "max_old": 4, "max_per_class": 5}


@pytest.fixture(scope="module", autouse=True, params=["tiles", "whole"])
def _arithmetic(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to compute the loss; batches as small as here would take one only."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "tiles":
            patch.setitem(contrastive_plan.FEW, "cpu", 0)
            patch.setitem(contrastive_plan.FEW, "cuda", 0)
        yield


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


def draws(batch: Batch, seed: int, **caps: int) -> tuple[Weights, Weights, Weights]:
    """What the loss draws with this seed: anchors, then new columns, then old ones."""
    rng = torch.Generator().manual_seed(seed)
    truth = batch.labels.flatten()
    classes = torch.where(truth == 0, batch.logits.argmax(1).flatten(), truth)
    foreground = ((classes > 0) & (truth != 255)).nonzero()[:, 0]
    pseudo = foreground[truth[foreground] == 0]
    if caps.get("max_old") == 0:
        pseudo = pseudo[:0]
    weights = []
    for at, cap in (
        (foreground, {"max_total": caps.get("max_anchors")}),
        (foreground, {"max_per_class": caps.get("max_per_class")}),
        (pseudo, {"max_total": caps.get("max_old")}),
    ):
        sample = balanced_sample(classes[at], **cap, generator=rng)
        values = [1.0] * len(at) if sample.weights is None else sample.weights.tolist()
        weights.append(dict(zip(at[sample.at].tolist(), values, strict=True)))
    return weights[0], weights[1], weights[2]


def check_against_loops(batch: Batch, knobs: dict[str, Any]) -> None:
    caps = {name: value for name, value in knobs.items() if name.startswith("max_")}
    rest = {name: value for name, value in knobs.items() if name not in caps}
    loss = batch.loss(**knobs, generator=torch.Generator().manual_seed(3))
    drawn = draws(batch, 3, **caps) if caps else None
    expected = by_loops(batch.new, batch.old, batch.logits, batch.labels, **rest, drawn=drawn)
    (gradient,) = torch.autograd.grad(loss, batch.new)
    (expected_gradient,) = torch.autograd.grad(expected, batch.new)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)
    assert gradient.abs().max() > 1e-3


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


# Sampling.


def test_generous_caps_change_nothing() -> None:
    batch = Batch()
    expected = batch.loss().item()
    assert batch.loss(max_anchors=40, max_old=40, max_per_class=40).item() == expected


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


# Properties.


def permuted(batch: Batch, order: Tensor) -> None:
    """Reorder the pixels of the whole batch."""
    for name in ("new", "old", "logits"):
        maps = getattr(batch, name).detach()
        moved = maps.movedim(1, -1).flatten(0, 2)[order]
        setattr(batch, name, moved.view(*maps.movedim(1, -1).shape).movedim(-1, 1))
    batch.labels = batch.labels.flatten()[order].view_as(batch.labels)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(40)), authors=st.booleans())
def test_order_of_pixels_and_images_does_not_matter(
    seed: int, order: list[int], authors: bool
) -> None:
    batch, form = Batch(seed), "authors" if authors else "standard"
    expected = batch.loss(form=form).item()
    permuted(batch, torch.tensor(order))
    assert batch.loss(form=form).item() == pytest.approx(expected, rel=1e-11)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_order_of_images_moves_the_gradient_along(seed: int) -> None:
    batch = Batch(seed, size=(3, 4, 3))
    expected = torch.autograd.grad(batch.loss(), batch.new)[0]
    for name in ("new", "old", "logits", "labels"):
        setattr(batch, name, getattr(batch, name).detach().roll(1, 0))
    batch.new.requires_grad_()
    gradient = torch.autograd.grad(batch.loss(), batch.new)[0]
    torch.testing.assert_close(gradient, expected.roll(1, 0), rtol=1e-10, atol=1e-12)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    ids=st.lists(st.integers(NUM_OLD, 254), min_size=2, max_size=2, unique=True),
)
def test_names_of_new_classes_do_not_matter(seed: int, ids: list[int]) -> None:
    batch = Batch(seed)
    expected = batch.loss().item()
    labels = batch.labels.clone()
    for old_id, new_id in zip((3, 4), ids, strict=True):
        labels[batch.labels == old_id] = new_id
    batch.labels = labels
    assert batch.loss().item() == pytest.approx(expected, rel=1e-11)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), border=st.integers(1, 3))
def test_an_ignored_border_does_not_matter(seed: int, border: int) -> None:
    batch = Batch(seed)
    expected = batch.loss().item()
    pad = torch.nn.functional.pad
    frame = (border,) * 4
    for name in ("new", "old", "logits"):
        setattr(batch, name, pad(getattr(batch, name).detach(), frame, value=1.0))
    batch.labels = pad(batch.labels, frame, value=255)
    assert batch.loss().item() == pytest.approx(expected, rel=1e-11)


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


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"temperature": 0.0}, r"temperature \(0.0\) must be above 0"),
        ({"temperature": -0.1}, r"temperature \(-0.1\) must be above 0"),
        ({"temperature": math.nan}, r"temperature \(nan\)"),
        ({"max_anchors": 0}, r"max_anchors \(0\) must be at least 1"),
        ({"max_per_class": -3}, r"max_per_class \(-3\) must be at least 1"),
        ({"max_old": -1}, r"max_old \(-1\) must be at least 0"),
        ({"num_old": 0}, "num_old"),
    ],
)
def test_values_out_of_range_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Batch().loss(**knobs)


@pytest.mark.parametrize("value", [-1, 256, 100_000])
def test_labels_out_of_range_are_refused(value: int) -> None:
    batch = Batch()
    batch.labels[1, 2, 2] = value
    with pytest.raises(ConfigError, match=f"labels hold {value}; they must be channel indices"):
        batch.loss()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_labels_that_are_no_integers_are_refused(dtype: torch.dtype) -> None:
    batch = Batch()
    batch.labels = batch.labels.to(dtype)
    with pytest.raises(ConfigError, match=f"labels are {dtype}; they must be integers"):
        batch.loss()


def test_features_without_images_are_refused() -> None:
    batch = Batch()
    batch.new = batch.new[0]
    with pytest.raises(ConfigError, match=r"new_features \(4, 5, 4\) .* must be \[B, D, h, w\]"):
        batch.loss()


# CUDA.


def test_arithmetic_of_bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that CUDA takes, with its products of bfloat16 factors done in float32."""
    batch = Batch(0, torch.float32, size=(2, 16, 16), width=64)
    expected = batch.loss()
    (expected_gradient,) = torch.autograd.grad(expected, batch.new)

    def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        assert a.dtype == b.dtype
        return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)

    def add_product(to: Tensor, a: Tensor, b: Tensor) -> Tensor:
        assert a.dtype == b.dtype == torch.bfloat16
        return to.addmm_(a.to(to.dtype), b.to(to.dtype))

    monkeypatch.setattr(contrastive, "_multiplies_in_half", lambda features: True)
    for module in (contrastive_whole, contrastive_tiles):
        monkeypatch.setattr(module, "multiply", multiply)
        monkeypatch.setattr(module, "add_product", add_product)
    loss = batch.loss()
    (gradient,) = torch.autograd.grad(loss, batch.new)
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)
    cosine = torch.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0)
    assert cosine > 0.9995


def on_cuda(batch: Batch) -> Batch:
    for name in ("new", "old", "logits", "labels"):
        setattr(batch, name, getattr(batch, name).detach().cuda())
    batch.new.requires_grad_()
    return batch


@pytest.mark.gpu
@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.01}, {"temperature": 1.0}])
def test_bfloat16_products_on_cuda_are_close(knobs: dict[str, float]) -> None:
    batch = on_cuda(Batch(0, torch.float32, size=(2, 32, 32), width=64))
    expected = batch.loss(**knobs)
    (expected_gradient,) = torch.autograd.grad(expected, batch.new)
    with torch.autocast("cuda", torch.bfloat16):
        loss = batch.loss(**knobs)
    (gradient,) = torch.autograd.grad(loss, batch.new)
    assert loss.dtype == torch.float32
    assert 0 < abs(loss.item() / expected.item() - 1) < 0.02
    cosine = torch.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0)
    assert cosine > 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_worst_case_on_cuda_needs_half_a_gigabyte(dtype: torch.dtype) -> None:
    """24 crops without background: 24,576 anchors x 36,864 contrast vectors."""
    rng = torch.Generator("cuda").manual_seed(0)
    maps = (24, 256, 32, 32)
    new, old = (torch.randn(maps, generator=rng, device="cuda", dtype=dtype) for _ in range(2))
    logits = torch.randn((24, 16, 32, 32), generator=rng, device="cuda", dtype=dtype)
    logits[:, 0] = -10.0
    labels = torch.randint(16, 21, (24, 32, 32), generator=rng, device="cuda")
    labels[:, :16] = 0
    new.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = contrastive_distillation(new, old, logits, labels, num_old=16)
    loss.backward()
    assert torch.cuda.max_memory_allocated() - before < 0.5e9
    assert loss.isfinite()
    assert new.grad is not None
    assert new.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["standard", "authors"])
def test_cuda_agrees_with_cpu(form: str) -> None:
    batch = Batch(size=(2, 16, 16))
    (gradient,) = torch.autograd.grad(batch.loss(form=form), batch.new)
    expected = batch.loss(form=form).item()
    batch = on_cuda(batch)
    loss = batch.loss(form=form)
    (cuda_gradient,) = torch.autograd.grad(loss, batch.new)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(cuda_gradient.cpu(), gradient, rtol=1e-9, atol=1e-12)
