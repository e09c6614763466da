"""What the losses share: precision and reduction."""

from __future__ import annotations

import torch
from torch import Tensor

from ucd_ray.errors import ConfigError, did_you_mean


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The precision a loss of this tensor is computed in: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def in_full_precision(tensor: Tensor) -> Tensor:
    """The tensor in its `compute_dtype`."""
    return tensor.to(compute_dtype(tensor))


def reduce_map(loss_map: Tensor, reduction: str, *, valid: Tensor | None = None) -> Tensor:
    """Reduce a per-pixel loss map.

    loss_map: [B, H, W], 0 where a pixel does not count
    valid: [B, H, W] bool, the pixels that count; offers the reduction "valid", the mean over them
    Returns the map for "none", else a scalar: "mean" over all positions, "sum".
    Raises ConfigError for any other reduction.
    """
    if reduction == "none":
        return loss_map
    if reduction == "mean":
        return loss_map.mean()
    if reduction == "sum":
        return loss_map.sum()
    if reduction == "valid" and valid is not None:
        return loss_map.sum() / valid.sum().clamp(min=1)
    known = ["none", "mean", "sum"] if valid is None else ["none", "mean", "valid", "sum"]
    raise ConfigError(f"unknown reduction '{reduction}'; {did_you_mean(reduction, known)}")


def check_num_old(num_old: int, num_channels: int) -> None:
    """Raise ConfigError unless 1 <= num_old <= num_channels (the channels of the new model)."""
    if not 1 <= num_old <= num_channels:
        raise ConfigError(
            f"num_old ({num_old}) must lie between 1 and the {num_channels} channels of the new "
            "model; it counts the channels of the old model, background included"
        )
