"""UCD: uncertainty-aware contrastive distillation between pixels of a batch.

We follow the method as read from the published code (its version "v2"); the printed equations of
the paper were not available to us, so the formula below is our reading, not a quotation.

With unit vectors, anchors a_i (new model, foreground pixels) and contrast vectors k (the anchors
themselves and the old model's vectors at pseudo-labelled pixels), s_ik = <a_i, k> / temperature:

    L_i = 1/|P(i)| * sum over k in P(i) of  W_ik * log(1 + exp(lneg_i + shift - s_ik))
    lneg_i = log of the sum over other-class k of exp(s_ik)

P(i) holds the same-class k without the anchor's own copy; L is the mean over anchors with
positives. shift is 0 in the standard form. The published code subtracts the row maximum, which is
the anchor's match with its own copy, 1/temperature, from the positives after the negatives were
summed: that is shift = 1/temperature, the "authors" form.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.losses.common import compute_dtype
from ucd_ray.losses.sampling import balanced_sample

IGNORED = 255
FORMS = ("standard", "authors")
MIN_NORM = 1e-6  # a shorter feature has no direction: it becomes 0, without gradient
CHUNK_ELEMENTS = 2**22  # similarities held at once, 16 MiB in float32


def contrastive_distillation(
    new_features: Tensor,
    old_features: Tensor,
    old_logits: Tensor,
    labels: Tensor,
    *,
    num_old: int,
    temperature: float = 0.07,
    uncertainty: bool = True,
    form: str = "standard",
    max_anchors: int | None = None,
    max_old: int | None = None,
    max_per_class: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Pull same-class pixels of the batch together, push others apart (UCD).

    new_features: [B, D, h, w], the only input that gets a gradient, and only as anchors
    old_features: [B, D, h, w]
    old_logits: [B, num_old, h, w], the old model's small logits
    labels: [B, H, W] of any size, channel indices; shrunk with nearest-exact, since interpolated
        ids would invent classes at borders. Above 0 they are truth; 0 takes the old model's
        argmax, which may be background; background and 255 take no part.
    num_old: channels of the old model, background included
    uncertainty: weight a positive pair of an old class by the probability that the old model gives
        to "same class", <p_i, p_k>; pairs of a new class (label >= num_old) always weigh 1
    form: "standard", or "authors" for the published code's shift of the negatives
    max_anchors, max_per_class: caps on the anchors in all (scarce classes keep theirs) and of each
        class. The new-model part of the contrast set is the same subset.
    max_old: cap on the old-model vectors, class-balanced; 0 = none. None = use all positions, the
        published behaviour, for all three.
    Returns a scalar in nats over the pixels of this process; 0, still connected to new_features, if
    no foreground pixel has a positive.
    Raises ConfigError for an unknown form or inputs that do not fit each other.
    """
    _check(new_features, old_features, old_logits, labels, num_old, form)
    with torch.autocast(new_features.device.type, enabled=False):
        truth = _shrink(labels, new_features.shape[-2:]).flatten()
        guess = old_logits.argmax(dim=1).flatten()
        classes = torch.where(truth == 0, guess, truth)
        foreground = (classes > 0) & (truth != IGNORED)
        at = _choose(foreground, classes, max_anchors, max_per_class, generator)
        old_at = _choose(foreground & (truth == 0), classes, max_old, None, generator)

        dtype = compute_dtype(new_features)
        anchors = _unit(_pixels(new_features, at, dtype))
        with torch.no_grad():
            columns = torch.cat([classes[at], classes[old_at]])
            order = columns.argsort(stable=True)  # in each class: its anchors, then its old vectors
            vectors = torch.cat([anchors, _unit(_pixels(old_features, old_at, dtype))])[order]
            probs = _pixels(old_logits, torch.cat([at, old_at])[order], dtype).softmax(dim=1)
            groups = _groups(classes[at], columns, num_old if uncertainty else 0)
        loss: Tensor = _Contrast.apply(
            anchors,
            vectors,
            probs,
            groups,
            temperature,
            1 / temperature if form == "authors" else 0.0,
        )
        return loss


class _Group(NamedTuple):
    """One class: its anchors and its columns of the contrast set, these anchors first."""

    first_anchor: int
    num_anchors: int
    columns: slice
    weighted: bool  # whether the old model's uncertainty weighs its pairs

    @property
    def num_positives(self) -> int:
        return self.columns.stop - self.columns.start - 1


def _groups(anchor_classes: Tensor, column_classes: Tensor, num_old: int) -> list[_Group]:
    """The classes that have an anchor with a positive."""
    num_columns: list[int] = column_classes.bincount().tolist()
    num_anchors: list[int] = anchor_classes.bincount(minlength=len(num_columns)).tolist()
    groups = []
    anchor = column = 0
    for label, (rows, width) in enumerate(zip(num_anchors, num_columns, strict=True)):
        if rows and width > 1:
            groups.append(_Group(anchor, rows, slice(column, column + width), label < num_old))
        anchor += rows
        column += width
    return groups


