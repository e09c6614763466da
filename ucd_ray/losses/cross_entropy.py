"""Cross-entropy with labels, of one softmax or of a sigmoid per class, plain or unbiased (MiB).

With equally large shares of a batch, the mean of the ranks' gradients is the gradient of the whole
batch for the reductions "mean" and "none".  Not for "valid": each rank divides by its own number
of labelled pixels.  Not for "sum", whose gradients would have to be added.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ucd_ray.losses.common import (
    any_logit,
    check_labels,
    check_num_old,
    check_shape,
    in_full_precision,
    reduce_map,
)

SKIPPED = -100  # marks ignored pixels after relabelling; no channel index can collide with it


def cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy per pixel, in nats.

    logits: [B, C, H, W]
    labels: [B, H, W] int64, channel indices or ignore_index
    Returns the [B, H, W] map, 0 at ignored pixels, for reduction "none"; its mean over ALL
    positions for "mean", as MiB trains; the mean over valid pixels for "valid" (0 if there are
    none); "sum".
    Raises ConfigError for an unknown reduction, other shapes, and on the CPU for other labels.
    """
    _check(logits, labels, ignore_index)
    loss_map = F.cross_entropy(
        in_full_precision(logits), labels, ignore_index=ignore_index, reduction="none"
    )
    return reduce_map(loss_map, reduction, valid=labels != ignore_index)


def unbiased_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    num_old: int,
    ignore_index: int = 255,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy in which background may be any old class (MiB, unbiased CE).

    logits: [B, C, H, W]
    labels: [B, H, W] int64; 0 .. num_old-1 all count as background, whose probability is the sum of
        the first num_old channels
    Returns as `cross_entropy`; raises as it does, and ConfigError for an impossible num_old.
    """
    _check(logits, labels, ignore_index)
    check_num_old(num_old, logits.shape[1])
    logits = in_full_precision(logits)
    normaliser = logits.logsumexp(dim=1, keepdim=True)
    background = logits[:, :num_old].logsumexp(dim=1, keepdim=True)
    log_probs = torch.cat([background, logits[:, num_old:]], dim=1) - normaliser
    targets = _as_background(labels, num_old, ignore_index)
    loss_map = F.nll_loss(log_probs, targets, ignore_index=SKIPPED, reduction="none")
    return reduce_map(loss_map, reduction, valid=targets != SKIPPED)


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, reduction: str = "mean"
) -> Tensor:
    """Sum over channels of the sigmoid cross-entropy with the one-hot label (LwF-MC, iCaRL).

    logits: [B, C, H, W]
    labels: [B, H, W] int64, channel indices or ignore_index
    Returns and raises as `cross_entropy`.
    """
    _check(logits, labels, ignore_index)
    return _one_hot(in_full_precision(logits), labels, ignore_index, reduction)


def unbiased_binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    num_old: int,
    ignore_index: int = 255,
    reduction: str = "mean",
) -> Tensor:
    """Sigmoid cross-entropy in which background may be any old class.

    Ours: MiB's idea for sigmoid heads, in no paper that we know.  The first num_old channels count
    as one channel, on if any of them is: a background pixel costs -log(1 - prod_old (1 - s_c)) -
    sum_new log(1 - s_c) with s the sigmoids, a pixel of a new class what it costs in
    `binary_cross_entropy`.

    logits: [B, C, H, W]
    labels: [B, H, W] int64; 0 .. num_old-1 all count as background
    Returns as `cross_entropy`; raises as it does, and ConfigError for an impossible num_old.
    """
    _check(logits, labels, ignore_index)
    check_num_old(num_old, logits.shape[1])
    logits = in_full_precision(logits)
    merged = torch.cat([any_logit(logits[:, :num_old]), logits[:, num_old:]], dim=1)
    return _one_hot(merged, _as_background(labels, num_old, ignore_index), SKIPPED, reduction)


def _check(logits: Tensor, labels: Tensor, ignore_index: int) -> None:
    check_shape("logits", logits, "B", "C", "H", "W")
    batch, channels, height, width = logits.shape
    check_labels("labels", labels, batch, height, width, limit=channels, ignore_index=ignore_index)


def _as_background(labels: Tensor, num_old: int, ignore_index: int) -> Tensor:
    """Labels after the first num_old channels became channel 0, and ignored pixels SKIPPED."""
    merged = (labels - num_old + 1).clamp(min=0)
    return merged.masked_fill(labels == ignore_index, SKIPPED)


def _one_hot(logits: Tensor, labels: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """Reduce the class sum of the sigmoid cross-entropy with the one-hot label."""
    ignored = labels == ignore_index
    targets = labels.masked_fill(ignored, 0).unsqueeze(1)
    # log(1 + exp(z)) costs a wrong channel; the same with z negated costs the true one.
    signed = logits.scatter(1, targets, -logits.gather(1, targets))
    loss_map = -F.logsigmoid(-signed).sum(dim=1)
    return reduce_map(loss_map.masked_fill(ignored, 0.0), reduction, valid=~ignored)
