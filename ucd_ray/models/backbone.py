"""Backbones: timm feature extractors, dilated to output stride 8 or 16."""

from __future__ import annotations

import difflib

import timm
from torch import Tensor, nn

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.models import BACKBONES

__all__ = ["BACKBONES", "Backbone", "create_backbone"]


class Backbone(nn.Module):
    """A timm feature extractor with the facts that head and weight loader need.

    name: timm's name; channels: channels of each map; output_stride: image size / last map's size.
    """

    def __init__(self, name: str, body: nn.Module, channels: list[int], output_stride: int) -> None:
        super().__init__()
        self.name = name
        self.body = body
        self.channels = channels
        self.output_stride = output_stride

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B,3,H,W] -> the map after each stage, finest first; the last one is the body.

        For ResNets these are five, after their activation: the stem (stride 2) and layer1..layer4.
        """
        return self.body(images)


def create_backbone(name: str, output_stride: int) -> Backbone:
    """A randomly initialised backbone.

    name: a key of BACKBONES or a timm name.  Raises ConfigError for an unknown name and for a model
    that cannot be dilated to `output_stride` or gives no feature maps.
    """
    timm_name = _timm_name(name)
    if output_stride not in (8, 16):
        raise ConfigError(f"model.output_stride must be 8 or 16, got {output_stride}")
    refusal = (
        f"model.backbone '{name}' cannot be used: timm does not offer it with features_only and "
        f"output_stride={output_stride}; tested backbones: {', '.join(BACKBONES)}"
    )
    try:
        body = timm.create_model(
            timm_name, pretrained=False, features_only=True, output_stride=output_stride
        )
    # timm's models refuse an argument each in their own way, among them a bare assert.
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        raise ConfigError(refusal) from error
    if body.feature_info.reduction()[-1] != output_stride:
        raise ConfigError(refusal)
    return Backbone(timm_name, body, body.feature_info.channels(), output_stride)


def _timm_name(name: str) -> str:
    if name in BACKBONES:
        return BACKBONES[name]
    if timm.is_model(name):
        return name
    known = [*BACKBONES, *timm.list_models()]
    near = difflib.get_close_matches(name, known, n=1)
    hint = did_you_mean(name, near or BACKBONES)
    raise ConfigError(f"unknown model.backbone '{name}'; {hint}")
