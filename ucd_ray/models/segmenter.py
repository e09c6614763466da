"""The segmentation network: backbone, head and one classifier per step."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ucd_ray.models.backbone import Backbone, create_backbone
from ucd_ray.models.deeplab import DeepLabHead
from ucd_ray.models.norm import NormMode, apply_norm_mode, restore_frozen_norms
from ucd_ray.models.weights import Normalisation

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(slots=True)
class SegOutput:
    """What one forward pass gives; C classes so far, background first, then in learning order."""

    logits: Tensor
    """[B,C,H,W]: small_logits at image size (bilinear, align_corners=False)."""
    small_logits: Tensor
    """[B,C,h,w]: what the classifiers give."""
    features: Tensor
    """[B,D,h,w]: what the classifiers read."""
    body: Tensor
    """[B,Cb,h,w]: the last stage of the backbone."""
    maps: list[Tensor]
    """The maps of all backbone stages, finest first; the last one is body."""
    stages: list[Tensor] = field(default_factory=list)
    """Those of the last four stages before their last activation, after `Segmenter.keep_stages`."""


class Segmenter(nn.Module):
    """Segments images into background and the classes of all steps so far.

    mean and std are buffers in units of pixels (0..255) and travel with the state dict, because
    weights only make sense with the normalisation they were trained under.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        head: DeepLabHead,
        normalisation: Normalisation,
        num_classes_first: int,
    ) -> None:
        """num_classes_first: background + classes of step 0."""
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.classifiers = nn.ModuleList([nn.Conv2d(head.width, num_classes_first, 1)])
        self.register_buffer("mean", 255 * torch.tensor(normalisation.mean).view(1, 3, 1, 1))
        self.stages_kept = False
        self.register_buffer("std", 255 * torch.tensor(normalisation.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> SegOutput:
        """images: [B,3,H,W] RGB, uint8 or float, 0..255."""
        maps = self.backbone((images - self.mean) / self.std)
        features = self.head(maps[-1])
        small_logits = torch.cat([layer(features) for layer in self.classifiers], dim=1)
        logits = F.interpolate(
            small_logits, size=images.shape[-2:], mode="bilinear", align_corners=False
        )
        stages = self.backbone.take_stages(maps) if self.stages_kept else []
        return SegOutput(logits, small_logits, features, maps[-1], maps, stages)

    def keep_stages(self) -> None:
        """From now on outputs carry `stages`."""
        self.stages_kept = True
        self.backbone.keep_stages()

    def train(self, mode: bool = True) -> Segmenter:
        """As nn.Module.train, but frozen norms stay in eval mode."""
        super().train(mode)
        restore_frozen_norms(self)
        return self

    @property
    def classes_per_step(self) -> tuple[int, ...]:
        """Number of channels that each step added; the first counts background."""
        return tuple(layer.out_channels for layer in self._layers())

    @property
    def num_classes(self) -> int:
        """Number of channels, background included."""
        return sum(self.classes_per_step)

    @torch.no_grad()
    def grow(self, num_new: int, *, background_init: bool) -> None:
        """Append the classifier of the next step.

        background_init (MiB): each new class starts as a copy of the background, and all of them
        share the background's old probability in equal parts, so that old classes keep theirs:
        w_new = w_bg, b_new = b_bg - log(N + 1), b_bg <- b_bg - log(N + 1).
        Else PyTorch's default for a convolution, drawn from the global seed.
        """
        first = self._layers()[0]
        layer = nn.Conv2d(first.in_channels, num_new, 1)
        layer.to(device=first.weight.device, dtype=first.weight.dtype)
        if background_init:
            assert first.bias is not None
            assert layer.bias is not None
            first.bias[0] -= math.log(num_new + 1)
            layer.weight.copy_(first.weight[:1].expand_as(layer.weight))
            layer.bias.fill_(first.bias[0])
        self.classifiers.append(layer)

    def _layers(self) -> list[nn.Conv2d]:
        return [cast(nn.Conv2d, layer) for layer in self.classifiers]


def build_segmenter(
    *,
    backbone: str,
    output_stride: int,
    classes_per_step: Sequence[int],
    normalisation: Normalisation,
    norm: NormMode = "batch",
    freeze_pooling_norm: bool = False,
    width: int = 256,
) -> Segmenter:
    """A randomly initialised network with one classifier per entry of `classes_per_step`.

    A checkpoint of the same steps loads with strict=True, whatever `norm` it was trained with.
    freeze_pooling_norm: needed when a micro-batch holds one image (see DeepLabHead).
    Raises ConfigError for a backbone that cannot be used.
    """
    body = create_backbone(backbone, output_stride)
    head = DeepLabHead(body.channels[-1], width, output_stride, freeze_pooling_norm)
    segmenter = Segmenter(body, head, normalisation, classes_per_step[0])
    for num_new in classes_per_step[1:]:
        segmenter.grow(num_new, background_init=False)
    apply_norm_mode(segmenter, norm)
    return segmenter


def freeze(module: AnyModule) -> AnyModule:
    """`module` itself, in eval mode and without gradients."""
    module.eval()
    module.requires_grad_(False)
    return module


def frozen_copy(segmenter: Segmenter) -> Segmenter:
    """An independent copy to distil from: eval mode, no gradients."""
    return freeze(copy.deepcopy(segmenter))
