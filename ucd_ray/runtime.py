"""How a run computes on this machine: device, precision, memory layout; each with its reason."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ucd_ray.config import ComputeConfig


@dataclass(frozen=True)
class Runtime:
    """The chosen way to compute."""

    device: torch.device
    autocast: torch.dtype | None  # None: float32
    memory_format: torch.memory_format
    fused_optimizer: bool
    reason: str

    @property
    def precision(self) -> str:
        """`float32` or `bfloat16`: part of a step's key."""
        return "float32" if self.autocast is None else "bfloat16"


def choose_runtime(config: ComputeConfig, *, local_rank: int = 0) -> Runtime:
    """CUDA with bf16 autocast, channels_last and a fused optimizer where there is a card; else CPU."""
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        name, has_bf16 = torch.cuda.get_device_name(device), torch.cuda.is_bf16_supported()
    else:
        device, name, has_bf16 = torch.device("cpu"), "CPU", False
    cuda = device.type == "cuda"
    wanted = config.precision
    low = wanted == "bfloat16" or (wanted == "auto" and cuda and has_bf16)
    last = config.channels_last
    why = "asked for" if wanted != "auto" else ("has bf16" if low else "auto")
    reason = (
        f"{name}: {'bfloat16 autocast' if low else 'float32'} ({why}), "
        f"{'channels_last' if last else 'contiguous'}, {'fused' if cuda else 'plain'} SGD"
    )
    return Runtime(
        device=device,
        autocast=torch.bfloat16 if low else None,
        memory_format=torch.channels_last if last else torch.contiguous_format,
        fused_optimizer=cuda,
        reason=reason,
    )


def autocast(runtime: Runtime) -> torch.autocast:
    """The precision of forward passes."""
    enabled = runtime.autocast is not None
    return torch.autocast(runtime.device.type, dtype=runtime.autocast, enabled=enabled)


def to_device(runtime: Runtime, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images in the run's memory format, and labels as int64, both on its device."""
    images = images.to(runtime.device, non_blocking=True, memory_format=runtime.memory_format)
    return images, labels.to(runtime.device, non_blocking=True).long()


@contextlib.contextmanager
def determinism(enabled: bool) -> Iterator[None]:
    """Deterministic algorithms inside the block; an operation that has none warns by name."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = not enabled
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[2]
