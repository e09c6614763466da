"""A data set prepared once: checked, and written as Arrow files the workers map into memory.

    out/train.arrow, out/val.arrow   Arrow IPC files with the columns of SCHEMA, one row an image
    out/dataset.json                 data set, class names, fingerprint, row counts, schema version

Images and masks keep their encoded bytes; a mask is encoded anew only where its pixel values were
not yet class ids.  Masks with a palette stay so: read their indices, do not convert them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from ucd_ray.data import find_dataset
from ucd_ray.data.reader import Dataset, Splits
from ucd_ray.data.rows import (
    SPLITS,
    Generated,
    Row,
    RowTask,
    RowTasks,
    bad_entries,
    file_tasks,
    generated_tasks,
)
from ucd_ray.data.shapes import GENERATOR_VERSION
from ucd_ray.errors import DataError
from ucd_ray.scenarios import GENERATED_DATASETS

SCHEMA_VERSION = 1
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        # 64-bit offsets: the images of a whole table may exceed the 2 GiB of `binary`.
        ("image", pa.large_binary()),
        ("mask", pa.large_binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("classes", pa.list_(pa.uint8())),  # class ids present, 255 left out
        ("pixels", pa.list_(pa.int64())),  # their pixel counts
    ]
)
INFO_FILE = "dataset.json"
GENERATED = "generated"
_ROWS_PER_BATCH = 64
_MOST_THREADS = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prepared:
    """A prepared data set; the tables have the columns of SCHEMA and are memory-mapped.

    classes: name of every class id, 0 the background.
    fingerprint: digest of the data set's name, classes, and every id, image and mask in order.
    """

    path: Path
    dataset: str
    classes: tuple[str, ...]
    fingerprint: str
    train: pa.Table
    val: pa.Table


def prepare(
    dataset: str,
    source: Path | None,
    out: Path,
    *,
    generated: Generated | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Check the data set in `source`, or generate it, and write it to the new directory `out`.

    source: None to generate images as `generated` says.
    progress: called with (images done, images in all).
    Raises DataError, naming the files that cannot be used, and then leaves nothing behind.
    """
    if source is not None:
        found, splits = _find(dataset, source)
        return _write(found, file_tasks(found, splits, source), out, progress)
    found = find_dataset(dataset)
    if generated is None and dataset not in GENERATED_DATASETS:
        raise _no_data(found)
    return _write(found, generated_tasks(found, generated or Generated()), out, progress)


def open_prepared(path: Path) -> Prepared:
    """The prepared data set in `path`; raises DataError when it is none, damaged or newer."""
    if not (path / INFO_FILE).is_file():
        raise DataError(f"'{path}' is not a prepared data set: there is no {INFO_FILE} in it")
    try:
        info = json.loads((path / INFO_FILE).read_text())
        version = int(info["schema_version"])
        if version <= SCHEMA_VERSION:
            return Prepared(
                path=path,
                dataset=str(info["dataset"]),
                classes=tuple(map(str, info["classes"])),
                fingerprint=str(info["fingerprint"]),
                train=_open_table(path / "train.arrow", info["train"]),
                val=_open_table(path / "val.arrow", info["val"]),
            )
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"the prepared data set '{path}' is damaged ({type(error).__name__}: {error}); "
            "delete it and prepare it again"
        ) from error
    raise DataError(
        f"'{path}' was prepared by a newer ucd-ray (schema {version}, this one reads up to "
        f"{SCHEMA_VERSION}); update ucd-ray or prepare it again"
    )


def prepared_for(
    dataset: str,
    data: str | Path | None,
    home: Path,
    progress: Progress | None = None,
    generated: Generated | None = None,
) -> Prepared:
    """The prepared form of what `--data` names; made once under `home` and reused afterwards.

    data: a prepared directory, a directory of the data set, or "generated"; None only for shapes.
    generated: how to generate, where images are generated.
    Raises DataError when `data` is none of these or is another data set.
    """
    if data is None and dataset not in GENERATED_DATASETS:
        raise _no_data(find_dataset(dataset))
    if data is None or str(data) == GENERATED:
        found = find_dataset(dataset)
        tasks = generated_tasks(found, options := generated or Generated())
        key = [GENERATED, GENERATOR_VERSION, options.seed, options.size, _counts(tasks)]
        return _write_once(found, tasks, home, key, progress)

    root = Path(data).expanduser()
    if (root / INFO_FILE).is_file():
        prepared = open_prepared(root)
        if prepared.dataset != dataset:
            raise DataError(
                f"'{root}' holds the prepared data set '{prepared.dataset}', not '{dataset}'"
            )
        return prepared
    found, splits = _find(dataset, root)
    key = [found.classes, _listing(splits, root)]
    return _write_once(found, file_tasks(found, splits, root), home, key, progress)


