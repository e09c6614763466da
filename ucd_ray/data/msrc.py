"""MSRC-v2 with 21 classes, laid out like Pascal VOC."""

from __future__ import annotations

from pathlib import Path

from ucd_ray.data.reader import Dataset, Splits, layout_error, read_ids
from ucd_ray.data.voc import find_listed

# Horse and mountain are too rare and count as ignored, as is usual; id 0 marks no pixel.
CLASSES = (
    "background",
    "building",
    "grass",
    "tree",
    "cow",
    "sheep",
    "sky",
    "aeroplane",
    "water",
    "face",
    "car",
    "bicycle",
    "flower",
    "sign",
    "bird",
    "book",
    "chair",
    "road",
    "cat",
    "dog",
    "body",
    "boat",
)
EXPECTS = """\
JPEGImages/<id>.jpg
SegmentationClass/<id>.png (class ids 1..21, 255 ignored)
ImageSets/Segmentation/train.txt and val.txt"""
HOW_TO_GET = (
    "MSRC-v2 (591 images) from Microsoft Research Cambridge, its masks rewritten as class ids: "
    "the 21 classes in their original order, horse, mountain and unlabelled pixels as 255"
)


def find(root: Path) -> Splits:
    """Samples of an MSRC directory."""
    try:
        return find_listed(root)
    except LookupError as problem:
        raise layout_error(root, "msrc", str(problem), EXPECTS, HOW_TO_GET) from None


MSRC = Dataset("msrc", CLASSES, EXPECTS, HOW_TO_GET, find, read_ids, example="msrc-16-5")
