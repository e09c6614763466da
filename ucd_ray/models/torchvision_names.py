"""From torchvision's names of tensors to timm's.

ResNets have the same names in both.  MobileNetV2 has not; its names are translated one by one, not
by order, because safetensors files are sorted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def to_timm_names(state: dict[str, Tensor], timm_name: str) -> dict[str, Tensor]:
    """`state` with torchvision's names of MobileNetV2 turned into timm's; others as they are."""
    if not timm_name.startswith("mobilenetv2_") or "features.0.0.weight" not in state:
        return state
    return {_mobilenetv2_name(key): value for key, value in state.items()}


_MOBILENETV2_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
"""Inverted residual blocks per stage (MobileNetV2, table 2)."""
_MOBILENETV2_PLACES = tuple(
    f"blocks.{stage}.{block}"
    for stage, count in enumerate(_MOBILENETV2_BLOCKS)
    for block in range(count)
)
_OUTSIDE_BLOCKS = {
    "features.0.0": "conv_stem",
    "features.0.1": "bn1",
    "features.18.0": "conv_head",
    "features.18.1": "bn2",
    "classifier.1": "classifier",
}
# The first block has no expansion: its depthwise convolution comes first.
_FIRST_BLOCK = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
_LATER_BLOCK = {
    "0.0": "conv_pw",
    "0.1": "bn1",
    "1.0": "conv_dw",
    "1.1": "bn2",
    "2": "conv_pwl",
    "3": "bn3",
}


def _mobilenetv2_name(key: str) -> str:
    """One name: features.2.conv.0.1.bias -> blocks.1.0.bn1.bias; unknown names stay."""
    layer, _, kind = key.rpartition(".")
    if layer in _OUTSIDE_BLOCKS:
        return f"{_OUTSIDE_BLOCKS[layer]}.{kind}"
    match = re.fullmatch(r"features\.(\d+)\.conv\.([\d.]+)", layer)
    if match is None or not 1 <= int(match[1]) <= len(_MOBILENETV2_PLACES):
        return key
    parts = _FIRST_BLOCK if match[1] == "1" else _LATER_BLOCK
    if match[2] not in parts:
        return key
    return f"{_MOBILENETV2_PLACES[int(match[1]) - 1]}.{parts[match[2]]}.{kind}"
