"""MiB's two losses at once: unbiased cross-entropy and unbiased distillation, fast and small.

A softmax over background, old and new classes needs three numbers per pixel: the background logit
and the log-sum-exp over the old and over the new classes. From them follow both losses, and with
the logits also the gradient. So the forward pass keeps these numbers only, and the backward pass
makes the gradient of any weighting of the two losses in one go. Both work piece by piece: on a CPU
a piece stays in the cache, on a GPU its operations are fused by torch.compile where that works.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ucd_ray.errors import ConfigError
from ucd_ray.losses.common import (
    check_choice,
    check_labels,
    check_logits,
    check_positive,
    compute_dtype,
)

REDUCTIONS = ("mean", "valid")
# New logits in a piece: an eighth, since each temporary is as large as a piece, but not so few that
# the calls take longer than the work, nor on a CPU so many that they leave the cache.
NUM_PIECES = 8
CPU_PIECE = (2**17, 2**20)
GPU_PIECE = (2**20, 2**40)
LOG2_E = 1 / math.log(2)
LARGE = 2.0**60  # a sum of exponentials between its inverse and it has lost nothing in float32


def unbiased_losses(
    new_logits: Tensor,
    old_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
    ignore_index: int = 255,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """`unbiased_cross_entropy` and `unbiased_distillation`, values and gradients, in one pass.

    new_logits: [B, C, H, W]
    old_logits: [B, num_old, H, W], no gradient; alpha and temperature act on the distillation alone
    labels: [B, H, W] int64; 0 .. num_old-1 all count as background
    reduction: of the cross-entropy, "mean" over all positions or "valid" over those not ignored;
        the distillation is always the mean over all positions
    Returns two scalars in nats, which may get different gradients from above. Besides the inputs,
    three numbers per pixel (five unless temperature is 1) live until backward, which then makes the
    gradient; channels_last logits get a channels_last gradient.
    Raises ConfigError for an unknown reduction, an alpha or temperature that is not above 0, shapes
    that do not fit, fewer new than old channels, and on the CPU for labels that are no channel.
    """
    knobs = _Knobs(old_logits.shape[1], ignore_index, alpha, temperature)
    _check(new_logits, old_logits, labels, knobs, reduction)
    with torch.autocast(new_logits.device.type, enabled=False):
        losses: tuple[Tensor, Tensor] = _UnbiasedLosses.apply(
            new_logits, old_logits.detach(), labels, knobs, reduction
        )
    return losses


class _Knobs(NamedTuple):
    num_old: int
    ignore_index: int
    alpha: float
    temperature: float


class _UnbiasedLosses(torch.autograd.Function):
    """Sums over pieces in forward; in backward the gradient, from the kept log-sums."""

    @staticmethod
    def forward(
        ctx: Any, new: Tensor, old: Tensor, labels: Tensor, knobs: _Knobs, reduction: str
    ) -> tuple[Tensor, Tensor]:
        positions = labels.numel()
        counted: Tensor | int = positions
        if reduction == "valid":
            counted = (labels != knobs.ignore_index).sum().clamp(min=1)
        divisors = (counted, positions * knobs.num_old / knobs.temperature**2)

        num_kept = 3 if knobs.temperature == 1 else 5
        shape = (len(new), num_kept, positions // len(new))
        kept = torch.empty(shape, dtype=compute_dtype(new), device=new.device)
        values = _fused(_values, new.device)
        sums = kept.new_zeros(2)
        for at, *inputs in _pieces(new, old, labels):
            sums += values(*inputs, kept[at], knobs)
        if ctx.needs_input_grad[0]:
            _keep(ctx, new, old, labels, kept)
            ctx.knobs, ctx.divisors = knobs, divisors
        return sums[0] / divisors[0], sums[1] / divisors[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        new, old, labels, kept = _kept(ctx)
        weights = [grad / by for grad, by in zip(grad_outputs, ctx.divisors, strict=True)]
        like = torch.channels_last if _is_channels_last(new) else torch.contiguous_format
        gradient = torch.empty_like(new, memory_format=like)
        flat_gradient = gradient.flatten(2)  # a view, in either format
        fill = _fused(_fill_gradient, new.device)
        for at, *inputs in _pieces(new, old, labels):
            fill(flat_gradient[at], *inputs, kept[at], *weights, ctx.knobs)
        return gradient, None, None, None, None


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
    # On a CPU a look whether maxima are needed costs less than they do, most of all channels_last;
    # compiled, it would split the function in two.
    if logits.is_cpu and not torch.compiler.is_compiling():
        exps = (logits * LOG2_E).exp2_()
        sums = exps.sum(dim=1)
        low, high = sums.aminmax()
        if low > 1 / LARGE and high < LARGE:
            return exps, sums, sums.log()
    # A finite maximum keeps -inf - max from being NaN.
    maximum = logits.amax(dim=1).clamp_(min=torch.finfo(logits.dtype).min)
    exps = _exp(logits - maximum.unsqueeze(1))
    sums = exps.sum(dim=1)
    return exps, sums, sums.log().add_(maximum)


def _exp(fresh: Tensor) -> Tensor:
    """exp, in place. On a CPU torch's exp2 can be four times as fast as its exp."""
    return fresh.mul_(LOG2_E).exp2_()


