"""The rows of a prepared data set: read from files or generated, each one checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ucd_ray.data.reader import IGNORE, Dataset, Ids, Sample, Splits, read_ids
from ucd_ray.data.shapes import SMALLEST_SIZE, generate
from ucd_ray.errors import DataError

SPLITS = ("train", "val")
_SHOWN_ENTRIES = 20


@dataclass(frozen=True)
class Row:
    """One image and its mask, both encoded, with the class ids present and their pixel counts."""

    id: str
    image: bytes
    mask: bytes
    height: int
    width: int
    classes: list[int]
    pixels: list[int]


@dataclass(frozen=True)
class RowTask:
    """How to make one row, and what to call it when that fails."""

    name: str
    make: Callable[[], Row]

    def run(self) -> Row | str:
        """The row, or the reason why there is none."""
        try:
            return self.make()
        except FileNotFoundError as error:
            return f"{error.filename}: the file is missing"
        except (OSError, DataError) as error:
            return f"{self.name}: {error}"


RowTasks = dict[str, list[RowTask]]


@dataclass(frozen=True)
class Generated:
    """Generated images that stand in for a data set: its classes, as textured shapes."""

    seed: int = 0
    train: int | None = None
    """Training images; None makes enough that every class is in at least ten."""
    val: int | None = None
    """Validation images; None makes enough that every class is in at least two."""
    size: int = 96
    """Side of the square images in pixels."""

    def counts(self, num_classes: int) -> dict[str, int]:
        """Images in each split; raises DataError for values no image can be made with."""
        counts = {
            "train": max(400, 10 * num_classes) if self.train is None else self.train,
            "val": max(80, 2 * num_classes) if self.val is None else self.val,
        }
        limits = {"train": 1, "val": 1, "size": SMALLEST_SIZE, "seed": 0}
        for name, value in {**counts, "size": self.size, "seed": self.seed}.items():
            if value < limits[name]:
                raise DataError(f"generated {name} ({value}) must be at least {limits[name]}")
        return counts


def file_tasks(dataset: Dataset, splits: Splits, root: Path) -> RowTasks:
    """One task per sample.  Raises DataError for an empty split or an id that occurs twice."""
    for split in SPLITS:
        if not splits[split]:
            raise DataError(
                f"'{root}' has no {split} image for data set '{dataset.name}'; "
                f"expected:\n{dataset.expects}"
            )
    seen = Counter(sample.id for split in SPLITS for sample in splits[split])
    repeated = [f"{name}: the id occurs {times} times" for name, times in seen.items() if times > 1]
    if repeated:
        raise bad_entries(dataset.name, repeated)
    return {
        split: [RowTask(str(s.image), partial(_read_row, dataset, s)) for s in splits[split]]
        for split in SPLITS
    }


def generated_tasks(dataset: Dataset, options: Generated) -> RowTasks:
    """One task per image to generate; raises DataError when the data set has no fixed classes."""
    num_classes = dataset.num_classes
    if num_classes == 0:
        raise DataError(
            f"data set '{dataset.name}' has no fixed classes, so it cannot be generated; "
            "name a directory with --data, or use the data set 'shapes'"
        )
    counts = options.counts(num_classes)
    # Far apart, so that more training images never change the validation images; multiples of
    # the class count, so that each split begins a new turn through the classes.
    starts = {"train": 0, "val": num_classes * 100_000}
    return {
        split: [
            RowTask(f"generated image {index}", partial(_generate_row, index, options, num_classes))
            for index in range(starts[split], starts[split] + counts[split])
        ]
        for split in SPLITS
    }


def bad_entries(name: str, reasons: list[str]) -> DataError:
    """The error that lists why entries of data set `name` cannot be used."""
    lines = [f"data set '{name}' cannot be prepared; unusable entries ({len(reasons)}):"]
    lines += [f"  {reason}" for reason in reasons[:_SHOWN_ENTRIES]]
    if len(reasons) > _SHOWN_ENTRIES:
        lines.append(f"  and {len(reasons) - _SHOWN_ENTRIES} more")
    return DataError("\n".join(lines))


def _read_row(dataset: Dataset, sample: Sample) -> Row:
    image, mask = sample.image.read_bytes(), sample.mask.read_bytes()
    with _decoding("the image"), Image.open(BytesIO(image), formats=("JPEG", "PNG")) as opened:
        opened.load()  # all of it, so that a truncated file shows
        width, height = opened.size
    with _decoding(f"mask {sample.mask}"):
        ids = dataset.read_mask(mask)
    if ids.shape != (height, width):
        raise DataError(
            f"the image is {width} x {height} pixels, "
            f"but mask {sample.mask} is {ids.shape[1]} x {ids.shape[0]}"
        )
    if dataset.read_mask is not read_ids or not _is_8_bit_png(mask):
        mask = _encode_png(ids)
    return _row(sample.id, image, mask, ids, dataset.num_classes)


def _generate_row(index: int, options: Generated, num_classes: int) -> Row:
    image, ids = generate(index, seed=options.seed, num_classes=num_classes, size=options.size)
    name = f"{options.seed}-{index:07d}"
    return _row(name, _encode_png(image), _encode_png(ids), ids, num_classes)


def _row(name: str, image: bytes, mask: bytes, ids: Ids, num_classes: int) -> Row:
    """Raises DataError for a class id above `num_classes` other than 255."""
    counts = np.bincount(ids.ravel(), minlength=256)[:IGNORE]
    present = np.flatnonzero(counts)
    if present.size and present[-1] > num_classes:
        unknown = int(present[-1])
        raise DataError(
            f"the mask holds class id {unknown} ({counts[unknown]} pixels); "
            f"the ids are 0..{num_classes} and {IGNORE}"
        )
    height, width = ids.shape
    return Row(name, image, mask, height, width, present.tolist(), counts[present].tolist())


@contextmanager
def _decoding(what: str) -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError:
        raise DataError(f"{what} is not a JPEG or PNG file") from None
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    except Exception as error:  # damaged bytes make the decoders raise almost anything
        raise DataError(f"{what} is damaged or truncated: {error}") from error


def _is_8_bit_png(encoded: bytes) -> bool:
    with Image.open(BytesIO(encoded)) as opened:
        return opened.format == "PNG" and opened.mode in ("L", "P")


def _encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
