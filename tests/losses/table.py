"""Every loss of one batch behind one signature, for tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ucd_ray import losses

NUM_CLASSES = 5
SIZE = (4, 6)


@dataclass(frozen=True)
class Sample:
    """What both models make of a batch; logits and features at one size, 5 channels and 4 features."""

    logits: Tensor  # [B, 5, h, w]
    features: Tensor  # [B, 4, h, w], not negative
    labels: Tensor  # [B, h, w]
    old_logits: Tensor  # [B, num_old, h, w]
    old_features: Tensor  # [B, 4, h, w]
    prototypes: Tensor  # [5, 4]
    temperature: float = 1.0

    @property
    def num_old(self) -> int:
        return self.old_logits.shape[1]

    def map(self, change: Callable[[Tensor], Tensor], *names: str) -> Sample:
        """With `change` applied to the named tensors."""
        return replace(self, **{name: change(getattr(self, name)) for name in names})

    def images(self, index: slice | list[int]) -> Sample:
        """Of these images only."""
        return self.map(lambda t: t[index], *BATCHED)

    def leaves(self) -> Sample:
        """With what the new model made as leaves that get gradients."""
        return self.map(lambda t: t.detach().clone().requires_grad_(), "logits", "features")


BATCHED = ("logits", "features", "labels", "old_logits", "old_features")
MADE_BY_OLD = ("old_logits", "old_features", "prototypes")
TENSORS = tuple(field.name for field in fields(Sample) if field.name != "temperature")


def make_sample(
    *, images: int = 2, num_old: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Sample:
    """Random maps; labels of all classes, ignored pixels among them."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)

    labels = torch.randint(0, NUM_CLASSES, (images, *SIZE), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.2] = 255
    return Sample(
        logits=2 * normal(images, NUM_CLASSES, *SIZE),
        features=normal(images, 4, *SIZE).abs(),
        labels=labels,
        old_logits=2 * normal(images, num_old, *SIZE),
        old_features=normal(images, 4, *SIZE).abs(),
        prototypes=normal(NUM_CLASSES, 4).abs(),
    )


def _means(s: Sample) -> tuple[Tensor, Tensor]:
    means, counts = losses.class_means(s.features, s.labels, num_classes=NUM_CLASSES)
    return means, counts > 0


def _matching(s: Sample) -> Tensor:
    means, present = _means(s)
    return losses.prototype_matching(means, s.prototypes, present)


def _penalty(s: Sample) -> Tensor:
    return losses.quadratic_penalty([s.features], [s.old_features], [s.old_features])


def _background_sum(s: Sample) -> Tensor:
    return losses.background_sum(s.logits, s.num_old).square().mean()


Loss = Callable[[Sample], Tensor]

# Means over the pixels of each image, then over images; all pixels count.
PIXEL_MEANS: dict[str, Loss] = {
    "cross_entropy": lambda s: losses.cross_entropy(s.logits, s.labels),
    "unbiased_cross_entropy": lambda s: losses.unbiased_cross_entropy(
        s.logits, s.labels, num_old=s.num_old
    ),
    "binary_cross_entropy": lambda s: losses.binary_cross_entropy(s.logits, s.labels),
    "unbiased_binary_cross_entropy": lambda s: losses.unbiased_binary_cross_entropy(
        s.logits, s.labels, num_old=s.num_old
    ),
    "output_distillation": lambda s: losses.output_distillation(
        s.logits, s.old_logits, temperature=s.temperature
    ),
    "unbiased_distillation": lambda s: losses.unbiased_distillation(
        s.logits, s.old_logits, temperature=s.temperature
    ),
    "binary_distillation": lambda s: losses.binary_distillation(
        s.logits, s.old_logits, temperature=s.temperature
    ),
    "unbiased_binary_distillation": lambda s: losses.unbiased_binary_distillation(
        s.logits, s.old_logits, temperature=s.temperature
    ),
    "feature_distillation": lambda s: losses.feature_distillation(s.features, s.old_features),
    "background_sum": _background_sum,
}
IMAGE_MEANS: dict[str, Loss] = {
    "local_pod": lambda s: losses.local_pod([s.features], [s.old_features])[0],
}
VALID: dict[str, Loss] = {
    "cross_entropy of valid pixels": lambda s: losses.cross_entropy(
        s.logits, s.labels, reduction="valid"
    ),
    "unbiased_cross_entropy of valid pixels": lambda s: losses.unbiased_cross_entropy(
        s.logits, s.labels, num_old=s.num_old, reduction="valid"
    ),
    "binary_cross_entropy of valid pixels": lambda s: losses.binary_cross_entropy(
        s.logits, s.labels, reduction="valid"
    ),
    "unbiased_binary_cross_entropy of valid pixels": lambda s: losses.unbiased_binary_cross_entropy(
        s.logits, s.labels, num_old=s.num_old, reduction="valid"
    ),
}
PROTOTYPES: dict[str, Loss] = {
    "class_means": lambda s: _means(s)[0].square().sum(),
    "prototype_matching": _matching,
    "attraction": lambda s: losses.attraction(s.features, s.labels, s.prototypes),
    "attraction as published": lambda s: losses.attraction(
        s.features, s.labels, s.prototypes, form="authors"
    ),
    "repulsion": lambda s: losses.repulsion(*_means(s)),
    "sparsity": lambda s: losses.sparsity(s.features, s.labels),
}
BETWEEN_IMAGES: dict[str, Loss] = {
    "similarity_distillation": lambda s: losses.similarity_distillation(s.features, s.old_features),
}
WEIGHTS: dict[str, Loss] = {"quadratic_penalty": _penalty}

LOSSES = {**PIXEL_MEANS, **IMAGE_MEANS, **VALID, **PROTOTYPES, **BETWEEN_IMAGES, **WEIGHTS}


def gradients(loss: Loss, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient of the logits and of the features, zeros for what the loss does not read."""
    sample = sample.leaves()
    value = loss(sample)
    of_logits, of_features = torch.autograd.grad(
        value, (sample.logits, sample.features), allow_unused=True, materialize_grads=True
    )
    return value.detach(), of_logits, of_features
