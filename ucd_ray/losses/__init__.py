"""Losses: functions of tensors, without config, model, device or collective.

Letters: B batch, C channels, D feature width, h w feature size, H W image size, M anchors,
K contrast vectors. `num_old` is the number of channels of the old model, background included.
Channel order: 0 background, old classes in learning order, new classes. Label 255 is ignored.

Half-precision inputs are computed in float32 and give a float32 loss, also under autocast; float64
stays float64. Whatever comes from the old model is detached.
"""

from __future__ import annotations

from ucd_ray.losses.contrastive import contrastive_distillation
from ucd_ray.losses.cross_entropy import (
    binary_cross_entropy,
    cross_entropy,
    unbiased_cross_entropy,
)
from ucd_ray.losses.distillation import (
    binary_distillation,
    feature_distillation,
    output_distillation,
    similarity_distillation,
    unbiased_distillation,
)
from ucd_ray.losses.pod import local_pod
from ucd_ray.losses.prototypes import (
    attraction,
    class_means,
    prototype_matching,
    repulsion,
    sparsity,
)
from ucd_ray.losses.sampling import balanced_sample

__all__ = [
    "attraction",
    "balanced_sample",
    "binary_cross_entropy",
    "binary_distillation",
    "class_means",
    "contrastive_distillation",
    "cross_entropy",
    "feature_distillation",
    "local_pod",
    "output_distillation",
    "prototype_matching",
    "repulsion",
    "similarity_distillation",
    "sparsity",
    "unbiased_cross_entropy",
    "unbiased_distillation",
]
