"""MiB's two losses at once: unbiased cross-entropy and unbiased distillation, fast and small.

A softmax over background, old and new classes needs three numbers per pixel: the background logit
and the log-sum-exp over the old and over the new classes. From them follow both losses, and with
the logits also the gradient. So the forward pass keeps these numbers only, and the backward pass
makes the gradient of any weighting of the two losses in one go. On CUDA each is one kernel. Else both
work piece by piece, so that a piece stays in a CPU's cache, and logarithms are not taken where sums of
exponentials serve.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ucd_ray.errors import ConfigError
from ucd_ray.losses import unbiased_logs, unbiased_sums
from ucd_ray.losses.common import (
    check_choice,
    check_labels,
    check_logits,
    check_positive,
    compute_dtype,
)
from ucd_ray.losses.fallback import falls_back
from ucd_ray.losses.unbiased_knobs import Knobs

REDUCTIONS = ("mean", "valid")
# New logits in a piece: an eighth, since each temporary is as large as a piece, but not so few that
# the calls take longer than the work, nor on a CPU so many that they leave the cache.
NUM_PIECES = 8
CPU_PIECE = (2**17, 2**20)
GPU_PIECE = (2**20, 2**40)
BY_SUMS = ("cpu",)  # devices where a look whether sums are in range makes nothing wait


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
    knobs = Knobs(old_logits.shape[1], ignore_index, alpha, temperature)
    _check(new_logits, old_logits, labels, knobs, reduction)
    with torch.autocast(new_logits.device.type, enabled=False):
        losses: tuple[Tensor, Tensor] = _UnbiasedLosses.apply(
            new_logits, old_logits.detach(), labels, knobs, reduction
        )
    return losses


class _UnbiasedLosses(torch.autograd.Function):
    """Sums over pieces in forward; in backward the gradient, from the kept sums."""

    @staticmethod
    def forward(
        ctx: Any, new: Tensor, old: Tensor, labels: Tensor, knobs: Knobs, reduction: str
    ) -> tuple[Tensor, Tensor]:
        positions = labels.numel()
        counted: Tensor | int = positions
        if reduction == "valid":
            counted = (labels != knobs.ignore_index).sum().clamp(min=1)
        divisors = (counted, positions * knobs.num_old / knobs.temperature**2)

        num_kept = 3 if knobs.temperature == 1 else 5
        shape = (len(new), num_kept, positions // len(new))
        kept = torch.empty(shape, dtype=compute_dtype(new), device=new.device)
        values, _ = _passes(new)
        total, in_range = values(*_flat(new, old, labels), kept, knobs)
        if ctx.needs_input_grad[0]:
            _keep(ctx, new, old, labels, kept)
            ctx.knobs, ctx.divisors, ctx.in_range = knobs, divisors, in_range
        return total[0] / divisors[0], total[1] / divisors[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        new, old, labels, kept = _kept(ctx)
        weights = [grad / by for grad, by in zip(grad_outputs, ctx.divisors, strict=True)]
        like = torch.channels_last if _is_channels_last(new) else torch.contiguous_format
        gradient = torch.empty_like(new, memory_format=like)
        _, fill = _passes(new)
        flat = gradient.flatten(2)  # a view, in either format
        fill(flat, *_flat(new, old, labels), kept, *weights, ctx.knobs, ctx.in_range)
        return gradient, None, None, None, None


def _flat(new: Tensor, old: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return new.flatten(2), old.flatten(2), labels.flatten(1)


def _passes(new: Tensor) -> tuple[Callable[..., Any], Callable[..., None]]:
    """What makes the values, and what the gradient, of flat logits on this device."""
    is_fused = new.is_cuda and new.dtype != torch.float64
    return _fused_passes() if is_fused else (_values, _fill_gradient)


@functools.cache
def _fused_passes() -> tuple[Callable[..., Any], Callable[..., None]]:
    """Two kernels, or pieces without Triton, which PyTorch brings where it supports CUDA."""
    try:
        from ucd_ray.losses import unbiased_fused
    except ImportError:
        return _values, _fill_gradient

    def values(*arguments: Any) -> tuple[Tensor, list[bool]]:
        return unbiased_fused.values(*arguments), []

    def fill_gradient(*arguments: Any) -> None:
        unbiased_fused.fill_gradient(*arguments[:-1])

    told = "the fused kernels of the unbiased losses failed, they run piece by piece"
    return falls_back(values, _values, told), falls_back(fill_gradient, _fill_gradient, told)


def _values(
    new: Tensor, old: Tensor, labels: Tensor, kept: Tensor, knobs: Knobs
) -> tuple[Tensor, list[bool]]:
    """The sums over pixels of both losses, and of which pieces exponentials were summed."""
    total, in_range = kept.new_zeros(2), []
    for at, piece in _pieces(new, old, labels):
        sums = None
        if new.device.type in BY_SUMS:
            sums = unbiased_sums.values(*piece, kept[at], knobs)
        in_range.append(sums is not None)
        total += unbiased_logs.values(*piece, kept[at], knobs) if sums is None else sums
    return total, in_range


def _fill_gradient(
    out: Tensor,
    new: Tensor,
    old: Tensor,
    labels: Tensor,
    kept: Tensor,
    ce_weight: Tensor,
    kd_weight: Tensor,
    knobs: Knobs,
    in_range: list[bool],
) -> None:
    """Write the gradient of the weighted sums; a kernel, which sums no exponentials, may have made them."""
    for number, (at, piece) in enumerate(_pieces(new, old, labels)):
        summed = number < len(in_range) and in_range[number]
        fill = unbiased_sums.fill_gradient if summed else unbiased_logs.fill_gradient
        fill(out[at], *piece, kept[at], ce_weight, kd_weight, knobs)


def _pieces(
    new: Tensor, old: Tensor, labels: Tensor
) -> Iterator[tuple[Any, tuple[Tensor, Tensor, Tensor]]]:
    """Pieces of [B, C, P], whole images if they are small: where they are, and the inputs there.

    Logits come in the precision of the loss, with channels or pixels as neighbours, as they were.
    """
    dtype = compute_dtype(new)
    num_images, num_channels, pixels = new.shape
    fewest, most = CPU_PIECE if new.is_cpu else GPU_PIECE
    limit = max(1, min(max(new.numel() // NUM_PIECES, fewest), most) // num_channels)
    images = max(1, limit // pixels)
    for image in range(0, num_images, images):
        for pixel in range(0, pixels, limit):
            rows, columns = slice(image, image + images), slice(pixel, pixel + limit)
            at = rows, slice(None), columns
            yield at, (new[at].to(dtype), old[at].to(dtype), labels[rows, columns])


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


def _check(new: Tensor, old: Tensor, labels: Tensor, knobs: Knobs, reduction: str) -> None:
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
