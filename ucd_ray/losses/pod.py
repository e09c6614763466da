"""Local POD: distillation of pooled maps at several scales (PLOP)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ucd_ray.errors import ConfigError
from ucd_ray.losses.common import check_num_old, check_shape, in_full_precision


def local_pod(
    new_maps: Sequence[Tensor], old_maps: Sequence[Tensor], *, scales: Sequence[int] = (1, 2, 4)
) -> list[Tensor]:
    """Distance between the pooled squares of each pair of maps (PLOP, local POD).

    new_maps, old_maps: equally many maps [B, C, h, w], one shape per pair; no gradient to old ones
    scales: into how many strips per side a map is cut
    Returns one scalar per pair: the batch mean of || e_old - e_new ||_2, where e holds, for every
    one of the scale x scale regions, the means over its width and over its height. The factor,
    sqrt(C_now / N) and the mean over maps belong to the caller. If a scale does not divide a side,
    some regions are one pixel longer, so that every pixel counts.
    A mean over images: with equally large shares of a batch, the mean of the ranks' gradients is
    the gradient of the whole batch.
    Raises ConfigError for lists of unequal length, pairs of unequal shapes, scales below 1 or a map
    smaller than the largest scale.
    """
    if len(new_maps) != len(old_maps):
        raise ConfigError(
            f"local_pod compares maps pairwise, but got {len(new_maps)} new and "
            f"{len(old_maps)} old ones"
        )
    if not scales or min(scales) < 1:
        raise ConfigError(f"scales ({list(scales)}) must be numbers of strips from 1 on: [1, 2, 4]")
    for position, (new, old) in enumerate(zip(new_maps, old_maps, strict=True)):
        check_shape(f"new_maps[{position}]", new, "B", "C", "h", "w")
        check_shape(f"old_maps[{position}]", old, *new.shape)
    # vector_norm's gradient is 0 where the models agree; a square root's would be NaN.
    return [
        torch.linalg.vector_norm(_embed(new, scales) - _embed(old.detach(), scales), dim=1).mean()
        for new, old in zip(new_maps, old_maps, strict=True)
    ]


def background_sum(logits: Tensor, num_old: int) -> Tensor:
    """The new model's logits with the channels of the old: PLOP compares small logits like this.

    logits: [B, C, h, w]
    Returns [B, num_old, h, w]: the logits (not the probabilities) of all new classes are added to
    the background's, the old classes' stay.
    Raises ConfigError for another shape or an impossible num_old.
    """
    check_shape("logits", logits, "B", "C", "h", "w")
    check_num_old(num_old, logits.shape[1])
    logits = in_full_precision(logits)
    background = logits[:, :1] + logits[:, num_old:].sum(dim=1, keepdim=True)
    return torch.cat([background, logits[:, 1:num_old]], dim=1)


def _embed(maps: Tensor, scales: Sequence[int]) -> Tensor:
    """Pool [B, C, h, w] to [B, sum over scales of C * scale * (h + w)].

    Means over the width of a full-height strip are the means over the width of the regions it
    consists of, one after the other; so only one side has to be cut at a time.
    """
    if min(maps.shape[-2:]) < max(scales):
        raise ConfigError(
            f"local_pod cannot cut a map of {maps.shape[-2]}x{maps.shape[-1]} into {max(scales)} "
            "strips per side; use smaller scales or a larger crop"
        )
    squares = in_full_precision(maps).square()
    pooled = [
        strip.mean(dim=side).flatten(1)
        for scale in scales
        for side in (-1, -2)
        for strip in squares.tensor_split(scale, dim=side)
    ]
    return torch.cat(pooled, dim=1)
