"""Small networks for tests, without training: random weights and norm statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.conftest import tiny_recipe
from ucd_ray.data import find_dataset
from ucd_ray.models import build_segmenter
from ucd_ray.models.weights import Normalisation
from ucd_ray.network import Network, trained_network

NORMALISATION = Normalisation(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def random_network(step: int = 2, **flat: Any) -> Network:
    """The network of a tiny recipe after a step."""
    recipe = tiny_recipe(**flat)
    torch.manual_seed(0)
    segmenter = build_segmenter(
        backbone=recipe.model.backbone,
        output_stride=recipe.model.output_stride,
        classes_per_step=recipe.steps.classes_per_step()[: step + 1],
        normalisation=NORMALISATION,
        width=recipe.model.width,
    )
    for part in segmenter.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    for layer in segmenter.classifiers:
        nn.init.normal_(layer.weight)  # type: ignore[arg-type]
    classes = find_dataset("shapes").classes
    return trained_network(recipe, step, segmenter.state_dict(), classes=classes, origin={"a": 1})
