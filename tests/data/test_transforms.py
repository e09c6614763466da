from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ucd_ray.config import DataConfig, EvalConfig
from ucd_ray.data.transforms import EvaluationImages, TrainingImages, decode, seed_of

SAME = np.arange(256, dtype=np.uint8)  # labels that keep the ids


def encode(pixels: NDArray[np.uint8], form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def table_of(height: int = 40, width: int = 60, images: int = 3) -> pa.Table:
    """Images whose red channel is the mask, so that a crop of both must stay together."""
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 200, (height, width), dtype=np.uint8) for _ in range(images)]
    pictures = [np.stack([mask, mask // 2, 255 - mask], 2) for mask in masks]
    return pa.table({"image": [encode(p) for p in pictures], "mask": [encode(m) for m in masks]})


def training(seed: int = 1, **config: Any) -> TrainingImages:
    return TrainingImages(table_of(), SAME, DataConfig(crop=32, **config), seed)


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_decoding_gives_pixels_and_mapped_labels() -> None:
    labels = np.zeros(256, np.uint8)
    labels[7], labels[255] = 3, 255
    mask = np.array([[7, 255], [9, 0]], np.uint8)
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    table = pa.table({"image": [encode(picture)], "mask": [encode(mask)]})
    image, found = decode(table, 0, labels)
    assert image.permute(1, 2, 0).numpy().tolist() == picture.tolist()
    assert found.tolist() == [[[3, 255], [0, 0]]]


def test_a_palette_mask_keeps_its_indices_and_a_grey_image_becomes_rgb() -> None:
    palette = Image.fromarray(np.array([[2, 1]], np.uint8))
    palette.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0] + [0] * 759)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    grey = encode(np.array([[5, 6]], np.uint8))
    image, mask = decode(pa.table({"image": [grey], "mask": [buffer.getvalue()]}), 0, SAME)
    assert mask.tolist() == [[[2, 1]]]
    assert image.shape == (3, 1, 2)


def test_a_training_item_is_a_square_of_bytes() -> None:
    image, labels = training()[(0, 0)]
    assert (image.shape, image.dtype) == ((3, 32, 32), torch.uint8)
    assert (labels.shape, labels.dtype) == ((32, 32), torch.uint8)


def test_an_item_depends_on_seed_epoch_and_row_alone() -> None:
    images = training(seed=1)
    first = images[(2, 1)]
    torch.manual_seed(99)
    torch.rand(5)
    assert same(images[(2, 1)], first)
    assert same(training(seed=1)[(2, 1)], first)
    others = [training(seed=2)[(2, 1)], images[(3, 1)], images[(2, 0)]]
    assert not any(same(other, first) for other in others)


def test_loading_an_item_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    training()[(0, 0)]
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("epoch", range(4))
def test_image_and_labels_are_cropped_and_flipped_together(epoch: int) -> None:
    """At a fixed scale of 1, a crop of a constant-per-column image shows the same columns."""
    columns = np.tile(np.arange(0, 160, 4, dtype=np.uint8), (40, 1))
    picture = np.stack([columns] * 3, 2)
    table = pa.table({"image": [encode(picture)], "mask": [encode(columns)]})
    images = TrainingImages(table, SAME, DataConfig(crop=32), seed=0)
    image, labels = images[(epoch, 0)]
    assert (image[0].int() - labels.int()).abs().max() <= 8  # bilinear against nearest


def test_a_certain_flip_mirrors_what_no_flip_shows() -> None:
    plain, mirrored = training(flip=0.0)[(1, 2)], training(flip=1.0)[(1, 2)]
    assert same((plain[0].flip(-1), plain[1].flip(-1)), mirrored)


def test_labels_are_never_interpolated() -> None:
    table = table_of()
    labels = np.where(SAME < 100, np.uint8(3), np.uint8(255))
    _, found = TrainingImages(table, labels, DataConfig(crop=64), seed=0)[(0, 0)]
    assert set(found.unique().tolist()) <= {3, 255}


def test_full_evaluation_sees_whole_images_of_the_chosen_rows() -> None:
    table = table_of()
    images = EvaluationImages(table, np.array([2, 0]), SAME, EvalConfig(mode="full"))
    assert len(images) == 2
    image, labels = images[0]
    expected = decode(table, 2, SAME)
    assert torch.equal(image, expected[0])
    assert torch.equal(labels, expected[1][0])


def test_crop_evaluation_resizes_the_short_side_and_takes_the_centre() -> None:
    columns = np.tile(np.arange(60, dtype=np.uint8), (40, 1))
    table = pa.table({"image": [encode(np.stack([columns] * 3, 2))], "mask": [encode(columns)]})
    images = EvaluationImages(table, np.array([0]), SAME, EvalConfig(mode="crop", size=40))
    image, labels = images[0]
    assert image.shape == (3, 40, 40)
    assert labels.tolist() == columns[:, 10:50].tolist()


def test_seeds_of_different_parts_differ_and_fit_a_generator() -> None:
    seeds = {seed_of(a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400
    assert seed_of(1, 23) != seed_of(12, 3)
    assert all(0 <= seed < 2**63 for seed in seeds)