class _Contrast(torch.autograd.Function):
    """The loss of anchors sorted by class; their gradient is computed along with it.

    The contrast vectors are constants, so the gradient needs the similarities only once: backward
    scales what forward kept, [M, D], and no [M, K] matrix exists at any time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        vectors: Tensor,
        probs: Tensor,
        groups: list[_Group],
        temperature: float,
        shift: float,
    ) -> Tensor:
        loss = anchors.new_zeros(())
        gradient = torch.zeros_like(anchors)
        num_anchors = sum(group.num_anchors for group in groups)
        rows = max(1, CHUNK_ELEMENTS // max(1, len(vectors)))
        for group in groups:
            scale = 1 / (group.num_positives * num_anchors)
            for start in range(0, group.num_anchors, rows):
                stop = min(start + rows, group.num_anchors)
                chunk = slice(group.first_anchor + start, group.first_anchor + stop)
                part, slope = _chunk(
                    anchors[chunk] / temperature, vectors, probs, group, start, shift
                )
                loss += part * scale
                gradient[chunk] = slope.mul_(scale / temperature)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None, None, None, None


def _chunk(
    anchors: Tensor, vectors: Tensor, probs: Tensor, group: _Group, start: int, shift: float
) -> tuple[Tensor, Tensor]:
    """Sum of W * log(1 + exp(lneg + shift - s)) over the pairs of some anchors of a class.

    anchors: [R, D], divided by the temperature; they are those from `start` on of the group
    vectors: [K, D] and probs: [K, num_old], sorted by class
    Returns the sum and its gradient with respect to `anchors`, [R, D]. Besides the positives it
    holds one [R, K] matrix: similarities, then exponentials, then the gradient's coefficients.
    """
    columns = group.columns
    own = slice(columns.start + start, columns.start + start + len(anchors))
    matrix = anchors @ vectors.T
    similarity = matrix[:, columns].clone()
    matrix[:, columns] = -torch.inf
    # Without negatives a row is all -inf; a finite maximum keeps -inf - max from being NaN.
    maximum = matrix.amax(dim=1, keepdim=True).clamp(min=torch.finfo(matrix.dtype).min)
    matrix.sub_(maximum).exp_()
    total = matrix.sum(dim=1, keepdim=True)  # 0 without negatives, else at least 1
    margin = total.log() + maximum + shift - similarity

    weight = probs[own] @ probs[columns].T if group.weighted else torch.ones_like(similarity)
    weight.diagonal(start).zero_()  # the anchor's own copy is no positive
    loss = (weight * F.softplus(margin, threshold=50)).sum()
    pull = weight * margin.sigmoid()
    matrix.mul_(pull.sum(dim=1, keepdim=True) / total.clamp(min=1))
    matrix[:, columns] = -pull
    return loss, matrix @ vectors


def _choose(
    mask: Tensor,
    classes: Tensor,
    max_total: int | None,
    max_per_class: int | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Flat positions of (a balanced sample of) the pixels in the mask, sorted by class."""
    at = mask.nonzero().squeeze(1)
    chosen = balanced_sample(
        classes[at], max_total=max_total, max_per_class=max_per_class, generator=generator
    )
    at = at[chosen]
    return at[classes[at].argsort(stable=True)]


def _pixels(maps: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
    """Columns of [B, D, h, w] at flat positions, as [N, D]."""
    return maps.movedim(1, -1).flatten(0, 2).index_select(0, at).to(dtype)


def _unit(vectors: Tensor) -> Tensor:
    """Rows scaled to length 1; rows shorter than MIN_NORM become 0 and get no gradient."""
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors * ((norm > MIN_NORM) / norm.clamp(min=MIN_NORM))


def _shrink(labels: Tensor, size: torch.Size) -> Tensor:
    """Labels [B, H, W] at feature size, by the nearest pixel centre."""
    if labels.shape[-2:] == size:
        return labels.long()
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()


def _check(
    new_features: Tensor,
    old_features: Tensor,
    old_logits: Tensor,
    labels: Tensor,
    num_old: int,
    form: str,
) -> None:
    if form not in FORMS:
        raise ConfigError(f"unknown form '{form}'; {did_you_mean(form, FORMS)}")
    if old_features.shape != new_features.shape:
        raise ConfigError(
            f"old_features {tuple(old_features.shape)} must have the shape of new_features "
            f"{tuple(new_features.shape)}"
        )
    batch, _, height, width = new_features.shape
    if old_logits.shape != (batch, num_old, height, width):
        raise ConfigError(
            f"old_logits {tuple(old_logits.shape)} must be [B, num_old, h, w] = "
            f"{(batch, num_old, height, width)}: the old model's small logits, at feature size"
        )
    if labels.dim() != 3 or len(labels) != batch:
        raise ConfigError(f"labels {tuple(labels.shape)} must be [B, H, W] with B = {batch}")
