"""The confusion matrix of a network over a set of images, summed over ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ucd_ray.data.step import IGNORE
from ucd_ray.data.transforms import EvaluationImages
from ucd_ray.learner import Ranks
from ucd_ray.metrics import confusion_of
from ucd_ray.models import Segmenter
from ucd_ray.runtime import Runtime, autocast

CROP_BATCH = 8  # equally sized crops go through the network together


def confusion_matrix(
    segmenter: Segmenter,
    images: EvaluationImages,
    *,
    runtime: Runtime,
    ranks: Ranks,
    loader_workers: int = 0,
) -> Tensor:
    """[C, C] int64 on the CPU, rows truth, columns prediction, the same on every rank.

    Each rank scores every world_size-th image, so no image counts twice.
    """
    segmenter.eval()
    own = Subset(images, range(ranks.rank, len(images), ranks.world_size))
    loader = DataLoader(
        own,
        batch_size=CROP_BATCH if images.config.mode == "crop" else 1,
        num_workers=loader_workers,
    )
    classes = segmenter.num_classes
    counts = torch.zeros(classes, classes, dtype=torch.int64, device=runtime.device)
    for pixels, labels in loader:
        prediction = predict(segmenter, pixels, runtime)
        truth = labels.to(runtime.device).long()
        counts += confusion_of(prediction, truth, classes=classes, ignore=IGNORE)
    return ranks.sum(counts).cpu()


@torch.no_grad()
def predict(segmenter: Segmenter, pixels: Tensor, runtime: Runtime) -> Tensor:
    """[B, H, W] int64 most likely channel.

    pixels: [B, 3, H, W] uint8
    """
    with autocast(runtime):
        output = segmenter(pixels.to(runtime.device, memory_format=runtime.memory_format))
    return output.logits.argmax(1)
