"""mIoU per group of classes and forgetting, from confusion matrices.  All values in percent.

A confusion matrix is [C, C] int64, rows truth, columns prediction, in channel order (0 background,
then classes in learning order).  A mean is over the classes that have truth pixels; NaN when none has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GROUPS = ("base", "added", "old", "new", "all")


def confusion_of(predicted: Tensor, truth: Tensor, *, classes: int, ignore: int = 255) -> Tensor:
    """[classes, classes] counts of pixels.

    Three lines of our own: torchmetrics, which has this too, takes a quarter of a worker's start to load.

    predicted, truth: int64 of one shape; pixels whose truth is `ignore` do not count
    """
    valid = truth != ignore
    pairs = truth[valid] * classes + predicted[valid]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def iou_per_class(confusion: Tensor) -> Tensor:
    """[C] IoU in percent; NaN for a class without truth pixels.

    confusion: [C, C] counts.
    """
    counts = confusion.double()
    hit = counts.diagonal()
    truth = counts.sum(1)
    union = truth + counts.sum(0) - hit
    return torch.where(truth > 0, 100 * hit / union.clamp(min=1), torch.nan)


def mean_ious(iou: Tensor, *, num_base: int, num_old: int, background: bool) -> dict[str, float]:
    """The five means without background, and each with it as `*_bg` where background is scored.

    iou: [C] percent, NaN = no truth
    num_base, num_old: channels after step 0 and before this step, background included
    Returns `miou_base` (classes of step 0), `miou_added` (all later ones), `miou_old`, `miou_new`
    (before / in this step), `miou_all`.  At step 0 nothing is old: num_old is 1.
    """
    channels = torch.arange(len(iou))
    members = {
        "base": channels < num_base,
        "added": channels >= num_base,
        "old": channels < num_old,
        "new": channels >= num_old,
        "all": channels >= 0,
    }
    means: dict[str, float] = {}
    for group, member in members.items():
        classes = member & (channels > 0)
        means[f"miou_{group}"] = _mean(iou[classes])
        if background:
            with_background = iou[classes | (channels == 0)] if classes.any() else iou[:0]
            means[f"miou_{group}_bg"] = _mean(with_background)
    return means


def forgetting(history: Sequence[Tensor]) -> Tensor:
    """[C_old] best earlier IoU minus the last one, in points, for classes seen before the last step.

    history: the [C_t] IoU after each step.  NaN where a class never had truth pixels.
    """
    if len(history) < 2:
        return torch.empty(0, dtype=torch.double)
    num_old = len(history[-2])
    best = torch.full((num_old,), -torch.inf, dtype=torch.double)
    for iou in history[:-1]:
        seen = iou.nan_to_num(nan=-torch.inf)
        best[: len(iou)] = torch.maximum(best[: len(iou)], seen)
    drop = best - history[-1][:num_old]
    return torch.where(best.isfinite(), drop, torch.nan)


def mean_forgetting(history: Sequence[Tensor], *, background: bool = False) -> float:
    """Mean of `forgetting` over the old classes, NaN when there are none."""
    drop = forgetting(history)
    return _mean(drop if background else drop[1:])


def _mean(values: Tensor) -> float:
    return float(values.nanmean()) if len(values) else float("nan")
