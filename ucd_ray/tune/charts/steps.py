"""Charts of what is kept and lost from step to step: forgetting, classes, confusion.  All on val."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from ucd_ray.confusion import shares, summed, unpack
from ucd_ray.drawing.chart import Axis, Band, Bars, Cells, Chart, Line, Mark, Plane, Rule, Scale
from ucd_ray.drawing.colors import BLUE, GREY, SERIES, series
from ucd_ray.errors import NotDrawn
from ucd_ray.tune.charts.source import Source
from ucd_ray.tune.charts.words import GROUPS
from ucd_ray.tune.tables import class_table, confusion_table

VAL = "val images"
TALLEST = 50  # classes in one panel
WRITTEN = 12  # steps up to which values stand in the cells
PAIRS = 15  # of confused classes
IOU = Scale("IoU", "%", 0, 100)


def forgetting(source: Source) -> Chart:
    """The classes of step 0 over the steps, and each step's own classes in the best trial."""
    _check_steps(source)
    ious = _ious(source, source.best.number)
    groups = source.groups
    kept: list[Mark] = []
    for learned, classes in enumerate(groups):
        steps = list(range(learned, source.num_steps))
        means = [_mean([ious.get((step, c), math.nan) for c in classes]) for step in steps]
        look: dict[str, Any] = {"color": series(learned), "dashed": learned >= len(SERIES)}
        kept.append(Line(steps, means, _group_name(source, learned), **look, dots=True))
    x = Axis("step", whole=True, low=-0.1, high=source.num_steps - 0.9)
    return Chart(
        "forgetting",
        "What is kept from step to step",
        source.subtitle(VAL),
        (
            Plane(
                _base_marks(source),
                x,
                _percent(f"mIoU of {GROUPS['base']}"),
                "all trials, classes of step 0",
            ),
            Plane(
                tuple(kept),
                x,
                _percent("mIoU"),
                f"{source.best_name}: classes by their step",
            ),
        ),
        note="Background is left out.  The search did not see these images."
        if source.about.get("select_on") != "val"
        else "Background is left out.",
        columns=2,
        size=(4.8, 3.8),
    )


def _base_marks(source: Source) -> tuple[Mark, ...]:
    """How all complete trials and the best one keep the classes of step 0."""
    found = source.means(("miou_base",), "val")
    steps = list(range(source.num_steps))
    numbers = [t.number for t in source.valued if t.number in source.even]
    rows = [[found.get((n, step, "miou_base"), math.nan) for step in steps] for n in numbers]
    whole = np.array([row for row in rows if not any(map(math.isnan, row))]).reshape(-1, len(steps))
    best = [found.get((source.best.number, step, "miou_base"), math.nan) for step in steps]
    marks: list[Mark] = []
    if len(whole) > 1:
        low, middle, high = (np.percentile(whole, p, axis=0).tolist() for p in (10, 50, 90))
        marks.append(Band(steps, low, high, "80 % of complete trials", GREY))
        marks.append(Line(steps, middle, "their median", GREY, dots=True, dashed=True))
    marks.append(Line(steps, best, _group_name(source, 0), series(0), dots=True))
    return tuple(marks)


def _group_name(source: Source, step: int) -> str:
    count = len(source.groups[step])
    return f"best trial, step {step} ({count} class{'es' * (count > 1)})"


def classes(source: Source) -> Chart:
    """The IoU of every class after every step of the best trial."""
    ious = _ious(source, source.best.number)
    order = source.class_order
    columns = range(source.num_steps)
    parts = [order[i : i + TALLEST] for i in range(0, len(order), TALLEST)]
    planes = []
    for part in parts:
        values = [[ious.get((step, c), math.nan) for step in columns] for c in part]
        borders = [
            Rule(row + 0.5, "y")
            for row, (above, below) in enumerate(pairwise(part))
            if source.learned(above) != source.learned(below)
        ]
        cells = Cells(values, written=source.num_steps <= WRITTEN)
        names = tuple(source.class_name(c) for c in part)
        x = Axis("after step", names=tuple(str(step) for step in columns))
        planes.append(Plane((cells, *borders), x, Axis(names=names, downwards=True)))
    return Chart(
        "classes",
        f"Every class after every step of {source.best_name}",
        source.subtitle(VAL),
        tuple(planes),
        note="Classes in learning order, a line between steps.  Grey: not learned yet, or no such "
        "pixel in the images.",
        columns=len(planes),
        size=(1.8 + 0.42 * source.num_steps, 0.9 + 0.24 * min(TALLEST, len(order))),
        scale=IOU,
    )


