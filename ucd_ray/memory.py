"""An estimate of a training worker's memory, from shapes alone: nothing is allocated."""

from __future__ import annotations

import torch
from torch import nn

from ucd_ray.models import Normalisation, Segmenter, build_segmenter
from ucd_ray.recipe import Recipe, micro_batches

FLOAT = 4  # bytes
LOGIT_COPIES = 6  # full-size maps of C channels alive in the losses and their backward


def training_bytes(recipe: Recipe, *, workers: int, low_precision: bool) -> int:
    """Bytes of one worker at the last step, within about a factor of 1.5.

    Weights with gradients and momentum, the old model's weights, what the backward pass keeps of
    every layer, and the full-size logits of both models.
    """
    micro, _ = micro_batches(recipe, workers, step=len(recipe.steps.steps) - 1)
    scenario = recipe.steps
    with torch.device("meta"):
        segmenter = build_segmenter(
            backbone=recipe.model.backbone,
            output_stride=recipe.model.output_stride,
            classes_per_step=scenario.classes_per_step(),
            normalisation=Normalisation((0.5,) * 3, (0.5,) * 3),
            width=recipe.model.width,
        )
    weights = sum(parameter.numel() for parameter in segmenter.parameters())
    copies = 3 if len(scenario.steps) == 1 else 4  # weights, gradients, momentum, old model
    kept = activation_elements(segmenter, recipe.data.crop)
    channels = sum(scenario.classes_per_step())
    logits = LOGIT_COPIES * channels * recipe.data.crop**2
    per_image = kept * (2 if low_precision else FLOAT) + logits * FLOAT
    return copies * weights * FLOAT + micro * per_image


def activation_elements(segmenter: Segmenter, crop: int) -> int:
    """Elements that the leaf modules put out for one image of `crop` pixels a side."""
    kept = 0

    def count(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal kept
        if isinstance(output, torch.Tensor):
            kept += output.numel()

    leaves = [module for module in segmenter.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(count) for leaf in leaves]
    segmenter.eval()
    with torch.no_grad():
        segmenter(torch.empty(1, 3, crop, crop, device="meta"))
    for hook in hooks:
        hook.remove()
    return kept
