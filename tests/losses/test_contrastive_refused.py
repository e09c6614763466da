"""Inputs that UCD refuses, each with a sentence."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.losses.contrastive_batch import (
    Batch,
)
from ucd_ray.errors import ConfigError


def test_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown form 'author'; did you mean 'authors'"):
        Batch().loss(form="author")


def test_wrong_num_old_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"old_logits \(2, 3, 5, 4\) must be .* \(2, 4, 5, 4\)"):
        Batch().loss(num_old=4)


def test_old_features_of_another_size_are_refused() -> None:
    batch = Batch()
    batch.old = batch.old[:, :, :4]
    with pytest.raises(ConfigError, match="must have the shape of new_features"):
        batch.loss()


def test_labels_of_another_batch_are_refused() -> None:
    batch = Batch()
    batch.labels = batch.labels[:1]
    with pytest.raises(ConfigError, match=r"labels \(1, 5, 4\) must be \[B, H, W\] with B = 2"):
        batch.loss()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"temperature": 0.0}, r"temperature \(0.0\) must be above 0"),
        ({"temperature": -0.1}, r"temperature \(-0.1\) must be above 0"),
        ({"temperature": math.nan}, r"temperature \(nan\)"),
        ({"max_anchors": 0}, r"max_anchors \(0\) must be at least 1"),
        ({"max_per_class": -3}, r"max_per_class \(-3\) must be at least 1"),
        ({"max_old": -1}, r"max_old \(-1\) must be at least 0"),
        ({"num_old": 0}, "num_old"),
    ],
)
def test_values_out_of_range_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Batch().loss(**knobs)


@pytest.mark.parametrize("value", [-1, 256, 100_000])
def test_labels_out_of_range_are_refused(value: int) -> None:
    batch = Batch()
    batch.labels[1, 2, 2] = value
    with pytest.raises(ConfigError, match=f"labels hold {value}; they must be channel indices"):
        batch.loss()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_labels_that_are_no_integers_are_refused(dtype: torch.dtype) -> None:
    batch = Batch()
    batch.labels = batch.labels.to(dtype)
    with pytest.raises(ConfigError, match=f"labels are {dtype}; they must be integers"):
        batch.loss()


def test_features_without_images_are_refused() -> None:
    batch = Batch()
    batch.new = batch.new[0]
    with pytest.raises(ConfigError, match=r"new_features \(4, 5, 4\) .* must be \[B, D, h, w\]"):
        batch.loss()
