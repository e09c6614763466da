"""The unbiased losses of a piece by logarithms of sums: right for all logits.

On CUDA `unbiased_fused` does the same in two kernels; on a CPU `unbiased_sums` is faster, and this is for
the pieces where it may not be used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ucd_ray.losses.common import LOG2_E
from ucd_ray.losses.unbiased_knobs import Knobs, kinds, sharpened


class _LogSums(NamedTuple):
    """Of [b, C, n] logits, each [b, n]; -inf for a group without classes."""

    background: Tensor
    old: Tensor
    new: Tensor
    known: Tensor  # background and old classes: background, in the cross-entropy

    @classmethod
    def of(cls, background: Tensor, old: Tensor, new: Tensor) -> _LogSums:
        background = background.contiguous()  # logaddexp is slow on the strides of channels_last
        return cls(background, old, new, torch.logaddexp(background, old))

    @classmethod
    def of_logits(cls, logits: Tensor, num_old: int) -> _LogSums:
        return cls.of(logits[:, 0], _log_sum(logits[:, 1:num_old]), _log_sum(logits[:, num_old:]))

    def unknown(self) -> Tensor:
        """Background and new classes: background, in the distillation."""
        return torch.logaddexp(self.background, self.new)

    def total(self) -> Tensor:
        return torch.logaddexp(self.known, self.new)


def _log_sum(logits: Tensor) -> Tensor:
    """logsumexp over dim 1; -inf if that is empty."""
    if not logits.shape[1]:
        return logits.new_full((len(logits), logits.shape[2]), -torch.inf)
    return _exponentials(logits)[2]


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logits) up to a factor per pixel, their sum, and the logits' logsumexp, over dim 1."""
    # A finite maximum keeps -inf - max from being NaN.
    maximum = logits.amax(dim=1).clamp_(min=torch.finfo(logits.dtype).min)
    exps = _exp(logits - maximum.unsqueeze(1))
    sums = exps.sum(dim=1)
    return exps, sums, sums.log().add_(maximum)


def _exp(fresh: Tensor) -> Tensor:
    """exp, in place. On a CPU torch's exp2 can be four times as fast as its exp."""
    return fresh.mul_(LOG2_E).exp2_()


def values(new: Tensor, old: Tensor, labels: Tensor, kept: Tensor, knobs: Knobs) -> Tensor:
    """[2]: the sums over pixels of cross-entropy and distillation, the latter over classes too.

    new: [b, C, n]; old: [b, num_old, n]; labels: [b, n]
    kept: [b, 3 or 5, n], filled with what the gradient needs: the teacher's log-sum and those of
        the old and new classes, at temperature 1 and, if it is another, at that
    """
    num_old = knobs.num_old
    sums = _LogSums.of_logits(new, num_old)
    total = sums.total()
    kept[:, 1], kept[:, 2] = sums.old, sums.new

    is_valid, is_new = kinds(labels, knobs)
    at = labels.where(is_new, 0)
    truth = torch.where(is_new, new.gather(1, at.unsqueeze(1)).squeeze(1), sums.known)
    cross_entropy = (total - truth).where(is_valid, 0.0)

    if knobs.temperature != 1:
        new = new / knobs.temperature
        sums = _LogSums.of_logits(new, num_old)
        total = sums.total()
        kept[:, 3], kept[:, 4] = sums.old, sums.new
    teacher, normaliser, kept[:, 0] = _exponentials(sharpened(old, knobs))
    unknown = teacher[:, 0] * sums.unknown()
    agreement = teacher[:, 1:].mul_(new[:, 1:num_old]).sum(dim=1) + unknown
    distillation = total - agreement / normaliser
    return torch.stack([cross_entropy.sum(), distillation.sum()])


def fill_gradient(
    out: Tensor,
    new: Tensor,
    old: Tensor,
    labels: Tensor,
    kept: Tensor,
    ce_weight: Tensor,
    kd_weight: Tensor,
    knobs: Knobs,
) -> None:
    """Write the gradient of the two weighted sums of `values` to out, [b, C, n]."""
    num_old = knobs.num_old
    kd_weight = kd_weight / knobs.temperature
    teacher = _exp(sharpened(old, knobs) - kept[:, :1]).mul_(kd_weight)
    is_valid, is_new = kinds(labels, knobs)
    valid, not_background = is_valid * ce_weight, is_new * ce_weight

    sums = _LogSums.of(new[:, 0], kept[:, 1], kept[:, 2])
    if knobs.temperature == 1:
        slopes = _slopes(sums, valid + kd_weight, not_background + kd_weight, teacher[:, 0])
        background, old_part, new_part = _by_class(new, sums, slopes, num_old)
    else:
        ce_slopes = _slopes(sums, valid, not_background, torch.zeros_like(valid))
        scaled = new / knobs.temperature
        scaled_sums = _LogSums.of(scaled[:, 0], kept[:, 3], kept[:, 4])
        kd_slopes = _slopes(scaled_sums, kd_weight, kd_weight, teacher[:, 0])
        parts = zip(
            _by_class(new, sums, ce_slopes, num_old),
            _by_class(scaled, scaled_sums, kd_slopes, num_old),
            strict=True,
        )
        background, old_part, new_part = [ce + kd for ce, kd in parts]

    classes = torch.arange(num_old, new.shape[1], device=labels.device).unsqueeze(1)
    is_truth = classes == labels.where(is_new, 0).unsqueeze(1)
    out[:, :1] = background
    out[:, 1:num_old] = old_part.sub_(teacher[:, 1:])
    out[:, num_old:] = new_part.sub_(is_truth * ce_weight)


def _slopes(
    sums: _LogSums, total: Tensor, total_less_known: Tensor, unknown: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives with respect to the background logit and the log-sums of old and new classes.

    Of total * sums.total() - known * sums.known - unknown * sums.unknown(). The difference of the
    first two factors is given, since it is exact where subtracting their products would not be.
    """
    new_of_total = (sums.new - sums.known).sigmoid_()
    old_of_known = (sums.old - sums.background).sigmoid_()
    new_of_unknown = (sums.new - sums.background).sigmoid_()
    new = total * new_of_total
    known = total_less_known - new
    old = known * old_of_known
    moved = unknown * new_of_unknown
    return known - old - (unknown - moved), old, new - moved


def _by_class(
    logits: Tensor, sums: _LogSums, slopes: tuple[Tensor, Tensor, Tensor], num_old: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes spread over the classes of each group by their softmax: [b, classes, n] each."""
    background, old, new = (slope.unsqueeze(1) for slope in slopes)
    old_softmax = _exp(logits[:, 1:num_old] - sums.old.unsqueeze(1))
    new_softmax = _exp(logits[:, num_old:] - sums.new.unsqueeze(1))
    return background, old_softmax.mul_(old), new_softmax.mul_(new)
