"""Distillation from the frozen old model: of outputs (LwF, LwF-MC, ILT, MiB) and of features (ILT).

All but `similarity_distillation` are means over pixels that all count: with equally large shares of
a batch, the mean of the ranks' gradients is the gradient of the whole batch (reductions "mean" and
"none").
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ucd_ray.losses.common import (
    any_logit,
    check_logits,
    check_positive,
    check_shape,
    in_full_precision,
    reduce_map,
)


def output_distillation(
    new_logits: Tensor,
    old_logits: Tensor,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy from the old predictions to the new ones over the old channels (LwF).

    new_logits: [B, C, H, W]; channels from num_old on are cut off before the softmax
    old_logits: [B, num_old, H, W], no gradient; alpha sharpens their softmax
    The class sum is divided by num_old, as in the published code whose weights of 10 to 100 rely on
    it, and multiplied by temperature squared, which keeps the gradient's size.
    Returns the [B, H, W] map for reduction "none", else its "mean" or "sum", in nats.
    Raises ConfigError for an unknown reduction, other shapes, fewer new than old channels, and an
    alpha or temperature that is not above 0.
    """
    num_old = _check(new_logits, old_logits, alpha, temperature)
    log_probs = (in_full_precision(new_logits[:, :num_old]) / temperature).log_softmax(dim=1)
    return _soft_cross_entropy(log_probs, old_logits, alpha, temperature, reduction)


def unbiased_distillation(
    new_logits: Tensor,
    old_logits: Tensor,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Distillation in which the old background may be any new class (MiB, unbiased KD).

    new_logits: [B, C, H, W]; the new classes' probabilities are added to the background's
    old_logits: [B, num_old, H, W], no gradient
    Scaling, return value and errors as `output_distillation`. Every pixel counts, ignored ones too.
    """
    num_old = _check(new_logits, old_logits, alpha, temperature)
    scaled = in_full_precision(new_logits) / temperature
    normaliser = scaled.logsumexp(dim=1, keepdim=True)
    background = _unknown_then(scaled, num_old).logsumexp(dim=1, keepdim=True)
    log_probs = torch.cat([background, scaled[:, 1:num_old]], dim=1) - normaliser
    return _soft_cross_entropy(log_probs, old_logits, alpha, temperature, reduction)


def binary_distillation(
    new_logits: Tensor,
    old_logits: Tensor,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Sigmoid cross-entropy from the old to the new outputs of the old channels (LwF-MC).

    new_logits: [B, C, H, W]; channels from num_old on are cut off
    old_logits: [B, num_old, H, W], no gradient
    Scaling, return value and errors as `output_distillation`: LwF-MC's class sum is num_old times
    as large.
    """
    num_old = _check(new_logits, old_logits, alpha, temperature)
    scaled = in_full_precision(new_logits[:, :num_old]) / temperature
    return _soft_binary(scaled, old_logits, alpha, temperature, reduction)


def unbiased_binary_distillation(
    new_logits: Tensor,
    old_logits: Tensor,
    *,
    alpha: float = 1.0,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Sigmoid distillation in which the old background may be any new class.

    Ours: MiB's idea for sigmoid heads, in no paper that we know.  The old background is compared
    with 1 - prod (1 - s_c) over background and the new classes, s the sigmoids: the probability
    that any of them is on.  The other old channels as in `binary_distillation`.

    new_logits: [B, C, H, W]
    old_logits: [B, num_old, H, W], no gradient
    Scaling, return value and errors as `output_distillation`.
    """
    num_old = _check(new_logits, old_logits, alpha, temperature)
    scaled = in_full_precision(new_logits) / temperature
    background = any_logit(_unknown_then(scaled, num_old))
    merged = torch.cat([background, scaled[:, 1:num_old]], dim=1)
    return _soft_binary(merged, old_logits, alpha, temperature, reduction)


def feature_distillation(new_features: Tensor, old_features: Tensor) -> Tensor:
    """Mean squared error over all elements (ILT).

    new_features, old_features: [B, D, h, w], no gradient to the old ones
    Returns a scalar.  Raises ConfigError for other shapes.
    """
    _check_features(new_features, old_features)
    # A difference, not mse_loss: that would save the old features, which inference mode forbids.
    difference = in_full_precision(new_features) - in_full_precision(old_features).detach()
    return difference.square().mean()


def similarity_distillation(new_features: Tensor, old_features: Tensor) -> Tensor:
    """Squared distance of the images' similarities to each other, old against new (SPKD, generic form).

    new_features, old_features: [B, D, h, w], no gradient to the old ones
    With Q the [B, D*h*w] features and G = Q Q^T with L2-normalised rows: |G_old - G_new|^2 / B^2.
    A batch-level loss: it compares the images of one rank with each other, so more ranks with fewer
    images each compare fewer pairs, and the mean of their gradients is another one.
    Raises ConfigError for other shapes.
    """
    _check_features(new_features, old_features)
    new, old = _similarities(new_features), _similarities(old_features.detach())
    return (new - old).square().sum() / len(new) ** 2


def _check(new_logits: Tensor, old_logits: Tensor, alpha: float, temperature: float) -> int:
    """The number of old channels, after a look at all arguments."""
    check_positive("alpha", alpha)
    check_positive("temperature", temperature)
    return check_logits(new_logits, old_logits)


def _check_features(new_features: Tensor, old_features: Tensor) -> None:
    check_shape("new_features", new_features, "B", "D", "h", "w")
    check_shape("old_features", old_features, *new_features.shape)


def _unknown_then(logits: Tensor, num_old: int) -> Tensor:
    """The channels that were background to the old model: background and the new classes."""
    return torch.cat([logits[:, :1], logits[:, num_old:]], dim=1)


def _similarities(features: Tensor) -> Tensor:
    """[B, B] inner products of the images' features, rows of length one."""
    flat = in_full_precision(features).flatten(1)
    with torch.autocast(flat.device.type, enabled=False):  # float16 sums of squares overflow
        return F.normalize(flat @ flat.T, dim=1)


def _soft_cross_entropy(
    log_probs: Tensor, old_logits: Tensor, alpha: float, temperature: float, reduction: str
) -> Tensor:
    """Reduce -T^2 / num_old * sum_c p_c log q_c, both arguments [B, num_old, H, W]."""
    teacher = (in_full_precision(old_logits).detach() * (alpha / temperature)).softmax(dim=1)
    scale = temperature**2 / old_logits.shape[1]
    return reduce_map((teacher * log_probs).sum(dim=1) * -scale, reduction)


def _soft_binary(
    scaled: Tensor, old_logits: Tensor, alpha: float, temperature: float, reduction: str
) -> Tensor:
    """Reduce T^2 / num_old * sum_c BCE(sigmoid(scaled_c), p_c), both [B, num_old, H, W]."""
    teacher = (in_full_precision(old_logits).detach() * (alpha / temperature)).sigmoid()
    entropies = F.binary_cross_entropy_with_logits(scaled, teacher, reduction="none")
    return reduce_map(entropies.mean(dim=1) * temperature**2, reduction)
