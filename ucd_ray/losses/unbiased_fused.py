"""The unbiased losses as two kernels, one for values and one for the gradient, for CUDA.

A program takes a block of an image's pixels, some channels at a time. Logits are read once per kernel, in
their own precision and memory format; the arithmetic is that of `unbiased_logs`, in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ucd_ray.losses.unbiased_knobs import Knobs

PIXELS, CHANNELS = 128, 16  # of a tile
LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)  # a maximum of nothing, and no infinity


def values(new: Tensor, old: Tensor, labels: Tensor, kept: Tensor, knobs: Knobs) -> Tensor:
    """As `unbiased_logs.values`, of logits of any floating point type but float64."""
    grid = (triton.cdiv(labels.shape[1], PIXELS), len(labels))
    sums = kept.new_empty(*grid, 2)
    _values[grid](sums, *_common(new, old, labels, kept, knobs))
    return sums.sum(dim=(0, 1))


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
    """As `unbiased_logs.fill_gradient`; out may be of any type too."""
    grid = (triton.cdiv(labels.shape[1], PIXELS), len(labels))
    common = _common(new, old, labels, kept, knobs)
    _gradient[grid](out, *out.stride(), ce_weight.float(), kd_weight.float(), *common)


def _common(
    new: Tensor, old: Tensor, labels: Tensor, kept: Tensor, knobs: Knobs
) -> tuple[object, ...]:
    """The last arguments of both kernels, in their order."""
    tensors = (new, *new.stride(), old, *old.stride(), labels.contiguous(), kept)
    sizes = (new.shape[1], knobs.num_old, labels.shape[1], kept.shape[1], knobs.ignore_index)
    return (
        *tensors,
        *sizes,
        1 / knobs.temperature,
        knobs.sharpness,
        knobs.temperature != 1,
        PIXELS,
        CHANNELS,
    )


@triton.jit
def _grown(maximum, total, logits):  # type: ignore[no-untyped-def]
    """A running logsumexp, [n] and [n], with more logits, [c, n]; and what its old total shrinks by."""
    larger = tl.maximum(maximum, tl.max(logits, axis=0))
    shrink = tl.exp(maximum - larger)
    return larger, total * shrink + tl.sum(tl.exp(logits - larger[None, :]), axis=0), shrink


@triton.jit
def _log_add(a, b):  # type: ignore[no-untyped-def]
    """log(exp(a) + exp(b)); either may be -inf."""
    larger = tl.maximum(tl.maximum(a, b), LOWEST)
    return larger + tl.log(tl.exp(a - larger) + tl.exp(b - larger))


@triton.jit
def _values(  # type: ignore[no-untyped-def]
    sums,  # [blocks, B, 2], written: cross-entropy and distillation of the block
    new,  # [B, C, P]
    new_image,
    new_channel,
    new_pixel,
    old,  # [B, num_old, P]
    old_image,
    old_channel,
    old_pixel,
    labels,  # [B, P]
    kept,  # [B, num_kept, P], written
    num_channels,
    num_old,
    num_pixels,
    num_kept,
    ignore_index,
    inverse_temperature,
    sharpness,
    is_tempered: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * block_pixels + tl.arange(0, block_pixels)
    is_pixel = pixel < num_pixels
    news = new + image * new_image + pixel.to(tl.int64) * new_pixel
    olds = old + image * old_image + pixel.to(tl.int64) * old_pixel
    channel = tl.arange(0, block_channels).to(tl.int64)

    background = tl.load(news, mask=is_pixel, other=0.0).to(tl.float32)
    maximum = tl.full([block_pixels], LOWEST, tl.float32)
    total = tl.zeros([block_pixels], tl.float32)
    soft_maximum, soft_total = maximum, total
    # The teacher's logsumexp, and the sum of its exponentials times the student's logits.
    first = tl.load(olds, mask=is_pixel, other=0.0).to(tl.float32) * sharpness
    teacher_maximum, teacher_total = first, total + 1.0
    agreement = total
    for start in range(1, num_old, block_channels):
        at = start + channel
        is_there = (at < num_old)[:, None] & is_pixel[None, :]
        logits = tl.load(news[None, :] + at[:, None] * new_channel, mask=is_there, other=0.0)
        logits = logits.to(tl.float32)
        guess = tl.load(olds[None, :] + at[:, None] * old_channel, mask=is_there, other=0.0)
        guess = tl.where(is_there, guess.to(tl.float32) * sharpness, float("-inf"))
        scaled = logits * inverse_temperature
        teacher_maximum, teacher_total, shrink = _grown(teacher_maximum, teacher_total, guess)
        agreement = agreement * shrink
        agreement += tl.sum(tl.exp(guess - teacher_maximum[None, :]) * scaled, axis=0)
        logits = tl.where(is_there, logits, float("-inf"))
        maximum, total, shrink = _grown(maximum, total, logits)
        if is_tempered:
            scaled = tl.where(is_there, scaled, float("-inf"))
            soft_maximum, soft_total, shrink = _grown(soft_maximum, soft_total, scaled)
    old_sum = maximum + tl.log(total)
    soft_old_sum = soft_maximum + tl.log(soft_total)

    maximum = tl.full([block_pixels], LOWEST, tl.float32)
    total = tl.zeros([block_pixels], tl.float32)
    soft_maximum, soft_total = maximum, total
    for start in range(num_old, num_channels, block_channels):
        at = start + channel
        is_there = (at < num_channels)[:, None] & is_pixel[None, :]
        logits = tl.load(news[None, :] + at[:, None] * new_channel, mask=is_there, other=0.0)
        logits = tl.where(is_there, logits.to(tl.float32), float("-inf"))
        maximum, total, shrink = _grown(maximum, total, logits)
        if is_tempered:
            scaled = logits * inverse_temperature
            soft_maximum, soft_total, shrink = _grown(soft_maximum, soft_total, scaled)
    new_sum = maximum + tl.log(total)
    soft_new_sum = soft_maximum + tl.log(soft_total)

    label = tl.load(labels + image * num_pixels + pixel, mask=is_pixel, other=0)
    is_valid = is_pixel & (label != ignore_index)
    is_new = is_valid & (label >= num_old) & (label < num_channels)
    known = _log_add(background, old_sum)
    truth = tl.load(news + label * new_channel, mask=is_new, other=0.0).to(tl.float32)
    all_sum = _log_add(known, new_sum)
    entropy = tl.where(is_valid, all_sum - tl.where(is_new, truth, known), 0.0)

    kept_at = kept + image * num_kept * num_pixels + pixel
    tl.store(kept_at, teacher_maximum + tl.log(teacher_total), mask=is_pixel)
    tl.store(kept_at + num_pixels, old_sum, mask=is_pixel)
    tl.store(kept_at + 2 * num_pixels, new_sum, mask=is_pixel)
    if is_tempered:
        tl.store(kept_at + 3 * num_pixels, soft_old_sum, mask=is_pixel)
        tl.store(kept_at + 4 * num_pixels, soft_new_sum, mask=is_pixel)
        background = background * inverse_temperature
        new_sum = soft_new_sum
        all_sum = _log_add(_log_add(background, soft_old_sum), new_sum)
    agreement += tl.exp(first - teacher_maximum) * _log_add(background, new_sum)
    distillation = tl.where(is_pixel, all_sum - agreement / teacher_total, 0.0)
    here = sums + 2 * (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1))
    tl.store(here, tl.sum(entropy, axis=0))
    tl.store(here + 1, tl.sum(distillation, axis=0))


@triton.jit
def _slopes(background, old_sum, new_sum, total, total_less_known, unknown):  # type: ignore[no-untyped-def]
    """As `unbiased_logs._slopes`."""
    known_sum = _log_add(background, old_sum)
    new = total * tl.sigmoid(new_sum - known_sum)
    known = total_less_known - new
    old = known * tl.sigmoid(old_sum - background)
    moved = unknown * tl.sigmoid(new_sum - background)
    return known - old - (unknown - moved), old, new - moved


@triton.jit
def _gradient(  # type: ignore[no-untyped-def]
    out,  # [B, C, P], written
    out_image,
    out_channel,
    out_pixel,
    ce_weight,  # scalars in memory
    kd_weight,
    new,  # from here on as in _values
    new_image,
    new_channel,
    new_pixel,
    old,
    old_image,
    old_channel,
    old_pixel,
    labels,
    kept,
    num_channels,
    num_old,
    num_pixels,
    num_kept,
    ignore_index,
    inverse_temperature,
    sharpness,
    is_tempered: tl.constexpr,
    block_pixels: tl.constexpr,
    block_channels: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * block_pixels + tl.arange(0, block_pixels)
    is_pixel = pixel < num_pixels
    news = new + image * new_image + pixel.to(tl.int64) * new_pixel
    olds = old + image * old_image + pixel.to(tl.int64) * old_pixel
    outs = out + image * out_image + pixel.to(tl.int64) * out_pixel
    channel = tl.arange(0, block_channels).to(tl.int64)
    ce = tl.load(ce_weight)
    kd = tl.load(kd_weight) * inverse_temperature

    kept_at = kept + image * num_kept * num_pixels + pixel
    teacher_sum = tl.load(kept_at, mask=is_pixel, other=0.0)
    old_sum = tl.load(kept_at + num_pixels, mask=is_pixel, other=0.0)
    new_sum = tl.load(kept_at + 2 * num_pixels, mask=is_pixel, other=0.0)
    background = tl.load(news, mask=is_pixel, other=0.0).to(tl.float32)
    first_guess = tl.load(olds, mask=is_pixel, other=0.0).to(tl.float32) * sharpness
    unknown = tl.exp(first_guess - teacher_sum) * kd
    label = tl.load(labels + image * num_pixels + pixel, mask=is_pixel, other=0)
    is_valid = is_pixel & (label != ignore_index)
    is_new = is_valid & (label >= num_old)
    valid = tl.where(is_valid, ce, 0.0)
    not_background = tl.where(is_new, ce, 0.0)
    if is_tempered:
        zero = tl.zeros([block_pixels], tl.float32)
        first, old_slope, new_slope = _slopes(
            background, old_sum, new_sum, valid, not_background, zero
        )
        soft_old_sum = tl.load(kept_at + 3 * num_pixels, mask=is_pixel, other=0.0)
        soft_new_sum = tl.load(kept_at + 4 * num_pixels, mask=is_pixel, other=0.0)
        soft_first, soft_old_slope, soft_new_slope = _slopes(
            background * inverse_temperature,
            soft_old_sum,
            soft_new_sum,
            zero + kd,
            zero + kd,
            unknown,
        )
        first += soft_first
    else:
        first, old_slope, new_slope = _slopes(
            background, old_sum, new_sum, valid + kd, not_background + kd, unknown
        )
    tl.store(outs, first, mask=is_pixel)

    for start in range(1, num_old, block_channels):
        at = start + channel
        is_there = (at < num_old)[:, None] & is_pixel[None, :]
        logits = tl.load(news[None, :] + at[:, None] * new_channel, mask=is_there, other=0.0)
        logits = logits.to(tl.float32)
        guess = tl.load(olds[None, :] + at[:, None] * old_channel, mask=is_there, other=0.0)
        teacher = tl.exp(guess.to(tl.float32) * sharpness - teacher_sum[None, :]) * kd
        slope = tl.exp(logits - old_sum[None, :]) * old_slope[None, :]
        if is_tempered:
            softmax = tl.exp(logits * inverse_temperature - soft_old_sum[None, :])
            slope += softmax * soft_old_slope[None, :]
        tl.store(outs[None, :] + at[:, None] * out_channel, slope - teacher, mask=is_there)
    for start in range(num_old, num_channels, block_channels):
        at = start + channel
        is_there = (at < num_channels)[:, None] & is_pixel[None, :]
        logits = tl.load(news[None, :] + at[:, None] * new_channel, mask=is_there, other=0.0)
        logits = logits.to(tl.float32)
        slope = tl.exp(logits - new_sum[None, :]) * new_slope[None, :]
        if is_tempered:
            softmax = tl.exp(logits * inverse_temperature - soft_new_sum[None, :])
            slope += softmax * soft_new_slope[None, :]
        is_truth = (at[:, None] == label[None, :]) & is_new[None, :]
        slope -= tl.where(is_truth, ce, 0.0)
        tl.store(outs[None, :] + at[:, None] * out_channel, slope, mask=is_there)
