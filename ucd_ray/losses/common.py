"""What the losses share: precision, reduction and checks of arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from ucd_ray.errors import ConfigError, did_you_mean

LOG2_E = math.log2(math.e)  # exp(x) = exp2(x * LOG2_E), and exp2 is the faster one
RARE = 1e-12  # below it, P(any) and the sum of the probabilities are equal in float64's eyes


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The precision a loss of this tensor is computed in: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def in_full_precision(tensor: Tensor) -> Tensor:
    """The tensor in its `compute_dtype`."""
    return tensor.to(compute_dtype(tensor))


def any_logit(logits: Tensor) -> Tensor:
    """Logit of the probability that at least one of independent sigmoid channels is on.

    logits: [B, n, H, W]
    Returns [B, 1, H, W]: log(exp(S) - 1) with S = sum_c softplus(z_c) = -log P(none is on).
    """
    total = -F.logsigmoid(-logits).sum(dim=1, keepdim=True)
    # A rare event's S may underflow where the sum of its odds, in logs, does not.
    common = total.clamp(min=RARE)
    return torch.where(
        total < RARE,
        logits.logsumexp(dim=1, keepdim=True),
        common + torch.log(-torch.expm1(-common)),
    )


def reduce_map(loss_map: Tensor, reduction: str, *, valid: Tensor | None = None) -> Tensor:
    """Reduce a per-pixel loss map.

    loss_map: [B, H, W], 0 where a pixel does not count
    valid: [B, H, W] bool, the pixels that count; offers the reduction "valid", the mean over them
    Returns the map for "none", else a scalar: "mean" over all positions, "sum".
    Raises ConfigError for any other reduction.
    """
    known = ["none", "mean", "sum"] if valid is None else ["none", "mean", "valid", "sum"]
    check_choice("reduction", reduction, known)
    if reduction == "none":
        return loss_map
    if reduction == "mean":
        return loss_map.mean()
    if reduction == "valid" and valid is not None:
        return loss_map.sum() / valid.sum().clamp(min=1)
    return loss_map.sum()


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise ConfigError unless value is one of the known ones."""
    known = list(known)
    if value not in known:
        raise ConfigError(f"unknown {name} '{value}'; {did_you_mean(value, known)}")


def check_positive(name: str, value: float) -> None:
    """Raise ConfigError unless value is a finite number above 0."""
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} ({value}) must be a finite number above 0, such as 1.0")


def check_num_old(num_old: int, num_channels: int) -> None:
    """Raise ConfigError unless 1 <= num_old <= num_channels (the channels of the new model)."""
    if not 1 <= num_old <= num_channels:
        raise ConfigError(
            f"num_old ({num_old}) must lie between 1 and the {num_channels} channels of the new "
            "model; it counts the channels of the old model, background included"
        )


def check_shape(name: str, tensor: Tensor, *sizes: int | str) -> None:
    """Raise ConfigError unless the tensor has these sizes; a letter stands for any size."""
    fits = tensor.dim() == len(sizes) and all(
        isinstance(wanted, str) or wanted == size
        for wanted, size in zip(sizes, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, sizes))
        raise ConfigError(f"{name} has the shape {list(tensor.shape)}; it must be [{wanted}]")


def check_labels(
    name: str, labels: Tensor, *sizes: int | str, limit: int, ignore_index: int = 255
) -> None:
    """Raise ConfigError unless labels are int64 of these sizes, in 0 .. limit-1 or ignore_index.

    Values are looked at on the CPU only: elsewhere that would wait for the device.
    """
    check_shape(name, labels, *sizes)
    if labels.dtype != torch.int64:
        raise ConfigError(f"{name} must be int64, not {labels.dtype}; {name}.long() would work")
    if labels.device.type != "cpu":
        return
    outside = ((labels < 0) | (labels >= limit)) & (labels != ignore_index)
    if outside.any():
        raise ConfigError(
            f"{name} holds {labels[outside][0].item()}; allowed are 0 to {limit - 1}, one per "
            f"channel or class, and {ignore_index} for what takes no part"
        )


def check_logits(new_logits: Tensor, old_logits: Tensor) -> int:
    """The number of old channels of a pair of maps [B, C, H, W] and [B, num_old, H, W].

    Raises ConfigError for other shapes or more old than new channels.
    """
    check_shape("new_logits", new_logits, "B", "C", "H", "W")
    batch, channels, height, width = new_logits.shape
    check_shape("old_logits", old_logits, batch, "num_old", height, width)
    check_num_old(old_logits.shape[1], channels)
    return old_logits.shape[1]
