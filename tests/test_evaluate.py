from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import tiny_recipe
from ucd_ray.config import EvalConfig
from ucd_ray.data.prepare import Prepared
from ucd_ray.data.step import evaluation_labels
from ucd_ray.data.transforms import EvaluationImages
from ucd_ray.evaluate import confusion_matrix, predict
from ucd_ray.learner import Ranks
from ucd_ray.models import SegOutput
from ucd_ray.runtime import choose_runtime

CLASSES = 9
RUNTIME = choose_runtime(tiny_recipe().compute)


class ByColour(nn.Module):
    """Stands for a network: the class follows from a pixel's red value alone."""

    num_classes = CLASSES

    def forward(self, images: Tensor) -> SegOutput:
        classes = (images[:, 0].long() // 29).clamp(max=CLASSES - 1)
        logits = nn.functional.one_hot(classes, CLASSES).movedim(-1, 1).float()
        return SegOutput(logits, logits, logits, logits, [logits])


@dataclass(frozen=True)
class Alone(Ranks):
    """One of several ranks that does not add the others' counts."""

    def sum(self, values: Tensor) -> Tensor:
        return values


def images_of(shapes: Prepared, rows: list[int], **config: object) -> EvaluationImages:
    labels = evaluation_labels(tiny_recipe().scenario, 0, unseen="ignore")
    return EvaluationImages(shapes.val, np.array(rows), labels, EvalConfig.model_validate(config))


def count(images: EvaluationImages, ranks: Ranks) -> Tensor:
    return confusion_matrix(ByColour(), images, runtime=RUNTIME, ranks=ranks)  # type: ignore[arg-type]


def counted_by_hand(images: EvaluationImages) -> list[list[int]]:
    counts = [[0] * CLASSES for _ in range(CLASSES)]
    for index in range(len(images)):
        pixels, labels = images[index]
        predicted = predict(ByColour(), pixels[None], RUNTIME)[0]  # type: ignore[arg-type]
        pairs = zip(labels.flatten().tolist(), predicted.flatten().tolist(), strict=True)
        for truth, found in pairs:
            if truth != 255:
                counts[truth][found] += 1
    return counts


@pytest.mark.parametrize("config", [{"mode": "full"}, {"mode": "crop", "size": 48}])
def test_the_confusion_matrix_agrees_with_a_count_of_pixels(
    shapes: Prepared, config: dict[str, object]
) -> None:
    images = images_of(shapes, [0, 3, 5], **config)
    found = count(images, Ranks())
    assert found.dtype == torch.int64
    assert found.tolist() == counted_by_hand(images)


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_each_image_is_scored_by_one_rank(shapes: Prepared, workers: int) -> None:
    images = images_of(shapes, [0, 1, 2, 3, 4])
    parts = [count(images, Alone(rank, workers)) for rank in range(workers)]
    assert torch.equal(sum(parts, torch.zeros_like(parts[0])), count(images, Ranks()))


def test_a_prediction_is_the_most_likely_channel_without_a_graph() -> None:
    pixels = torch.tensor([[[[0, 29, 255]]] * 3]).to(torch.uint8).view(1, 3, 1, 3)
    found = predict(ByColour(), pixels, RUNTIME)  # type: ignore[arg-type]
    assert found.tolist() == [[[0, 1, 8]]]
    assert found.requires_grad is False
