"""The arithmetic of UCD with few pairs: one matrix of anchors x columns.

What `contrastive_tiles` does in two rounds is one here: the matrix has the negatives and the positives,
whose terms need the sum over the negatives. Both products take all pairs at once, so that a batch with
much background pays for few, large operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor

from ucd_ray.losses.common import LOG2_E
from ucd_ray.losses.contrastive_plan import Group, stride_of
from ucd_ray.losses.contrastive_vectors import (
    Columns,
    add_product,
    multiply,
    needs_maximum,
    softplus,
)


def whole_losses(
    anchors: Tensor,
    weights: Tensor,
    columns: Columns,
    groups: list[Group],
    temperature: float,
    shift: float,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """All anchors, the loss and its gradient with respect to them; nothing if there are none.

    anchors: [n, D], of length 1; weights: [n, C], their probabilities times their scales
    columns: sorted by class, in each those that are anchors too first
    shift: added to the logarithm of the negatives
    """
    if not groups:
        return
    vectors, probs, log2_weights = columns
    # [n, K], similarities times LOG2_E, whose rows start well.
    pairs = anchors.new_empty(len(anchors), stride_of(len(vectors)))[:, : len(vectors)]
    multiply((anchors * (LOG2_E / temperature)).to(vectors.dtype), vectors.T, pairs)
    own = [slice(group.shared.start, group.others.stop) for group in groups]
    blocks = [pairs[group.anchors, span] for group, span in zip(groups, own, strict=True)]
    edges = list(accumulate((block.numel() for block in blocks), initial=0))
    margins, factors = pairs.new_empty(2, edges[-1])
    margin_of, factor_of = _parts(margins, blocks, edges), _parts(factors, blocks, edges)
    for block, margin in zip(blocks, margin_of, strict=True):
        margin.copy_(block)
        block.fill_(-torch.inf)
    total, log2_total = _sum_exp2(pairs, log2_weights, has_maximum=needs_maximum(temperature))
    log_total = log2_total.div_(LOG2_E).add_(shift)

    # Of w * log(1 + exp(log_total - s)), over pairs of a class.
    margins.div_(-LOG2_E)
    for group, span, margin, factor in zip(groups, own, margin_of, factor_of, strict=True):
        margin.add_(log_total[group.anchors])
        # An anchor's own copy is no positive.
        margin[:, : group.shared.stop - group.shared.start].diagonal().fill_(-torch.inf)
        torch.mm(weights[group.anchors], probs[span].T, out=factor)
    loss = softplus(margins, torch.empty_like(margins)).mul_(factors).sum()
    factors.mul_(margins.sigmoid_())
    pull = torch.cat([factor.sum(dim=1, keepdim=True) for factor in factor_of])

    pairs.mul_(pull.div_(total.clamp_(min=torch.finfo(total.dtype).tiny)))
    factors.neg_()
    for block, factor in zip(blocks, factor_of, strict=True):
        block.copy_(factor)
    slope = add_product(torch.zeros_like(anchors), pairs.to(vectors.dtype), vectors)
    yield slice(0, len(anchors)), loss, slope.div_(temperature)


def _sum_exp2(
    pairs: Tensor, log2_weights: Tensor | None, *, has_maximum: bool
) -> tuple[Tensor, Tensor]:
    """Make pairs 2 to their power, over 2 to the row's maximum if asked.

    Returns their sums, [n, 1], and log2 of the sums without that division.
    """
    if log2_weights is not None:
        pairs.add_(log2_weights)
    if not has_maximum:
        total = pairs.exp2_().sum(dim=1, keepdim=True)
        return total, total.log2()
    # Finite, since -inf - -inf would be NaN where a row has no negatives.
    maximum = pairs.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(pairs.dtype).min)
    total = pairs.sub_(maximum).exp2_().sum(dim=1, keepdim=True)
    return total, total.log2().add_(maximum)


def _parts(flat: Tensor, blocks: list[Tensor], edges: list[int]) -> list[Tensor]:
    """The elements of each block, one after the other, in its shape."""
    return [
        flat[start : start + block.numel()].view(block.shape)
        for start, block in zip(edges, blocks, strict=False)
    ]
