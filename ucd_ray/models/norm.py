"""How batch normalisation behaves: per worker, synchronised, or frozen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

NormMode = Literal["batch", "sync", "frozen"]

_FROZEN = "is_frozen_norm"


def apply_norm_mode(module: nn.Module, mode: NormMode) -> None:
    """Set the mode of every batch norm inside `module`, in place; state dict names do not change.

    batch: statistics of each worker's images.  sync: statistics over all workers; between several
    workers PyTorch offers it on accelerators only.  frozen: stored statistics and untrained affine
    parameters, also in train mode.  Norms frozen before stay frozen.
    """
    if mode == "sync":
        frozen = [name for name, part in module.named_modules() if _is_frozen(part)]
        # timm's conversion, not torch's: torch's drops the activation inside timm's norm layers.
        convert_sync_batchnorm(module)
        for name in frozen:
            freeze_norm(module.get_submodule(name))
    elif mode == "frozen":
        for norm in norms(module):
            freeze_norm(norm)


def norms(module: nn.Module) -> Iterator[nn.Module]:
    """The batch norms inside `module`, synchronised ones included."""
    return (part for part in module.modules() if isinstance(part, _BatchNorm))


def freeze_norm(norm: nn.Module) -> None:
    """Use the stored statistics from now on and do not train the affine parameters."""
    setattr(norm, _FROZEN, True)
    norm.eval()
    norm.requires_grad_(False)


def set_train_mode(module: nn.Module) -> None:
    """Put `module` in train mode, its frozen norms excepted."""
    module.train()
    restore_frozen_norms(module)


def restore_frozen_norms(module: nn.Module) -> None:
    """Put the frozen norms inside `module` back to eval mode."""
    for part in module.modules():
        if _is_frozen(part):
            part.eval()


def _is_frozen(module: nn.Module) -> bool:
    return bool(getattr(module, _FROZEN, False))
