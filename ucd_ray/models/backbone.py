"""Backbones: timm feature extractors, dilated to output stride 8 or 16."""

from __future__ import annotations

import difflib

import timm
from torch import Tensor, nn

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.models import BACKBONES

__all__ = ["BACKBONES", "Backbone", "create_backbone"]


NUM_STAGES = 4  # the stages of a ResNet, whose maps PLOP compares


class Tap(nn.Module):
    """An activation that can keep what it gets: a residual stage's map before its last activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.keep = False
        self.kept: Tensor | None = None

    def forward(self, maps: Tensor) -> Tensor:
        """The activation of maps [B,C,h,w], which an in-place one must not overwrite if they are kept."""
        if not self.keep:
            return self.activation(maps)
        self.kept = maps
        return self.activation(maps.clone())

    def take(self) -> Tensor:
        """What the last forward kept."""
        assert self.kept is not None, "nothing kept yet"
        kept, self.kept = self.kept, None
        return kept


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
        self.taps = [tap for stage in _stages(body) if (tap := _tapped(stage)) is not None]

    def keep_stages(self) -> None:
        """From now on keep the maps that `take_stages` gives, at the price of their memory."""
        for tap in self.taps:
            tap.keep = True

    def take_stages(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps of the last four stages before their last activation; `maps` is what forward gave.

        Networks whose stages end without an activation (MobileNetV2) give their maps.
        """
        return [tap.take() for tap in self.taps] if self.taps else maps[-NUM_STAGES:]

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


def _stages(body: nn.Module) -> list[nn.Module]:
    """The stages of a ResNet; none for other networks."""
    names = [f"layer{number}" for number in range(1, NUM_STAGES + 1)]
    return [body.get_submodule(name) for name in names] if hasattr(body, names[-1]) else []


def _tapped(stage: nn.Module) -> Tap | None:
    """Puts a tap before the activation after the last residual sum of a stage."""
    assert isinstance(stage, nn.Sequential)
    block = stage[-1]
    for name in ("act3", "act2"):  # of a bottleneck, of a basic block
        if hasattr(block, name):
            tap = Tap(getattr(block, name))
            setattr(block, name, tap)
            return tap
    return None


def _timm_name(name: str) -> str:
    if name in BACKBONES:
        return BACKBONES[name]
    if timm.is_model(name):
        return name
    known = [*BACKBONES, *timm.list_models()]
    near = difflib.get_close_matches(name, known, n=1)
    hint = did_you_mean(name, near or BACKBONES)
    raise ConfigError(f"unknown model.backbone '{name}'; {hint}")
