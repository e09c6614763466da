"""Your own images and masks: a folder with a `classes.txt`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ucd_ray.data.reader import (
    MAX_CLASSES,
    Dataset,
    Sample,
    Splits,
    directory_problem,
    layout_error,
    list_images,
    read_ids,
)
from ucd_ray.data.voc import find_listed
from ucd_ray.errors import DataError

CLASSES_FILE = "classes.txt"
EXPECTS = """\
classes.txt: one class name a line, ids 1, 2, ... (a first line 'background' is id 0 and optional)
images/{train,val}/<id>.jpg (or .jpeg, .png) and masks/{train,val}/<id>.png,
  or JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{train,val}.txt as in Pascal VOC
masks hold class ids: 0 background, 255 ignored"""
HOW_TO_GET = "put your own images and masks into a directory of one of these two forms"


def folder_dataset(root: Path) -> Dataset:
    """The data set in `root`, with the classes of its classes.txt."""
    problem = directory_problem(root)
    if problem is None and not (root / CLASSES_FILE).is_file():
        problem = f"there is no {CLASSES_FILE} in it"
    if problem:
        raise _error(root, problem)
    return replace(FOLDER, classes=read_classes(root / CLASSES_FILE))


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names with the background first; raises DataError for none, repeated or too many."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    if names and names[0] == "background":
        names = names[1:]
    if not 1 <= len(names) <= MAX_CLASSES:
        raise DataError(f"'{path}' names {len(names)} classes; it must name 1 to {MAX_CLASSES}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"'{path}' names a class twice: {', '.join(repeated)}")
    return ("background", *names)


def find(root: Path) -> Splits:
    """Samples of either form; in images/{train,val} the split is part of the id."""
    problem = directory_problem(root)
    if problem:
        raise _error(root, problem)
    if (root / "images").is_dir():
        return {split: _find_split(root, split) for split in ("train", "val")}
    try:
        return find_listed(root)
    except LookupError as error:
        raise _error(root, str(error)) from None


def _find_split(root: Path, split: str) -> list[Sample]:
    for folder in (f"images/{split}", f"masks/{split}"):
        if not (root / folder).is_dir():
            raise _error(root, f"there is no {folder}/ in it")
    return [
        Sample(f"{split}/{image.stem}", image, root / "masks" / split / f"{image.stem}.png")
        for image in list_images(root / "images" / split)
    ]


def _error(root: Path, problem: str) -> DataError:
    return layout_error(root, "folder", problem, EXPECTS, HOW_TO_GET, generated=False)


FOLDER = Dataset(
    "folder",
    ("background",),
    EXPECTS,
    HOW_TO_GET,
    find,
    read_ids,
    example="folder-5-1",
    for_directory=folder_dataset,
)