def _values(new: Tensor, old: Tensor, labels: Tensor, kept: Tensor, knobs: _Knobs) -> Tensor:
    """[2]: the sums over pixels of cross-entropy and distillation, the latter over classes too.

    new: [b, C, n]; old: [b, num_old, n]; labels: [b, n]
    kept: [b, 3 or 5, n], filled with what the gradient needs: the teacher's log-sum and those of
        the old and new classes, at temperature 1 and, if it is another, at that
    """
    num_old = knobs.num_old
    sums = _LogSums.of_logits(new, num_old)
    total = sums.total()
    kept[:, 1], kept[:, 2] = sums.old, sums.new

    is_valid, is_new = _kinds(labels, knobs)
    at = labels.where(is_new, 0)
    truth = torch.where(is_new, new.gather(1, at.unsqueeze(1)).squeeze(1), sums.known)
    cross_entropy = (total - truth).where(is_valid, 0.0)

    if knobs.temperature != 1:
        new = new / knobs.temperature
        sums = _LogSums.of_logits(new, num_old)
        total = sums.total()
        kept[:, 3], kept[:, 4] = sums.old, sums.new
    teacher, normaliser, kept[:, 0] = _exponentials(_sharpened(old, knobs))
    unknown = teacher[:, 0] * sums.unknown()
    agreement = teacher[:, 1:].mul_(new[:, 1:num_old]).sum(dim=1) + unknown
    distillation = total - agreement / normaliser
    return torch.stack([cross_entropy.sum(), distillation.sum()])


def _fill_gradient(
    out: Tensor,
    new: Tensor,
    old: Tensor,
    labels: Tensor,
    kept: Tensor,
    ce_weight: Tensor,
    kd_weight: Tensor,
    knobs: _Knobs,
) -> None:
    """Write the gradient of the two weighted sums of `_values` to out, [b, C, n]."""
    num_old = knobs.num_old
    kd_weight = kd_weight / knobs.temperature
    teacher = _exp(_sharpened(old, knobs) - kept[:, :1]).mul_(kd_weight)
    is_valid, is_new = _kinds(labels, knobs)
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


def _kinds(labels: Tensor, knobs: _Knobs) -> tuple[Tensor, Tensor]:
    """[b, n] bool: pixels that are not ignored, and those of them with a new class."""
    is_valid = labels != knobs.ignore_index
    return is_valid, is_valid & (labels >= knobs.num_old)


def _sharpened(old: Tensor, knobs: _Knobs) -> Tensor:
    """The old logits of which the teacher is the softmax."""
    sharpness = knobs.alpha / knobs.temperature
    return old if sharpness == 1 else old * sharpness


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


def _pieces(
    new: Tensor, old: Tensor, labels: Tensor
) -> Iterator[tuple[Any, Tensor, Tensor, Tensor]]:
    """Pieces of [B, C, H*W], whole images if they are small: where they are, and the inputs there.

    Logits come in the precision of the loss, with channels or pixels as neighbours, as they were.
    """
    dtype = compute_dtype(new)
    new, old, labels = new.flatten(2), old.flatten(2), labels.flatten(1)
    num_images, num_channels, pixels = new.shape
    fewest, most = CPU_PIECE if new.is_cpu else GPU_PIECE
    limit = max(1, min(max(new.numel() // NUM_PIECES, fewest), most) // num_channels)
    images = max(1, limit // pixels)
    for image in range(0, num_images, images):
        for pixel in range(0, pixels, limit):
            rows, columns = slice(image, image + images), slice(pixel, pixel + limit)
            at = rows, slice(None), columns
            yield at, new[at].to(dtype), old[at].to(dtype), labels[rows, columns]


def _is_channels_last(maps: Tensor) -> bool:
    channels_last = maps.is_contiguous(memory_format=torch.channels_last)
    return channels_last and not maps.is_contiguous()


def _keep(ctx: Any, *tensors: Tensor) -> None:
    """Save for backward, also tensors of a model under inference mode, which autograd refuses."""
    ctx.constants = [tensor if tensor.is_inference() else None for tensor in tensors]
    ctx.save_for_backward(*[None if tensor.is_inference() else tensor for tensor in tensors])


def _kept(ctx: Any) -> list[Tensor]:
    pairs = zip(ctx.saved_tensors, ctx.constants, strict=True)
    return [constant if saved is None else saved for saved, constant in pairs]


def _fused(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """On a GPU the function compiled to few kernels, as long as that works; else as it is."""
    return _compiled(function) if device.type == "cuda" else function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(function, dynamic=True)
    works = True

    def call(*arguments: Any) -> Any:
        nonlocal works
        if works:
            try:
                return compiled(*arguments)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of the compiler, Triton or the C compiler it starts
                works = False
                warnings.warn(
                    f"torch.compile of the unbiased losses failed, they run unfused: {error}",
                    stacklevel=2,
                )
        return function(*arguments)

    return call


def _check(new: Tensor, old: Tensor, labels: Tensor, knobs: _Knobs, reduction: str) -> None:
    check_choice("reduction", reduction, REDUCTIONS)
    check_positive("alpha", knobs.alpha)
    check_positive("temperature", knobs.temperature)
    check_logits(new, old)
    batch, channels, height, width = new.shape
    if not new.numel():
        raise ConfigError(
            f"new_logits {list(new.shape)} hold no pixel: there is nothing to average"
        )
    ignore_index = knobs.ignore_index
    check_labels("labels", labels, batch, height, width, limit=channels, ignore_index=ignore_index)
