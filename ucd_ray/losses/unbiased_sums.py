"""The unbiased losses of a piece by sums of exponentials, where those stay in range: a third less work.

With b, o and n the sums over background, old and new classes of a pixel, its cross-entropy is
log(b + o + n) less log(b + o) or the logit of its new class, its distillation
log(b + o + n) - p_0 log(b + n) - sum_c p_c x_c with the old model's softmax p. Every class of a group
has as gradient its exponential times one factor of the group, but for the truth and for p.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ucd_ray.losses.common import LOG2_E
from ucd_ray.losses.unbiased_knobs import Knobs, kinds, sharpened

LARGE = 2.0**60  # a sum of exponentials between its inverse and it has lost nothing in float32


class _Sums(NamedTuple):
    """Of exponentials [b, C, n], each [b, n]; 0 for a group without classes."""

    background: Tensor
    old: Tensor
    new: Tensor
    known: Tensor  # background and old classes: background, in the cross-entropy
    total: Tensor

    @classmethod
    def of(cls, background: Tensor, old: Tensor, new: Tensor) -> _Sums:
        background = background.contiguous()
        known = background + old
        return cls(background, old, new, known, known + new)

    @classmethod
    def of_exps(cls, exps: Tensor, num_old: int) -> _Sums:
        return cls.of(exps[:, 0], exps[:, 1:num_old].sum(dim=1), exps[:, num_old:].sum(dim=1))

    def unknown(self) -> Tensor:
        """Background and new classes: background, in the distillation."""
        return self.background + self.new


class _Factors(NamedTuple):
    """What the exponentials of each group are multiplied with, each [b, n]."""

    background: Tensor
    old: Tensor
    new: Tensor

    def plus(self, other: _Factors) -> _Factors:
        return _Factors(*(mine.add(theirs) for mine, theirs in zip(self, other, strict=True)))


def values(new: Tensor, old: Tensor, labels: Tensor, kept: Tensor, knobs: Knobs) -> Tensor | None:
    """As `unbiased_logs.values`, or None if a sum leaves the range; kept gets sums, not logarithms."""
    num_old = knobs.num_old
    sums = soft = _Sums.of_exps(_exp(new), num_old)
    scaled = new
    if knobs.temperature != 1:
        scaled = new / knobs.temperature
        soft = _Sums.of_exps(_exp(scaled), num_old)
    teacher = _exp(sharpened(old, knobs))
    normaliser, unknown = teacher.sum(dim=1), soft.unknown()
    if not _are_in_range(sums.known, sums.total, soft.total, unknown, normaliser):
        return None
    kept[:, 0], kept[:, 1], kept[:, 2] = normaliser, sums.old, sums.new
    if knobs.temperature != 1:
        kept[:, 3], kept[:, 4] = soft.old, soft.new

    is_valid, is_new = kinds(labels, knobs)
    at = labels.where(is_new, 0)
    truth = new.gather(1, at.unsqueeze(1)).squeeze(1).where(is_new, sums.known.log())
    log_total = sums.total.log()
    cross_entropy = (log_total - truth).where(is_valid, 0.0)

    agreement = teacher[:, 1:].mul_(scaled[:, 1:num_old]).sum(dim=1)
    agreement += teacher[:, 0] * unknown.log_()
    soft_total = log_total if soft is sums else soft.total.log()
    distillation = soft_total - agreement / normaliser
    return torch.stack([cross_entropy.sum(), distillation.sum()])


def _are_in_range(*sums: Tensor) -> bool:
    bounds = [torch.stack(each.aminmax()) for each in sums]
    low, high = torch.stack(bounds).aminmax()
    return bool(low > 1 / LARGE) and bool(high < LARGE)  # not for a NaN


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
    """As `unbiased_logs.fill_gradient`, with what `values` has kept."""
    num_old = knobs.num_old
    teacher = _exp(sharpened(old, knobs)).mul_(
        (kd_weight / knobs.temperature / kept[:, 0]).unsqueeze(1)
    )
    is_valid, is_new = kinds(labels, knobs)

    exps = _exp(new, out if out.dtype == new.dtype else None)  # half precision would lose too much
    sums = _Sums.of(exps[:, 0], kept[:, 1], kept[:, 2])
    factors = _of_cross_entropy(sums, is_valid * ce_weight, is_new)
    if knobs.temperature == 1:
        of_distillation = _of_distillation(sums, teacher[:, 0], kd_weight)
        _multiply(exps, factors.plus(of_distillation), num_old)
    else:
        soft_exps = _exp(new / knobs.temperature)
        soft = _Sums.of(soft_exps[:, 0], kept[:, 3], kept[:, 4])
        of_distillation = _of_distillation(soft, teacher[:, 0], kd_weight / knobs.temperature)
        _multiply(exps, factors, num_old)
        exps += _multiply(soft_exps, of_distillation, num_old)
    exps[:, 1:num_old] -= teacher[:, 1:]
    truth = labels.where(is_new, 0).unsqueeze(1)
    exps.scatter_add_(1, truth, (is_new * -ce_weight).unsqueeze(1))
    if exps is not out:
        out.copy_(exps)


def _of_cross_entropy(sums: _Sums, weight: Tensor, is_new: Tensor) -> _Factors:
    """weight: [b, n], 0 where a pixel is ignored"""
    new = weight / sums.total
    # Not 1 / total - 1 / known, whose difference loses what matters where n is small.
    known = new.where(is_new, -new * sums.new / sums.known)
    return _Factors(known, known, new)


def _of_distillation(sums: _Sums, teacher: Tensor, weight: Tensor) -> _Factors:
    """teacher: [b, n], probability of background, times the weight"""
    old = weight / sums.total
    new = old - teacher / sums.unknown()
    return _Factors(new, old, new)


def _multiply(exps: Tensor, factors: _Factors, num_old: int) -> Tensor:
    """In place."""
    exps[:, 0] *= factors.background
    exps[:, 1:num_old] *= factors.old.unsqueeze(1)
    exps[:, num_old:] *= factors.new.unsqueeze(1)
    return exps


def _exp(logits: Tensor, out: Tensor | None = None) -> Tensor:
    """exp. On a CPU torch's exp2 can be four times as fast as its exp."""
    return torch.mul(logits, LOG2_E, out=out).exp2_()