def _find(name: str, root: Path) -> tuple[Dataset, Splits]:
    try:
        dataset = find_dataset(name, root)
        return dataset, dataset.find(root)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data set '{name}' cannot be read from '{root}': {error}") from error


def _write_once(
    dataset: Dataset, tasks: RowTasks, home: Path, key: list[object], progress: Progress | None
) -> Prepared:
    out = home / f"{dataset.name}-{_digest([SCHEMA_VERSION, key])[:16]}"
    if (out / INFO_FILE).is_file():
        return open_prepared(out)
    return _write(dataset, tasks, out, progress)


def _write(dataset: Dataset, tasks: RowTasks, out: Path, progress: Progress | None) -> Prepared:
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"'{out}' exists and is not empty; delete it or choose another place")
        with _new_directory(out) as unfinished:
            fingerprint = _write_tables(dataset, tasks, unfinished, progress)
            info = {
                "schema_version": SCHEMA_VERSION,
                "dataset": dataset.name,
                "classes": dataset.classes,
                "fingerprint": fingerprint,
                **_counts(tasks),
            }
            (unfinished / INFO_FILE).write_text(json.dumps(info, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"cannot write the prepared data set '{out}': {error}") from error
    prepared = open_prepared(out)
    if prepared.fingerprint != fingerprint:
        raise DataError(f"another process wrote other data to '{out}'; choose another place")
    return prepared


@contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """A sibling of `out` that becomes `out` when the block ends well, and else disappears."""
    unfinished = out.parent / f".{out.name}-{uuid.uuid4().hex[:8]}"
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        try:
            unfinished.rename(out)
        except OSError:
            # Another process may have prepared the same data in the meantime.
            if not (out / INFO_FILE).is_file():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_tables(dataset: Dataset, tasks: RowTasks, out: Path, progress: Progress | None) -> str:
    """Write both tables into `out`; returns the fingerprint.  Raises DataError for bad files."""
    total, done = sum(_counts(tasks).values()), 0
    fingerprint = hashlib.sha256(_digest([dataset.name, dataset.classes]).encode())
    bad: list[str] = []
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        for split in SPLITS:
            with pa.ipc.new_file(str(out / f"{split}.arrow"), SCHEMA) as writer:
                # Batch by batch, so that memory holds the images of one batch only.
                for start in range(0, len(tasks[split]), _ROWS_PER_BATCH):
                    chunk = tasks[split][start : start + _ROWS_PER_BATCH]
                    results = list(pool.map(RowTask.run, chunk))
                    bad += [result for result in results if isinstance(result, str)]
                    rows = [result for result in results if isinstance(result, Row)]
                    if not bad:
                        writer.write_batch(_batch(rows))
                        fingerprint.update("".join(_row_digest(split, r) for r in rows).encode())
                    done += len(chunk)
                    if progress:
                        progress(done, total)
    if bad:
        raise bad_entries(dataset.name, bad)
    return fingerprint.hexdigest()


def _batch(rows: list[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([asdict(row) for row in rows], schema=SCHEMA)


def _open_table(path: Path, num_rows: int) -> pa.Table:
    """The table of an Arrow IPC file, mapped; ValueError when it is not what was written."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    if not table.schema.equals(SCHEMA):
        raise ValueError(f"{path.name} has other columns")
    if table.num_rows != num_rows:
        raise ValueError(f"{path.name} has {table.num_rows} rows instead of {num_rows}")
    return table


def _listing(splits: Splits, root: Path) -> list[tuple[str, str, int, int]]:
    """(split, path below root, size, time of change) of every file; -1 for a missing one."""
    return [
        (split, os.path.relpath(path, root), *_size_and_time(path))
        for split in SPLITS
        for sample in splits[split]
        for path in (sample.image, sample.mask)
    ]


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _row_digest(split: str, row: Row) -> str:
    digests = [hashlib.sha256(data).hexdigest() for data in (row.image, row.mask)]
    return _digest([split, row.id, *digests])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _counts(tasks: RowTasks) -> dict[str, int]:
    return {split: len(tasks[split]) for split in SPLITS}


def _no_data(dataset: Dataset) -> DataError:
    lines = [f"data set '{dataset.name}' needs --data, a directory with", dataset.expects]
    lines += [f"how to get it: {dataset.how_to_get}"]
    if dataset.num_classes:
        lines += [
            "to try it without the data set, on generated images: "
            f"ucd-ray tune --scenario {dataset.example} --data generated"
        ]
    return DataError("\n".join(lines))


__all__ = [
    "SCHEMA",
    "SCHEMA_VERSION",
    "Generated",
    "Prepared",
    "open_prepared",
    "prepare",
    "prepared_for",
]
