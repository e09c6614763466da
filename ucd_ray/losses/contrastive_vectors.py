"""What UCD multiplies: unit vectors of the anchors and of the contrast set, sorted by class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ucd_ray.losses.common import LOG2_E
from ucd_ray.losses.contrastive_plan import Plan

MIN_NORM = 1e-6  # a shorter feature has no direction: it becomes 0, without gradient
MAX_SIMILARITY = 50.0  # exp of +-50, times any number of columns, is a normal float32


def needs_maximum(temperature: float) -> bool:
    """Whether similarities may be so large that exp of them needs a row's maximum subtracted first."""
    return 1 / temperature > MAX_SIMILARITY


class Columns(NamedTuple):
    """The contrast set, sorted by class.

    vectors: [K, D], of length 1
    probs: [K, C], times the columns' weights
    log2_weights: [K]; None = all 0
    """

    vectors: Tensor
    probs: Tensor
    log2_weights: Tensor | None


def gather(
    new_features: Tensor, old_features: Tensor, probs: Tensor, plan: Plan, half: bool
) -> tuple[Tensor, Tensor, Columns]:
    """Unit vectors of the anchors, [n, D], one over their lengths, [n, 1], and the columns."""
    pixels = _pixels(new_features)
    anchors, lengths = _unit(pixels, plan.anchors, probs.dtype)
    slots = plan.order.argsort()  # where each column goes
    vectors = anchors.new_empty(
        (len(slots), anchors.shape[1]), dtype=torch.bfloat16 if half else anchors.dtype
    )
    num_new = len(plan.new)
    if plan.column_weights is None and num_new == len(anchors):  # the anchors, in their order
        at = slots[:num_new].sort().values if plan.is_whole else slice(num_new)
        vectors[at] = anchors.to(vectors.dtype)
    else:
        vectors[slots[:num_new]] = _unit(pixels, plan.new, probs.dtype)[0].to(vectors.dtype)
    pixels = _pixels(old_features)
    vectors[slots[num_new:]] = _unit(pixels, plan.old, probs.dtype)[0].to(vectors.dtype)
    column_probs = probs[torch.cat([plan.new, plan.old])[plan.order]]
    if plan.column_weights is None:
        return anchors, lengths, Columns(vectors, column_probs, None)
    column_weights = plan.column_weights.to(probs.dtype)
    column_probs.mul_(column_weights[:, None])
    return anchors, lengths, Columns(vectors, column_probs, column_weights.log2())


def _pixels(maps: Tensor) -> Tensor:
    """[B, D, h, w] as [B * h * w, D]."""
    return maps.movedim(1, -1).flatten(0, 2)


def _unit(pixels: Tensor, at: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of length 1, [n, D], and what they were multiplied with, [n, 1]; 0 for short ones."""
    vectors = pixels.index_select(0, at).to(dtype)
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    inverse = (norm > MIN_NORM) / norm.clamp(min=MIN_NORM)
    return vectors.mul_(inverse), inverse


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write a @ b to `out`, which may be more precise than they are."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


def add_product(to: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add a @ b to `to`, which may be more precise than they are."""
    if a.dtype == to.dtype:
        return to.addmm_(a, b)
    return to.add_(torch.mm(a, b, out_dtype=to.dtype))


def softplus(x: Tensor, out: Tensor, spare: Tensor | None = None) -> Tensor:
    """Write log(1 + exp(x)) to `out`, which is returned; a spare tensor, as large, saves making one."""
    if not x.is_cpu:
        return torch.ops.aten.softplus.out(x, 1, 50, out=out)
    # On a CPU torch's softplus and log1p take four times as long as all of this.
    small = torch.abs(x, out=out).mul_(-LOG2_E).exp2_()
    rounded = torch.add(small, 1, out=spare)
    # log(1 + e) = log(r) + (e - (r - 1)) / r, up to the square of what r has lost
    small.sub_(rounded.sub_(1)).div_(rounded.add_(1)).add_(rounded.log_())
    return small.add_(torch.clamp(x, min=0, out=spare))
