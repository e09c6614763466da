"""Prototype losses: means of features per class, kept, attracted to and pushed apart (SDR).

Positions that take no part carry class 255; whether background is one of them is up to the caller.
All functions return 0, still connected to the features, where no class takes part.

All are batch-level: they count the classes and positions of one rank's share of the batch, and
classes weigh the same whatever their number of positions, so the mean of the ranks' gradients is not
that of the whole batch.  A rank where nothing takes part adds a zero gradient to that mean.
Other shapes, and on the CPU classes without a prototype, raise ConfigError.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ucd_ray.losses.common import check_choice, check_labels, check_shape, in_full_precision

FORMS = ("standard", "authors")
IGNORED = 255
MIN_DISTANCE = 1e-6


def class_means(features: Tensor, classes: Tensor, *, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean feature of each class in the batch, and its number of positions.

    features: [B, D, h, w]
    classes: [B, h, w] int64 below num_classes, or 255
    Returns [num_classes, D], zero for absent classes, and [num_classes] int64.
    """
    vectors, labels = _labelled(features, classes, num_classes)
    counts = labels.bincount(minlength=num_classes)
    sums = vectors.new_zeros(num_classes, vectors.shape[1]).index_add(0, labels, vectors)
    return sums / counts.clamp(min=1)[:, None], counts


def prototype_matching(means: Tensor, prototypes: Tensor, present: Tensor) -> Tensor:
    """Mean over present classes of the mean squared error between batch mean and prototype.

    means, prototypes: [C, D], no gradient to the prototypes
    present: [C] bool, the old classes that are in the batch
    """
    check_shape("means", means, "C", "D")
    check_shape("prototypes", prototypes, *means.shape)
    check_shape("present", present, len(means))
    errors = (means - prototypes.detach().to(means.dtype)).square().mean(dim=1)
    return errors[present].sum() / present.sum().clamp(min=1)


def attraction(
    features: Tensor, classes: Tensor, prototypes: Tensor, *, form: str = "standard"
) -> Tensor:
    """Mean over present classes of the mean squared error of their positions to the prototype.

    features: [B, D, h, w]
    classes: [B, h, w] int64, rows of `prototypes`, or 255
    prototypes: [C, D], no gradient
    form: "authors" divides as the published code does, the running sum by the number n of present
        classes after every class in ascending order: the k-th of them is divided by n^(n-k+1)
    Raises ConfigError for an unknown form, too.
    """
    check_choice("form", form, FORMS)
    vectors, labels = _labelled(features, classes, len(prototypes))
    check_shape("prototypes", prototypes, "C", vectors.shape[1])
    squares = (vectors - prototypes.detach().to(vectors.dtype)[labels]).square().mean(dim=1)
    counts = labels.bincount(minlength=len(prototypes))
    errors = squares.new_zeros(len(prototypes)).index_add(0, labels, squares)
    errors = errors / counts.clamp(min=1)
    present = counts > 0
    num_present = present.sum().clamp(min=1)
    if form == "standard":
        return errors.sum() / num_present
    divisions = num_present - present.cumsum(dim=0) + 1
    return (errors / num_present.to(errors.dtype) ** divisions).sum()


def repulsion(means: Tensor, present: Tensor) -> Tensor:
    """Mean over pairs of present classes of 1 / || mu_i - mu_j ||_2.

    means: [C, D]
    present: [C] bool, the classes in the batch; with fewer than two there is no pair
    """
    check_shape("means", means, "C", "D")
    check_shape("present", present, len(means))
    chosen = means[present]
    first, second = torch.combinations(torch.arange(len(chosen), device=means.device)).unbind(1)
    # Not torch.pdist: its backward crashes the process when no class is present.
    distances = torch.linalg.vector_norm(chosen[first] - chosen[second], dim=1)
    return distances.clamp(min=MIN_DISTANCE).reciprocal().sum() / max(1, len(first))


def sparsity(features: Tensor, classes: Tensor) -> Tensor:
    """Mean over positions of sum_j exp(f_j) / sum_j f_j, f scaled by the maximum of its class.

    features: [B, D, h, w], non-negative (after a ReLU); all-zero positions are left out
    classes: [B, h, w] int64, or 255
    """
    vectors, labels = _labelled(features, classes, IGNORED)
    lit = vectors.sum(dim=1) > 0
    vectors, labels = vectors[lit], labels[lit]
    num_classes = len(labels.bincount())
    largest = vectors.new_zeros(num_classes).scatter_reduce(
        0, labels, vectors.amax(dim=1), reduce="amax"
    )
    scaled = vectors / largest[labels, None]
    return (scaled.exp().sum(dim=1) / scaled.sum(dim=1)).sum() / max(1, len(labels))


def _labelled(features: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The [N, D] features and [N] classes of positions that take part."""
    check_shape("features", features, "B", "D", "h", "w")
    batch, _, height, width = features.shape
    check_labels("classes", classes, batch, height, width, limit=num_classes, ignore_index=IGNORED)
    at = (classes.flatten() != IGNORED).nonzero().squeeze(1)
    vectors = in_full_precision(features).movedim(1, -1).flatten(0, 2)
    return vectors.index_select(0, at), classes.flatten()[at]
