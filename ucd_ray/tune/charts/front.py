"""The Pareto chart: what is paid for what."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ucd_ray.drawing.chart import Chart, Line, Mark, Plane, Points, Symbol
from ucd_ray.drawing.colors import GREY, ORANGE, VERMILION
from ucd_ray.errors import NotDrawn
from ucd_ray.tune.charts.source import DRAWN, Objective, Source, thinned
from ucd_ray.tune.charts.trials import axis_of, joined
from ucd_ray.tune.charts.words import measure_of
from ucd_ray.tune.objectives import pareto

OLD_AND_NEW = ("miou_old", "miou_new")  # against each other where there is one objective


@dataclass(frozen=True)
class Groups:
    """Complete trials by how they compare.  values: [N, axes] of a trial each"""

    axes: Sequence[Objective]
    numbers: NDArray[np.int64]
    values: NDArray[np.float64]
    front: NDArray[np.bool_]  # [N] no other beats it
    broken: NDArray[np.bool_]  # [N] it breaks a limit on results

    def points(
        self, which: NDArray[np.bool_], axes: tuple[int, int], name: str, symbol: Symbol, color: str
    ) -> Points:
        """Marks of some trials."""
        found: list[int] = np.flatnonzero(which).tolist()
        rows = found if symbol == "diamond" else thinned(found, DRAWN)
        x, y = (self.values[rows, axis].tolist() for axis in axes)
        size = 8 if symbol == "diamond" else 6
        return Points(x, y, name, color, symbol, size, texts=[self._text(row) for row in rows])

    def _text(self, row: int) -> str:
        pairs = zip(self.axes, self.values[row], strict=True)
        shown = ", ".join(f"{axis.metric} {value:.2f}" for axis, value in pairs)
        return f"trial {self.numbers[row]}: {shown}"


def front(source: Source) -> Chart:
    """The trials that no other beats in every objective; with one objective, in old and new mIoU."""
    groups = _of_objectives(source) if source.goals.several else _of_old_and_new(source)
    pairs = list(itertools.combinations(range(len(groups.axes)), 2))
    count, limited = len(groups.numbers), int(groups.broken.sum())
    beaten = count - limited - int(groups.front.sum())
    return Chart(
        "pareto",
        "What is paid for what: trials that no other beats in everything",
        source.subtitle(),
        tuple(_plane(groups, pair) for pair in pairs),
        note=joined(
            f"{int(groups.front.sum())} of {count:,} trials are not beaten.",
            f"{limited:,} break a limit on results." if limited else "",
            f"{DRAWN:,} of those beaten are drawn." if beaten > DRAWN else "",
            "" if source.goals.several else source.left_out,
        ),
        columns=min(2, len(pairs)),
        size=(6.0, 4.5),
    )


def _plane(groups: Groups, axes: tuple[int, int]) -> Plane:
    beaten = ~groups.front & ~groups.broken
    marks: list[Mark] = [groups.points(beaten, axes, "beaten by another", "ring", GREY)]
    if groups.broken.any():
        marks.append(groups.points(groups.broken, axes, "breaks a limit", "cross", ORANGE))
    kept = groups.points(groups.front, axes, "not beaten", "diamond", VERMILION)
    if len(groups.axes) == 2 and groups.front.any():
        x, y = zip(*sorted(zip(kept.x, kept.y, strict=True)), strict=True)
        marks.append(Line(x, y, color=ORANGE, width=1.0, dashed=True))
    marks.append(kept)
    return Plane(tuple(marks), axis_of(groups.axes[axes[0]]), axis_of(groups.axes[axes[1]]))


def _of_objectives(source: Source) -> Groups:
    if not source.complete:
        raise NotDrawn(f"study '{source.study}' has no complete trial")
    numbers = np.array([outcome.number for outcome in source.complete])
    values = np.array([outcome.values for outcome in source.complete])
    broken = np.array([not outcome.keeps_limits for outcome in source.complete])
    best = np.isin(numbers, [outcome.number for outcome in source.front])
    return Groups(source.objectives, numbers, values, best, broken)


def _of_old_and_new(source: Source) -> Groups:
    last = source.num_steps - 1
    found = source.means(OLD_AND_NEW, "select")
    every = [t.number for t in source.valued]
    both = [n for n in every if all((n, last, m) in found for m in OLD_AND_NEW)]
    if not both:
        raise NotDrawn("no complete trial has an mIoU of both old and new classes")
    values = np.array([[found[n, last, m] for m in OLD_AND_NEW] for n in both])
    limited = {o.number for o in source.complete if not o.keeps_limits}
    broken = np.array([n in limited for n in both])
    best = np.zeros(len(both), bool)
    best[~broken] = pareto(values[~broken])
    axes = [Objective(metric, measure_of(metric), True) for metric in OLD_AND_NEW]
    return Groups(axes, np.array(both), values, best, broken)
