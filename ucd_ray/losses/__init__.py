"""Losses: functions of tensors, without config, model, device or collective.

Letters: B batch, C channels, D feature width, h w feature size, H W image size, M anchors,
K contrast vectors. `num_old` is the number of channels of the old model, background included.
Channel order: 0 background, old classes in learning order, new classes. Label 255 is ignored.

Half-precision inputs are computed in float32 and give a float32 loss, also under autocast; float64
stays float64. Whatever comes from the old model is detached, and may be made in inference mode.

Wrong arguments raise ConfigError. Labels outside the channels do so on the CPU; on CUDA, where a look
at values would wait for the device, they are a device-side assert (in training they cannot occur:
the data map dataset ids to channels).
"""

from __future__ import annotations

from ucd_ray.losses.contrastive import contrastive_distillation
from ucd_ray.losses.cross_entropy import (
    binary_cross_entropy,
    cross_entropy,
    unbiased_binary_cross_entropy,
    unbiased_cross_entropy,
)
from ucd_ray.losses.distillation import (
    binary_distillation,
    feature_distillation,
    output_distillation,
    similarity_distillation,
    unbiased_binary_distillation,
    unbiased_distillation,
)
from ucd_ray.losses.entropy import histogram_medians, normalised_entropy, pseudo_labels
from ucd_ray.losses.pod import background_sum, local_pod
from ucd_ray.losses.prototypes import (
    attraction,
    class_means,
    prototype_matching,
    repulsion,
    sparsity,
)
from ucd_ray.losses.regularisation import (
    min_max,
    path_importance,
    quadratic_penalty,
    running_fisher,
    walk_score,
)
from ucd_ray.losses.sampling import balanced_sample
from ucd_ray.losses.unbiased import unbiased_losses

__all__ = [
    "attraction",
    "background_sum",
    "balanced_sample",
    "binary_cross_entropy",
    "binary_distillation",
    "class_means",
    "contrastive_distillation",
    "cross_entropy",
    "feature_distillation",
    "histogram_medians",
    "local_pod",
    "min_max",
    "normalised_entropy",
    "output_distillation",
    "path_importance",
    "prototype_matching",
    "pseudo_labels",
    "quadratic_penalty",
    "repulsion",
    "running_fisher",
    "similarity_distillation",
    "sparsity",
    "unbiased_binary_cross_entropy",
    "unbiased_binary_distillation",
    "unbiased_cross_entropy",
    "unbiased_distillation",
    "unbiased_losses",
    "walk_score",
]
