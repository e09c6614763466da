"""Data sets by name.

`find_dataset` is the way in: it returns the entry of `DATASETS`, or, where the classes or the
mask format depend on the directory (`folder`, `cityscapes`), the data set of that directory.
"""

from __future__ import annotations

from pathlib import Path

from ucd_ray.data.ade import ADE
from ucd_ray.data.cityscapes import CITYSCAPES
from ucd_ray.data.folder import FOLDER
from ucd_ray.data.msrc import MSRC
from ucd_ray.data.reader import Dataset, Sample
from ucd_ray.data.shapes import SHAPES
from ucd_ray.data.voc import VOC
from ucd_ray.errors import DataError, did_you_mean

DATASETS: dict[str, Dataset] = {
    "voc": VOC,
    "ade": ADE,
    "cityscapes": CITYSCAPES,
    "msrc": MSRC,
    "folder": FOLDER,
    "shapes": SHAPES,
}


def find_dataset(name: str, root: Path | None = None) -> Dataset:
    """The data set of this name, as it is in `root` if one is given.

    Without `root`, "folder" has no classes yet: only its background.  Raises DataError for an
    unknown name and for a folder without classes.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set '{name}'; {did_you_mean(name, DATASETS)}")
    dataset = DATASETS[name]
    if root is None or dataset.for_directory is None:
        return dataset
    return dataset.for_directory(root)


__all__ = ["DATASETS", "Dataset", "Sample", "find_dataset"]
