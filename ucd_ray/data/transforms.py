"""From stored bytes to tensors: decoding, random scale-crop-flip, evaluation views.

Images stay uint8 until the network normalises them on its device.  Randomness of a sample depends on
(seed, step, epoch, row) only, so neither the number of workers nor a restart changes what is seen.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import RandomResizedCrop as Crop
from torchvision.transforms.v2 import functional as F

from ucd_ray.config import DataConfig, EvalConfig

RATIO = (3 / 4, 4 / 3)  # aspect ratios of the random crop, as published


def decode(table: pa.Table, row: int, labels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Image [3, H, W] uint8 and labels [1, H, W] uint8 of one row.

    labels: [256] table from dataset id to channel.
    """
    with Image.open(io.BytesIO(table["image"][row].as_py())) as image:
        pixels = np.array(image.convert("RGB"))
    with Image.open(io.BytesIO(table["mask"][row].as_py())) as mask:
        ids = np.asarray(mask)
    return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(labels[ids])[None]


def seed_of(*parts: int) -> int:
    """A 63-bit seed that mixes its parts."""
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


@dataclass
class TrainingImages(Dataset[tuple[Tensor, Tensor]]):
    """Random crops.  An item is addressed by (epoch, row)."""

    table: pa.Table
    labels: NDArray[np.uint8]
    config: DataConfig
    seed: int  # of run and step

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Image [3, crop, crop] uint8 and labels [crop, crop] uint8."""
        epoch, row = index
        image, mask = decode(self.table, row, self.labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, epoch, row))
            box = Crop.get_params(
                image, [self.config.scale_min, self.config.scale_max], list(RATIO)
            )
            flipped = bool(torch.rand(()) < self.config.flip)
        size = [self.config.crop, self.config.crop]
        image = F.resized_crop(image, *box, size, InterpolationMode.BILINEAR, antialias=True)
        mask = F.resized_crop(mask, *box, size, InterpolationMode.NEAREST)
        if flipped:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        return image, mask[0]


@dataclass
class EvaluationImages(Dataset[tuple[Tensor, Tensor]]):
    """Whole images, or short side resized and a central crop (`eval.mode`)."""

    table: pa.Table
    rows: NDArray[np.int64]
    labels: NDArray[np.uint8]
    config: EvalConfig

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image [3, H, W] uint8 and labels [H, W] uint8."""
        image, mask = decode(self.table, int(self.rows[index]), self.labels)
        if self.config.mode == "crop":
            size = self.config.size
            image = F.resize(image, [size], InterpolationMode.BILINEAR, antialias=True)
            mask = F.resize(mask, [size], InterpolationMode.NEAREST)
            image, mask = F.center_crop(image, [size, size]), F.center_crop(mask, [size, size])
        return image, mask[0]
