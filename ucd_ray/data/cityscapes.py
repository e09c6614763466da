"""Cityscapes, fine annotations, as 19 classes with void as class 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ucd_ray.data.reader import (
    Dataset,
    Ids,
    Sample,
    Splits,
    directory_problem,
    layout_error,
    read_ids,
)
from ucd_ray.errors import DataError

CLASSES = (
    "void",
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
# Label id of each of the 19 classes, in the order of CLASSES; the other ids are void.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LARGEST_LABEL_ID = 33

EXPECTS = """\
leftImg8bit/{train,val}/<city>/<id>_leftImg8bit.png
gtFine/{train,val}/<city>/<id>_gtFine_labelIds.png (or *_gtFine_labelTrainIds.png)"""
HOW_TO_GET = (
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from www.cityscapes-dataset.com "
    "(a free account is needed), unpacked into one directory"
)
_IMAGE_END = "_leftImg8bit.png"
_MASK_END = "_gtFine_labelIds.png"
_TRAIN_ID_MASK_END = "_gtFine_labelTrainIds.png"


def read_label_ids(data: bytes) -> Ids:
    """Class ids of a *_labelIds.png mask: uint8 [H, W], every class outside the 19 is 0."""
    labels = read_ids(data)
    if labels.max() > LARGEST_LABEL_ID:
        raise DataError(f"label id {labels.max()} is not one of Cityscapes (0..{LARGEST_LABEL_ID})")
    return _LABEL_ID_TABLE[labels]


def read_train_ids(data: bytes) -> Ids:
    """Class ids of a *_labelTrainIds.png mask (0..18, 255 void): uint8 [H, W]."""
    labels = read_ids(data)
    unknown = labels[(labels >= len(LABEL_IDS)) & (labels != 255)]
    if unknown.size:
        raise DataError(f"train id {unknown.max()} is not one of Cityscapes (0..18 and 255)")
    return labels + np.uint8(1)  # 255 wraps to 0, the void class


def find(root: Path) -> Splits:
    """Samples whose masks are *_labelIds.png."""
    return _find(root, _MASK_END)


def find_train_ids(root: Path) -> Splits:
    """Samples whose masks are *_labelTrainIds.png."""
    return _find(root, _TRAIN_ID_MASK_END)


def for_directory(root: Path) -> Dataset:
    """The reader of the masks that are there: label ids, else train ids."""
    masks = root / "gtFine" / "train"
    has_label_ids = next(masks.glob(f"*/*{_MASK_END}"), None)
    has_train_ids = next(masks.glob(f"*/*{_TRAIN_ID_MASK_END}"), None)
    return CITYSCAPES_TRAIN_IDS if has_train_ids and not has_label_ids else CITYSCAPES


def _find(root: Path, mask_end: str) -> Splits:
    problem = directory_problem(root)
    for folder in ("leftImg8bit", "gtFine"):
        if problem is None and not (root / folder).is_dir():
            problem = f"there is no {folder}/ in it"
    if problem:
        raise layout_error(root, "cityscapes", problem, EXPECTS, HOW_TO_GET)
    return {split: _find_split(root, split, mask_end) for split in ("train", "val")}


def _find_split(root: Path, split: str, mask_end: str) -> list[Sample]:
    images = sorted((root / "leftImg8bit" / split).glob(f"*/*{_IMAGE_END}"))
    if not images:
        problem = f"there is no image in leftImg8bit/{split}/<city>/"
        raise layout_error(root, "cityscapes", problem, EXPECTS, HOW_TO_GET)
    masks = root / "gtFine" / split
    names = [(path.parent.name, path.name.removesuffix(_IMAGE_END)) for path in images]
    return [
        Sample(name, image, masks / city / f"{name}{mask_end}")
        for image, (city, name) in zip(images, names, strict=True)
    ]


def _label_id_table() -> Ids:
    table = np.zeros(256, np.uint8)
    table[list(LABEL_IDS)] = np.arange(1, len(LABEL_IDS) + 1)
    return table


_LABEL_ID_TABLE = _label_id_table()

CITYSCAPES = Dataset(
    "cityscapes",
    CLASSES,
    EXPECTS,
    HOW_TO_GET,
    find,
    read_label_ids,
    example="cityscapes-13-6",
    for_directory=for_directory,
)
CITYSCAPES_TRAIN_IDS = Dataset(
    "cityscapes",
    CLASSES,
    EXPECTS,
    HOW_TO_GET,
    find_train_ids,
    read_train_ids,
    example="cityscapes-13-6",
)
