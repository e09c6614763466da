"""Pascal VOC 2012 (with or without the augmented masks), and every data set laid out like it."""

from __future__ import annotations

from pathlib import Path

from ucd_ray.data.reader import (
    IMAGE_SUFFIXES,
    Dataset,
    Sample,
    Splits,
    directory_problem,
    first_existing,
    layout_error,
    list_images,
    read_ids,
)

AUGMENTED_LISTS = ("train_aug.txt", "trainaug.txt")
AUGMENTED_MASKS = "SegmentationClassAug"
PLAIN_MASKS = "SegmentationClass"

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
EXPECTS = """\
JPEGImages/<id>.jpg
SegmentationClassAug/<id>.png with ImageSets/Segmentation/train_aug.txt (or trainaug.txt),
  or SegmentationClass/<id>.png with ImageSets/Segmentation/train.txt
ImageSets/Segmentation/val.txt"""
HOW_TO_GET = (
    "VOCtrainval_11-May-2012.tar from host.robots.ox.ac.uk/pascal/VOC/voc2012; the 10582 "
    "training images of the papers also need the SegmentationClassAug masks made from the "
    "Semantic Boundaries Dataset"
)


def find(root: Path) -> Splits:
    """Samples of a VOC directory, of VOCdevkit, or of the directory that holds VOCdevkit."""
    below = [root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"]
    base = next((path for path in below if (path / "JPEGImages").is_dir()), root)
    try:
        return find_listed(base)
    except LookupError as problem:
        raise layout_error(root, "voc", str(problem), EXPECTS, HOW_TO_GET) from None


def find_listed(root: Path) -> Splits:
    """Samples of a directory in the VOC layout; LookupError says what is missing.

    The augmented list and masks are used when both exist.
    """
    problem = directory_problem(root)
    if problem:
        raise LookupError(problem)
    if not (root / "JPEGImages").is_dir():
        raise LookupError("there is no JPEGImages/ in it")
    train, masks = _train_list_and_masks(root)
    val = root / "ImageSets" / "Segmentation" / "val.txt"
    if not val.is_file():
        raise LookupError("there is no ImageSets/Segmentation/val.txt in it")
    folder = root / "JPEGImages"
    images = {path.stem: path for path in list_images(folder)}

    def sample(name: str) -> Sample:
        return Sample(name, images.get(name, folder / f"{name}.jpg"), masks / f"{name}.png")

    return {"train": [*map(sample, read_list(train))], "val": [*map(sample, read_list(val))]}


def read_list(path: Path) -> list[str]:
    """Ids of a list file: one id a line, or the image path in front, as some lists have it."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [_id_of(line) for line in lines if line]


def _id_of(line: str) -> str:
    if "/" not in line:
        return line
    image = Path(line.split()[0])
    return image.stem if image.suffix.lower() in IMAGE_SUFFIXES else image.name


def _train_list_and_masks(root: Path) -> tuple[Path, Path]:
    lists = root / "ImageSets" / "Segmentation"
    augmented = first_existing([lists / name for name in AUGMENTED_LISTS])
    plain = first_existing([lists / "train.txt"])
    augmented_masks, plain_masks = root / AUGMENTED_MASKS, root / PLAIN_MASKS
    if augmented and augmented_masks.is_dir():
        return augmented, augmented_masks
    masks = first_existing([plain_masks, augmented_masks])
    if masks is None:
        raise LookupError(f"there is neither {PLAIN_MASKS}/ nor {AUGMENTED_MASKS}/ in it")
    train = plain or augmented
    if train is None:
        raise LookupError("there is no ImageSets/Segmentation/train.txt in it")
    return train, masks


VOC = Dataset("voc", CLASSES, EXPECTS, HOW_TO_GET, find, read_ids, example="voc-15-5")
