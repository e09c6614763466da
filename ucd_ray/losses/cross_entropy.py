"""Cross-entropy with labels: plain, unbiased (MiB) and per class (LwF-MC)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ucd_ray.losses.common import check_num_old, in_full_precision, reduce_map

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
    Raises ConfigError for an unknown reduction.
    """
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
    Returns as `cross_entropy`. Raises ConfigError for an unknown reduction or num_old.
    """
    check_num_old(num_old, logits.shape[1])
    logits = in_full_precision(logits)
    normaliser = logits.logsumexp(dim=1, keepdim=True)
    background = logits[:, :num_old].logsumexp(dim=1, keepdim=True)
    log_probs = torch.cat([background, logits[:, num_old:]], dim=1) - normaliser
    ignored = labels == ignore_index
    targets = (labels - num_old + 1).clamp(min=0).masked_fill(ignored, SKIPPED)
    loss_map = F.nll_loss(log_probs, targets, ignore_index=SKIPPED, reduction="none")
    return reduce_map(loss_map, reduction, valid=~ignored)


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, reduction: str = "mean"
) -> Tensor:
    """Sum over channels of the sigmoid cross-entropy with the one-hot label (LwF-MC, iCaRL).

    logits: [B, C, H, W]
    labels: [B, H, W] int64, channel indices or ignore_index
    Returns as `cross_entropy`. Raises ConfigError for an unknown reduction.
    """
    logits = in_full_precision(logits)
    ignored = labels == ignore_index
    targets = labels.masked_fill(ignored, 0).unsqueeze(1)
    # log(1 + exp(z)) costs a wrong channel; the same with z negated costs the true one.
    signed = logits.scatter(1, targets, -logits.gather(1, targets))
    loss_map = -F.logsigmoid(-signed).sum(dim=1)
    return reduce_map(loss_map.masked_fill(ignored, 0.0), reduction, valid=~ignored)
