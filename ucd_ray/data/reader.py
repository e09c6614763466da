"""What a data set is: where its images and masks lie, and how a mask becomes class ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ucd_ray.errors import DataError

IGNORE = 255
MAX_CLASSES = 254  # ids 1..254; 0 is background and 255 is ignored
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

Ids = npt.NDArray[np.uint8]
Splits = dict[str, list["Sample"]]

# The entry that gives a layout away, and the name it has in a message.
_LAYOUTS = {
    "dataset.json": "a data set that is already prepared",
    "JPEGImages": "the Pascal VOC layout (voc, msrc or folder)",
    "ADEChallengeData2016": "ADE20K (ade)",
    "images/training": "ADE20K (ade)",
    "leftImg8bit": "Cityscapes (cityscapes)",
    "images/train": "a folder of images and masks (folder)",
}
_SHOWN_ENTRIES = 10


@dataclass(frozen=True)
class Sample:
    """One image and its mask, as files; `id` is unique in its data set."""

    id: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Dataset:
    """A data set that can be read from a directory.

    classes: name of every class id; 0 is the background (or void) class, so there is one more
        name than there are learnable classes.
    expects: the files and folders `find` looks for, a few lines.
    find: root -> {"train": samples, "val": samples}; raises DataError on another layout.
    read_mask: bytes of a mask file -> uint8 [H, W] class ids, 255 ignored; raises DataError.
    example: a scenario of this data set, for messages.
    for_directory: root -> the data set to use there, where classes or mask format depend on it.
    """

    name: str
    classes: tuple[str, ...]
    expects: str
    how_to_get: str
    find: Callable[[Path], Splits]
    read_mask: Callable[[bytes], Ids]
    example: str
    for_directory: Callable[[Path], Dataset] | None = None

    @property
    def num_classes(self) -> int:
        """Learnable classes: the background is not counted."""
        return len(self.classes) - 1


def read_ids(data: bytes) -> Ids:
    """Class ids of a mask whose pixel values are the ids: uint8 [H, W].

    Palette images keep their indices.  Raises DataError for colour masks and values above 255.
    """
    with Image.open(BytesIO(data)) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16"):
            raise DataError(
                f"the mask has {image.mode} pixels; a mask holds one class id per pixel "
                "(PNG, 8-bit grey or palette)"
            )
        ids = np.asarray(image)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > 255:
        raise DataError(f"the mask holds values from {low} to {high}; class ids are 0..255")
    return ids.astype(np.uint8)


def layout_error(
    root: Path, name: str, problem: str, expects: str, how_to_get: str, *, generated: bool = True
) -> DataError:
    """The error of a directory that is absent or not laid out as data set `name`."""
    lines = [f"'{root}' cannot be read as data set '{name}': {problem}"]
    lines += ["expected:", _indent(expects)]
    if root.is_dir():
        lines += [f"found instead: {_entries(root)}"]
        lines += [f"it looks like {layout}" for layout in _recognise(root)]
    lines += [f"how to get it: {how_to_get}"]
    if generated:
        lines += ["to try it without the data set: --data generated"]
    return DataError("\n".join(lines))


def directory_problem(root: Path) -> str | None:
    """Why `root` cannot hold a data set at all, or None when it is a directory."""
    if root.is_dir():
        return None
    if root.is_file():
        return "it is a file; unpack it and name the directory"
    return "the directory does not exist"


def first_existing(paths: list[Path]) -> Path | None:
    """The first of `paths` that exists."""
    return next((path for path in paths if path.exists()), None)


def list_images(folder: Path) -> list[Path]:
    """The JPEG and PNG files directly in `folder`, sorted by name; none when it is absent."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _entries(root: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    if not names:
        return "nothing, the directory is empty"
    more = len(names) - _SHOWN_ENTRIES
    return ", ".join(names[:_SHOWN_ENTRIES]) + (f" and {more} more" if more > 0 else "")


def _recognise(root: Path) -> list[str]:
    layouts = [text for marker, text in _LAYOUTS.items() if (root / marker).exists()]
    return layouts[:1]


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
