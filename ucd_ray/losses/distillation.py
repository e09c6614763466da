"""Distillation from the frozen old model: of outputs (LwF, ILT, MiB) and of features (ILT)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ucd_ray.losses.common import check_num_old, in_full_precision, reduce_map


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
    Raises ConfigError for an unknown reduction or fewer new than old channels.
    """
    num_old = old_logits.shape[1]
    check_num_old(num_old, new_logits.shape[1])
    scaled = in_full_precision(new_logits[:, :num_old]) / temperature
    return _soft_cross_entropy(scaled.log_softmax(dim=1), old_logits, alpha, temperature, reduction)


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
    num_old = old_logits.shape[1]
    check_num_old(num_old, new_logits.shape[1])
    scaled = in_full_precision(new_logits) / temperature
    normaliser = scaled.logsumexp(dim=1, keepdim=True)
    unknown_then = torch.cat([scaled[:, :1], scaled[:, num_old:]], dim=1)
    background = unknown_then.logsumexp(dim=1, keepdim=True)
    log_probs = torch.cat([background, scaled[:, 1:num_old]], dim=1) - normaliser
    return _soft_cross_entropy(log_probs, old_logits, alpha, temperature, reduction)


def feature_distillation(new_features: Tensor, old_features: Tensor) -> Tensor:
    """Mean squared error over all elements (ILT).

    new_features, old_features: [B, D, h, w], no gradient to the old ones
    Returns a scalar.
    """
    # A difference, not mse_loss: that would save the old features, which inference mode forbids.
    difference = in_full_precision(new_features) - in_full_precision(old_features).detach()
    return difference.square().mean()


def binary_distillation(new_logits: Tensor, old_logits: Tensor) -> Tensor:
    """Sigmoid cross-entropy from the old to the new old-class outputs, summed over classes (LwF-MC).

    new_logits: [B, C, H, W]; channels from num_old on are cut off
    old_logits: [B, num_old, H, W], no gradient
    Returns the mean over positions, in nats.  Raises ConfigError for fewer new than old channels.
    """
    num_old = old_logits.shape[1]
    check_num_old(num_old, new_logits.shape[1])
    target = in_full_precision(old_logits).detach().sigmoid()
    new = in_full_precision(new_logits[:, :num_old])
    return num_old * F.binary_cross_entropy_with_logits(new, target)


def similarity_distillation(new_features: Tensor, old_features: Tensor) -> Tensor:
    """Squared distance of the images' similarities to each other, old against new (SPKD, generic form).

    new_features, old_features: [B, D, h, w], no gradient to the old ones
    With Q the [B, D*h*w] features and G = Q Q^T with L2-normalised rows: |G_old - G_new|^2 / B^2.
    """
    new, old = _similarities(new_features), _similarities(old_features.detach())
    return (new - old).square().sum() / len(new) ** 2


def _similarities(features: Tensor) -> Tensor:
    """[B, B] inner products of the images' features, rows of length one."""
    flat = in_full_precision(features).flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def _soft_cross_entropy(
    log_probs: Tensor, old_logits: Tensor, alpha: float, temperature: float, reduction: str
) -> Tensor:
    """Reduce -T^2 / num_old * sum_c p_c log q_c, both arguments [B, num_old, H, W]."""
    teacher = (in_full_precision(old_logits).detach() * (alpha / temperature)).softmax(dim=1)
    scale = temperature**2 / old_logits.shape[1]
    return reduce_map((teacher * log_probs).sum(dim=1) * -scale, reduction)
