"""Networks: timm backbone, DeepLabV3 head, one classifier per step.

Importing this package does not import torch: what needs it loads on first use (PEP 562), so that
driver, service and command line stay light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ucd_ray.models.backbone import Backbone, create_backbone
    from ucd_ray.models.deeplab import DeepLabHead
    from ucd_ray.models.norm import NormMode, apply_norm_mode, set_train_mode
    from ucd_ray.models.segmenter import (
        Segmenter,
        SegOutput,
        build_segmenter,
        freeze,
        frozen_copy,
    )
    from ucd_ray.models.weights import (
        Normalisation,
        file_digest,
        load_backbone_weights,
        pretrained_weights,
        read_normalisation,
    )

BACKBONES: dict[str, str] = {
    "resnet101": "resnet101",
    "resnet50": "resnet50",
    "resnet34": "resnet34",
    "resnet18": "resnet18",
    "mobilenetv2_100": "mobilenetv2_100",
    "efficientnet_b0": "efficientnet_b0",
    "convnext_tiny": "convnext_tiny",
}
"""Our name -> timm's name.  Any other timm model with `features_only` and `output_stride` works by
its timm name; these are the ones the tests cover."""

_MODULE_OF = {
    "Backbone": "backbone",
    "create_backbone": "backbone",
    "DeepLabHead": "deeplab",
    "NormMode": "norm",
    "apply_norm_mode": "norm",
    "set_train_mode": "norm",
    "SegOutput": "segmenter",
    "Segmenter": "segmenter",
    "build_segmenter": "segmenter",
    "freeze": "segmenter",
    "frozen_copy": "segmenter",
    "Normalisation": "weights",
    "file_digest": "weights",
    "load_backbone_weights": "weights",
    "pretrained_weights": "weights",
    "read_normalisation": "weights",
}

__all__ = [
    "BACKBONES",
    "Backbone",
    "DeepLabHead",
    "NormMode",
    "Normalisation",
    "SegOutput",
    "Segmenter",
    "apply_norm_mode",
    "build_segmenter",
    "create_backbone",
    "file_digest",
    "freeze",
    "frozen_copy",
    "load_backbone_weights",
    "pretrained_weights",
    "read_normalisation",
    "set_train_mode",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
