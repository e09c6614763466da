from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
)

from ucd_ray.metrics import confusion_of, forgetting, iou_per_class, mean_forgetting, mean_ious


def example(seed: int, classes: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Confusion matrix, prediction and truth of 400 pixels."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes, (400,), generator=generator)
    other = torch.randint(0, classes, (400,), generator=generator)
    predicted = torch.where(torch.rand(400, generator=generator) < 0.6, truth, other)
    return confusion_of(predicted, truth, classes=classes), predicted, truth


@pytest.mark.parametrize("seed", range(3))
def test_confusion_agrees_with_torchmetrics_and_leaves_ignored_pixels_out(seed: int) -> None:
    _, predicted, truth = example(seed)
    truth[::7] = 255
    expected = multiclass_confusion_matrix(predicted, truth, 6, ignore_index=255)
    image = (4, 10, 10)
    found = confusion_of(predicted.view(image), truth.view(image), classes=6)
    assert found.dtype == torch.int64
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("seed", range(3))
def test_iou_agrees_with_torchmetrics(seed: int) -> None:
    confusion, predicted, truth = example(seed)
    expected = 100 * multiclass_jaccard_index(predicted, truth, num_classes=6, average="none")
    torch.testing.assert_close(iou_per_class(confusion).float(), expected)


def test_iou_agrees_with_sets_of_pixels() -> None:
    confusion, predicted, truth = example(9)
    for c in range(6):
        a = set((predicted == c).nonzero().flatten().tolist())
        b = set((truth == c).nonzero().flatten().tolist())
        assert iou_per_class(confusion)[c].item() == pytest.approx(100 * len(a & b) / len(a | b))


def test_a_class_without_truth_pixels_is_nan_even_if_it_is_predicted() -> None:
    iou = iou_per_class(torch.tensor([[8, 2], [0, 0]]))
    assert iou[0].item() == 80
    assert math.isnan(iou[1])


def test_means_over_groups_are_those_of_their_classes() -> None:
    iou = torch.tensor([90.0, 10.0, 20.0, 30.0, 40.0, 50.0], dtype=torch.double)
    means = mean_ious(iou, num_base=3, num_old=4, background=True)
    assert means == {
        "miou_base": 15.0,
        "miou_base_bg": 40.0,
        "miou_added": 40.0,
        "miou_added_bg": (90 + 30 + 40 + 50) / 4,
        "miou_old": 20.0,
        "miou_old_bg": 37.5,
        "miou_new": 45.0,
        "miou_new_bg": 60.0,
        "miou_all": 30.0,
        "miou_all_bg": 40.0,
    }


def test_without_a_scored_background_there_is_no_mean_with_it() -> None:
    means = mean_ious(torch.arange(4.0), num_base=2, num_old=2, background=False)
    assert set(means) == {"miou_base", "miou_added", "miou_old", "miou_new", "miou_all"}


def test_at_the_base_step_nothing_is_old_and_nothing_is_added() -> None:
    means = mean_ious(torch.tensor([50.0, 20.0, 40.0]), num_base=3, num_old=1, background=True)
    assert means["miou_new"] == means["miou_base"] == means["miou_all"] == 30
    assert all(math.isnan(means[f"miou_{g}"]) for g in ("old", "added", "old_bg", "added_bg"))


def test_a_mean_skips_classes_without_truth_pixels() -> None:
    means = mean_ious(torch.tensor([50.0, math.nan, 40.0]), num_base=2, num_old=2, background=False)
    assert math.isnan(means["miou_old"])
    assert means["miou_all"] == 40


def test_forgetting_is_the_drop_from_the_best_earlier_value() -> None:
    history = [
        torch.tensor([80.0, 60.0]).double(),
        torch.tensor([70.0, 65.0, 50.0]).double(),
        torch.tensor([75.0, 20.0, 55.0, 90.0]).double(),
    ]
    assert forgetting(history).tolist() == [5.0, 45.0, -5.0]
    assert mean_forgetting(history) == 20.0
    assert mean_forgetting(history, background=True) == 15.0


def test_nothing_is_forgotten_after_one_step() -> None:
    assert forgetting([torch.tensor([80.0, 60.0])]).tolist() == []
    assert math.isnan(mean_forgetting([torch.tensor([80.0, 60.0])]))


def test_forgetting_of_a_class_never_seen_in_truth_is_left_out() -> None:
    history = [
        torch.tensor([80.0, math.nan, 30.0]).double(),
        torch.tensor([80.0, 10.0, 10.0, 1.0]).double(),
    ]
    drop = forgetting(history)
    assert math.isnan(drop[1])
    assert mean_forgetting(history) == 20.0
