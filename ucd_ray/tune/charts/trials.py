"""Charts with a mark or a line per trial: history and intermediate values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
from optuna.trial import FrozenTrial

from ucd_ray.drawing.chart import Axis, Chart, Line, Mark, Plane, Points, Symbol
from ucd_ray.drawing.colors import BLUE, GREY, ORANGE, SKY, VERMILION
from ucd_ray.errors import NotDrawn
from ucd_ray.tune.charts.epochs import Curve
from ucd_ray.tune.charts.source import Objective, Source, thinned
from ucd_ray.tune.charts.words import measure_of
from ucd_ray.tune.progress import short

LINES = 60  # runs in the chart of intermediate values
CROWDED = 300  # marks from which on they are smaller
RINGS = "Rings are the last value of trials that were stopped early: of a part of the run."
DROPPED = "Rings are trials that were dropped early, at the mean of their finished replicates."
OF_REPLICATES = "Values are means over replicates, each of which has a small mark."

Found = list[tuple[FrozenTrial, float]]  # trials, each with a value


def history(source: Source, index: int = 0) -> Chart:
    """Every trial's value in an objective, and the best one so far."""
    objective = source.objectives[index]
    whole = [(t, t.values[index]) for t in source.valued]
    parts = _parts(source) if objective.metric == source.goals.scalar else []
    size = 6 if len(whole) < CROWDED else 3.5

    def points(found: Found, name: str, color: str, symbol: Symbol) -> Points:
        texts = [describe(trial, objective, value) for trial, value in found]
        x, y = [trial.number for trial, _ in found], [value for _, value in found]
        return Points(x, y, name, color, symbol, size, texts=texts)

    broken = {o.number for o in source.complete if not o.keeps_limits}
    kept = [(trial, value) for trial, value in whole if trial.number not in broken]
    out = [(trial, value) for trial, value in whole if trial.number in broken]
    marks = each_replicate(source, [trial for trial, _ in whole], lambda trial: trial.number)
    marks += [points(parts, "stopped early", GREY, "ring")] if parts else []
    marks += [points(out, "breaks a limit", ORANGE, "cross")] if out else []
    marks += [points(kept, "complete", BLUE, "dot")] if kept else []
    if kept:
        x, y = _best_so_far(source, index)
        marks.append(Line(x, y, "best so far", VERMILION, stairs=True))
    failed = sum(o.state == "FAIL" for o in source.outcomes)
    last = source.outcomes[-1].number
    return Chart(
        "history",
        "What each trial reached, and the best so far",
        source.subtitle(),
        (Plane(tuple(marks), Axis("trial", whole=True, low=0, high=last), axis_of(objective)),),
        note=joined(
            (RINGS if source.replicates == 1 else DROPPED) if parts else "",
            OF_REPLICATES if source.replicates > 1 else "",
            f"{failed:,} trials failed and have no value." if failed else "",
            source.left_out,
        ),
        size=(7.5, 4.0),
    )


def _parts(source: Source) -> Found:
    """Trials that were stopped early with what they had reached."""
    reached = {curve.number: curve.values[max(curve.values)] for curve in source.curves}
    found = []
    for trial in source.drawn:
        told = source.measured(trial)
        value = fmean(told) if told else reached.get(trial.number)
        if trial.state.name == "PRUNED" and value is not None:
            found.append((trial, value))
    return found


def each_replicate(
    source: Source, trials: Sequence[FrozenTrial], place: Callable[[FrozenTrial], float]
) -> list[Mark]:
    """A small mark for each finished replicate of trials that have several.  place: on the x axis"""
    told = [(trial, value) for trial in trials for value in source.measured(trial)]
    if not told:
        return []
    x, y = [place(trial) for trial, _ in told], [value for _, value in told]
    return [Points(x, y, "each replicate", SKY, size=3)]


def _best_so_far(source: Source, index: int) -> tuple[list[float], list[float]]:
    """The numbers at which the best value changes, with it; and the last number."""
    objective = source.objectives[index]
    kept = [o for o in source.complete if o.keeps_limits]
    values = [o.values[index] for o in kept]
    best = np.maximum.accumulate(objective.better(values))
    changes = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist()]
    x = [kept[i].number for i in changes]
    y = [values[i] for i in changes]
    return [*x, source.outcomes[-1].number], [*y, y[-1]]


def intermediate(source: Source) -> Chart:
    """What runs measured after every epoch since the end of step 0: the objective, or the scalar."""
    if not source.curves:
        raise NotDrawn("no trial has intermediate values")
    first = [o.number for o in (source.front if source.goals.several else source.ranked())]
    leaders = set(first[: LINES // 6])
    best = [curve for curve in source.curves if curve.number in leaders]
    others = [curve for curve in source.curves if curve.number not in leaders]
    others = thinned(others, max(LINES - len(best), 0))
    marks: list[Mark] = []
    for name, color, stopped in (("complete", SKY, False), ("stopped early", GREY, True)):
        if found := [c for c in others if (c.state == "PRUNED") == stopped]:
            marks.append(_lines(found, name, color, dashed=stopped))
    winner = set() if source.goals.several else set(first[:1])
    if found := [c for c in best if c.number not in winner]:
        name = "Pareto set" if source.goals.several else f"the next best {len(leaders) - 1}"
        marks.append(_lines(found, name, BLUE))
    if found := [c for c in best if c.number in winner]:
        marks.append(_lines(found, f"best: trial {first[0]}", VERMILION, width=3))
    scalar = measure_of(source.goals.scalar)
    highest = max(max(curve.values) for curve in (*others, *best))
    epochs = Axis("epochs since the end of step 0", whole=True, low=1, high=highest)
    drawn, told = len(others) + len(best), len(source.curves)
    what = "runs" if source.replicates > 1 else "trials"
    return Chart(
        "intermediate",
        f"How {'values develop' if source.goals.plain else scalar.label + ' develops'} while trials run",
        source.subtitle(),
        (Plane(tuple(marks), epochs, Axis(scalar.label, scalar.unit)),),
        note=joined(
            "After each epoch, on at most eval.max_images images.",
            "" if source.goals.plain else "The objectives are known only at the end of a trial.",
            f"{drawn:,} of {told:,} {what} are drawn." if drawn < told else "",
        ),
        size=(7.5, 4.0),
    )


def _lines(
    curves: Sequence[Curve],
    name: str,
    color: str,
    *,
    dashed: bool = False,
    width: float = 1.2,
) -> Line:
    """One line per run, with gaps between them."""
    x: list[float] = []
    y: list[float] = []
    texts: list[str] = []
    for curve in curves:
        values = dict(sorted(curve.values.items()))
        x += [*values, math.nan]
        y += [*values.values(), math.nan]
        texts += [*(f"{curve.name}, epoch {e}: {v:.2f}" for e, v in values.items()), ""]
    return Line(x, y, name, color, width, dashed, dots=width > 2, texts=texts)


def axis_of(objective: Objective) -> Axis:
    """The axis of an objective."""
    return Axis(objective.measure.label, objective.measure.unit)


def describe(trial: FrozenTrial, objective: Objective, value: float) -> str:
    """A trial in one line: value and params."""
    params = (f"{key} {short(found)}" for key, found in sorted(trial.params.items()))
    return f"trial {trial.number}: {objective.metric} {value:.2f}; {', '.join(params)}"


def joined(*sentences: str) -> str:
    """The sentences that are not empty, one after the other."""
    return " ".join(sentence for sentence in sentences if sentence)
