"""Charts of the params: importances, parallel coordinates, slices, contours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from optuna.trial import FrozenTrial

from ucd_ray.drawing.chart import (
    Axis,
    Bars,
    Chart,
    Mark,
    Numbers,
    Parallel,
    Plane,
    Points,
    Scale,
    Surface,
    along,
)
from ucd_ray.drawing.colors import BLUE, VERMILION
from ucd_ray.errors import NotDrawn
from ucd_ray.tune.charts.params import (
    MOST,
    NEEDED,
    RESAMPLES,
    Param,
    importances,
    most_important,
    params_of,
)
from ucd_ray.tune.charts.source import Objective, Source, thinned
from ucd_ray.tune.charts.trials import (
    CROWDED,
    OF_REPLICATES,
    axis_of,
    describe,
    each_replicate,
    joined,
)

LINES = 400  # trials in the parallel coordinates
FEW = 50  # complete trials, below which importances are a first guess
GRID = 100  # points of a surface along each axis
LOWEST = 5  # percentile of the values at which a colour scale starts


def importance(source: Source, index: int = 0) -> Chart:
    """How much each param mattered for an objective."""
    found = importances(source, index)
    bars = Bars(
        [i.share for i in found],
        [f"{i.share:.0f} % ({i.low:.0f} to {i.high:.0f})" for i in found],
        BLUE,
        [i.low for i in found],
        [i.high for i in found],
    )
    names = tuple(i.key for i in found)
    x = Axis("share of all importances", "%", low=0, high=1.4 * max(i.high for i in found))
    trials = sum(t.number in source.even for t in source.valued)
    guess = f" With fewer than {FEW} trials this is a first guess." if trials < FEW else ""
    return Chart(
        "importances",
        "How much each param decides whether a trial is among the best tenth",
        source.subtitle(),
        (Plane((bars,), x, Axis(names=names, downwards=True)),),
        note="PED-ANOVA, as Optuna computes it, also for params that only some trials have; from "
        f"{trials:,} complete trials.  Lines: 80 % of {RESAMPLES} resamples of them.{guess}",
        size=(7.0, 1.2 + 0.34 * len(names)),
    )


def parallel(source: Source, index: int = 0) -> Chart:
    """A line per trial through its params to its value in an objective."""
    trials = source.valued
    params = most_important(source, _needed(trials), index)[:MOST]
    objective = source.objectives[index]
    ranks = {o.number: place for place, o in enumerate(source.ranked(index))}
    best = [t for t in trials if ranks[t.number] < LINES // 4]
    others = [t for t in trials if ranks[t.number] >= LINES // 4]
    chosen = [*thinned(others, LINES - len(best)), *best]
    values = [t.values[index] for t in chosen]
    end = axis_of(objective)
    axes = (
        *(p.axis for p in params),
        Axis(objective.metric, end.unit, low=min(values), high=max(values)),
    )
    rows = [[*(p.place(t) for p in params), t.values[index]] for t in chosen]
    absent = any(math.isnan(value) for row in rows for value in row)
    drawn = f"{len(chosen):,} of {len(source.complete):,} complete trials are drawn."
    return Chart(
        "parallel",
        "Which params go together with which value",
        source.subtitle(),
        (Parallel(axes, rows, values),),
        note=joined(
            "A line is a trial; light lines are better ones."
            if objective.maximized
            else "A line is a trial; dark lines are better ones.",
            "Lines at 'not used' are trials without that param." if absent else "",
            drawn if len(chosen) < len(source.complete) else "",
        ),
        size=(max(6.0, 1.25 * len(axes)), 4.4),
        scale=scale_of(objective, values),
    )


def slices(source: Source, index: int = 0) -> Chart:
    """The value in an objective over each param."""
    trials, objective = source.valued, source.objectives[index]
    params = _needed(trials)
    shown = most_important(source, params, index)[:MOST]
    best = source.best_in(index).number
    values = [v for t in trials for v in (t.values[index], *source.measured(t))]
    margin = 0.04 * (max(values) - min(values)) or 1.0
    y = replace(axis_of(objective), low=min(values) - margin, high=max(values) + margin)
    panels = []
    for param in shown:
        having = [t for t in trials if param.key in t.params]
        every = Points(
            [param.place(t) for t in having],
            [t.values[index] for t in having],
            size=6 if len(having) < CROWDED else 3.5,
            values=[t.number for t in having],
            texts=[describe(t, objective, t.values[index]) for t in having],
        )
        marks: list[Mark] = [*each_replicate(source, having, param.place), every]
        for trial in having:
            if trial.number == best:
                at = ([param.place(trial)], [trial.values[index]])
                marks.append(Points(*at, f"best: trial {best}", VERMILION, "star", 13))
        panels.append(Plane(tuple(marks), param.axis, y))
    left = f"The {MOST} most important of {len(params)} params." if len(params) > MOST else ""
    last = float(max(t.number for t in trials))
    return Chart(
        "slice",
        "The value of complete trials over each param",
        source.subtitle(),
        tuple(panels),
        note=joined(
            "The most important param comes first; light marks are later trials.",
            OF_REPLICATES if source.replicates > 1 else "",
            left,
            source.left_out,
        ),
        columns=min(3, len(panels)),
        size=(3.6, 3.1),
        scale=Scale("trial", "", 0, max(last, 1)),
    )


def contour(source: Source, index: int = 0) -> Chart:
    """The value in an objective over the two most important params."""
    objective = source.objectives[index]
    trials = source.valued
    params = most_important(source, _needed(trials), index)
    pairs = [
        (a, b)
        for i, a in enumerate(params)
        for b in params[i + 1 :]
        if sum(a.key in t.params and b.key in t.params for t in trials) >= NEEDED
    ]
    if not pairs:
        raise NotDrawn(f"a contour needs {NEEDED} complete trials that share two params")
    x, y = pairs[0]
    having = [t for t in trials if x.key in t.params and y.key in t.params]
    values = [t.values[index] for t in having]
    surface = _surface(x, y, having, values)
    points = Points(
        [x.place(t) for t in having],
        [y.place(t) for t in having],
        size=6 if len(having) < CROWDED else 3.5,
        values=values,
        texts=[describe(t, objective, t.values[index]) for t in having],
    )
    there = {t.number: t for t in having}
    found = (o.number for o in source.ranked(index) if o.keeps_limits and o.number in there)
    star: list[Mark] = []
    if (number := next(found, None)) is not None:
        at = ([x.place(there[number])], [y.place(there[number])])
        star.append(Points(*at, f"best of them: trial {number}", VERMILION, "star", 13))
    read = (
        "Between trials the value is interpolated linearly; small islands are noise."
        if surface
        else "Nothing is drawn between the trials: there are too few, or a param has no order."
    )
    return Chart(
        "contour",
        "The value over the two most important params",
        source.subtitle(),
        (Plane((*surface, points, *star), x.axis, y.axis),),
        note=joined(read, source.left_out),
        size=(6.4, 4.8),
        scale=scale_of(objective, values),
    )


def _surface(
    x: Param, y: Param, trials: Sequence[FrozenTrial], values: Sequence[float]
) -> tuple[Surface, ...]:
    """The interpolated values between trials; none where they span no area."""
    from scipy.interpolate import griddata  # 30 MB that only this chart needs
    from scipy.spatial import QhullError

    if x.choices or y.choices:
        return ()
    places = np.array([[along(p.axis, p.place(t)) for p in (x, y)] for t in trials])
    grid = np.linspace(0, 1, GRID)
    try:
        found = griddata(places, np.asarray(values), tuple(np.meshgrid(grid, grid)), "linear")
    except QhullError:
        return ()
    return (Surface(_values(x.axis, grid), _values(y.axis, grid), found.round(3).tolist()),)


def _values(axis: Axis, places: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Numbers:
    """The values at places 0..1 of an axis."""
    assert axis.low is not None and axis.high is not None
    if axis.log:
        return (axis.low * (axis.high / axis.low) ** places).tolist()
    return (axis.low + (axis.high - axis.low) * places).tolist()


def _needed(trials: Sequence[FrozenTrial]) -> list[Param]:
    """The params of the trials.  Raises NotDrawn if nothing was searched."""
    params = params_of(trials)
    if not params:
        raise NotDrawn("nothing was searched")
    return params


def scale_of(objective: Objective, values: Sequence[float]) -> Scale:
    """Colours of an objective: the worst trials share one, so that good ones differ."""
    measure = objective.measure
    better = objective.better(values)
    ends = sorted(float(e) for e in objective.better([np.percentile(better, LOWEST), better.max()]))
    return Scale(measure.label, measure.unit, *ends)
