"""A trained network on the images of a data set: IoU of every class, means of old and new ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ucd_ray.data.prepare import Prepared
from ucd_ray.errors import DataError
from ucd_ray.network import Network, NetworkInfo
from ucd_ray.tune.cells import column
from ucd_ray.tune.places import places
from ucd_ray.tune.prepare import prepared_data

SPLITS = ("val", "train")
SCHEMA = pa.schema(
    [
        column("kind", str),  # class or mean
        column("class_id", int),  # of the data set
        column("name", str),
        column("step", int),  # that learned it
        column("age", str),  # old or new
        column("pixels", int, "pixels"),  # with this truth
        column("iou", float, "percent"),  # null: no pixels
    ]
)


@dataclass(frozen=True)
class Evaluation:
    """What a network scored on a split."""

    info: NetworkInfo
    split: str  # val or train
    images: int
    rows: list[dict[str, Any]]  # by SCHEMA: the classes, then the means

    def table(self) -> pa.Table:
        """One row per class, then one per mean; facts in the metadata."""
        table = pa.Table.from_pylist(self.rows, schema=SCHEMA)
        about = {"split": self.split, "images": str(self.images), "step": str(self.info.step)}
        return table.replace_schema_metadata(about)

    def mean(self, name: str) -> float | None:
        """A mean by its metric, such as miou_all; None if no class has pixels."""
        found = next(r["iou"] for r in self.rows if r["kind"] == "mean" and r["name"] == name)
        return None if found is None else float(found)


def evaluate(
    network: Network,
    *,
    split: str = "val",
    data: str | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Scores a network as its run was scored at the end of its step.

    split: val or train
    data: directory of the data set, of a prepared one, or `generated`; None: where the run had it
    Raises DataError if there is no such data set, or it has other classes.
    """
    info = network.info
    source = data or info.origin.get("recipe", {}).get("data.source")
    prepared = prepared_data(info.scenario.dataset, source, places(), console)
    check_classes(info, prepared)
    rows = scored_rows(info, prepared, split)
    confusion = _confusion(network, prepared, rows, split)
    return Evaluation(info, split, len(rows), list(_rows(info, confusion)))


def check_classes(info: NetworkInfo, prepared: Prepared) -> None:
    """Raises DataError unless the data set has the network's classes under its ids."""
    names = dict(enumerate(prepared.classes))
    for number, name in zip(info.class_ids, info.class_names, strict=True):
        if names.get(number) != name:
            there = f"'{names[number]}'" if number in names else "absent"
            raise DataError(
                f"the network's class {number} is '{name}', in '{prepared.path}' it is {there}; "
                "--data must be the data set that the network was trained on"
            )


def scored_rows(info: NetworkInfo, prepared: Prepared, split: str) -> NDArray[np.int64]:
    """Rows of the images that show a learned class; after the last step all."""
    from ucd_ray.data.step import presence

    shown = presence(prepared.val if split == "val" else prepared.train)
    if info.step == len(info.steps.steps) - 1:
        return np.arange(len(shown))
    return np.flatnonzero(shown[:, list(info.class_ids[1:])].any(1))


def _confusion(network: Network, prepared: Prepared, rows: NDArray[np.int64], split: str) -> Any:
    from ucd_ray.data.step import evaluation_labels
    from ucd_ray.data.transforms import EvaluationImages
    from ucd_ray.evaluate import confusion_matrix
    from ucd_ray.learner import Ranks
    from ucd_ray.runtime import choose_runtime

    info = network.info
    runtime = choose_runtime(info.compute)
    segmenter = network.segmenter().to(runtime.device).to(memory_format=runtime.memory_format)
    labels = evaluation_labels(info.steps, info.step, unseen=info.eval.unseen)
    table = prepared.val if split == "val" else prepared.train
    images = EvaluationImages(table, rows, labels, info.eval)
    return confusion_matrix(segmenter, images, runtime=runtime, ranks=Ranks())


def _rows(info: NetworkInfo, confusion: Any) -> Iterator[dict[str, Any]]:
    from ucd_ray.metrics import iou_per_class, mean_ious

    ious, pixels = iou_per_class(confusion), confusion.sum(1).tolist()
    for channel, number in enumerate(info.class_ids):
        step = next((s for s, ids in enumerate(info.steps.steps) if number in ids), 0)
        yield {
            "kind": "class",
            "class_id": number,
            "name": info.class_names[channel],
            "step": step,
            "age": "new" if step == info.step and number else "old",
            "pixels": pixels[channel],
            "iou": _or_none(float(ious[channel])),
        }
    means = mean_ious(
        ious,
        num_base=len(info.scenario.steps[0]) + 1,
        num_old=len(info.steps.classes_until(info.step - 1)) if info.step > 0 else 1,
        background=info.scenario.background,
    )
    for name, value in means.items():
        yield {"kind": "mean", "name": name, "iou": _or_none(value)}


def _or_none(value: float) -> float | None:
    return None if value != value else value


def evaluation_view(found: Evaluation) -> Table:
    """An evaluation for a terminal: classes, then the means without background."""
    info = found.info
    table = Table(
        title=f"{info.scenario.name} {info.setting} {info.method}, after step {info.step}",
        caption=f"IoU in percent on {found.images} {found.split} images, eval.mode {info.eval.mode}; "
        "means without background unless marked _bg",
    )
    for name in ("class", "id", "step", "old or new", "pixels", "IoU"):
        table.add_column(name, justify="left" if name in ("class", "old or new") else "right")
    for row in found.rows:
        if row["kind"] == "class":
            facts = (str(row["class_id"]), str(row["step"]), row["age"], f"{row['pixels']:,}")
        else:
            facts = ("", "", "", "")
        if row["kind"] == "mean" and row["name"] == "miou_base":
            table.add_section()
        value = "" if row["iou"] is None else f"{row['iou']:.1f}"
        table.add_row(row["name"], *facts, value)
    return table