def confusion(source: Source) -> Chart:
    """What old and new classes are taken for after the last step of the best trial."""
    _check_steps(source)
    last, number = source.num_steps - 1, source.best.number
    counts = _confusion(source, number, last)
    sizes = [1, *(len(group) for group in source.groups)]
    names = ("background", *(f"step {step}" for step in range(source.num_steps)))
    table = shares(summed(counts, sizes))
    cells = Cells(table.tolist(), written=True)
    x = Axis("predicted as classes of", names=names)
    groups = Plane((cells,), x, Axis("pixels of classes of", names=names, downwards=True))
    pairs = _worst_pairs(source, counts)
    bars = Bars([share for _, share in pairs], [f"{share:.0f} %" for _, share in pairs], BLUE)
    y = Axis(names=tuple(name for name, _ in pairs), downwards=True)
    between = Plane(
        (bars,),
        Axis(
            "share of the class",
            "% of its pixels",
            low=0,
            high=1.2 * max((s for _, s in pairs), default=1.0),
        ),
        y,
        "most confused",
    )
    return Chart(
        "confusion",
        f"What classes are taken for after step {last} of {source.best_name}",
        source.subtitle(VAL),
        (groups, between) if pairs else (groups,),
        note="Left: classes by the step that learned them; the diagonal counts any class of that step. "
        "Right: pairs of an old and a new class, new ones are of step " + f"{last}.",
        columns=2,
        size=(5.2, max(3.6, 1.0 + 0.24 * max(len(pairs), len(names)))),
        scale=Scale("share of truth pixels", "%", 0, 100),
    )


def _worst_pairs(source: Source, counts: NDArray[np.int64]) -> list[tuple[str, float]]:
    """Names and percent of the truth class for pairs of an old and a new class, the worst first."""
    order = source.class_order
    num_old = len(order) - len(source.groups[-1])
    found = []
    table = shares(counts)
    for i, j in np.ndindex(*table.shape):
        crosses = (i < num_old) != (j < num_old) and 0 not in (i, j)
        if crosses and table[i, j] >= 0.5:
            arrow = f"{source.class_name(order[i])} → {source.class_name(order[j])}"
            found.append((arrow, float(table[i, j])))
    return sorted(found, key=lambda pair: -pair[1])[:PAIRS]


def _confusion(source: Source, number: int, step: int) -> NDArray[np.int64]:
    """The stored matrix of a trial.  Raises NotDrawn if an earlier version ran the study."""
    c = confusion_table.c
    of_run = (c.study == source.study, c.number == number, c.replicate == 0, c.step == step)
    query = sa.select(c.counts).where(*of_run)
    content = source.database.read(lambda connection: connection.execute(query).scalar())
    if content is None:
        raise NotDrawn(f"no confusion is stored of trial {number}: an earlier version ran it")
    return unpack(content)


def _ious(source: Source, number: int) -> dict[tuple[int, int], float]:
    """(step, class id) -> IoU on val of one trial, where there is one."""
    c = class_table.c
    query = sa.select(c.step, c.class_id, c.iou).where(
        *(c.study == source.study, c.number == number, c.replicate == 0),
        *(c.images == "val", c.iou.is_not(None)),
    )
    rows = source.database.read(lambda connection: connection.execute(query).all())
    return {(row.step, row.class_id): row.iou for row in rows}


def _check_steps(source: Source) -> None:
    if source.num_steps < 2:
        raise NotDrawn("nothing is old in a scenario of one step")


def _percent(label: str) -> Axis:
    return Axis(label, "%")


def _mean(values: list[float]) -> float:
    found = [value for value in values if not math.isnan(value)]
    return sum(found) / len(found) if found else math.nan
