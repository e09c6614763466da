"""The charts of a study, by name; `ucd_ray.drawing` draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from ucd_ray.drawing.chart import Chart
from ucd_ray.errors import ConfigError, NotDrawn, did_you_mean
from ucd_ray.tune.charts import predictions, search, steps, trials
from ucd_ray.tune.charts.front import front
from ucd_ray.tune.charts.source import Source

OF_AN_OBJECTIVE: dict[str, Callable[[Source, int], Chart]] = {
    "history": trials.history,
    "importances": search.importance,
    "parallel": search.parallel,
    "slice": search.slices,
    "contour": search.contour,
}
OF_THE_STUDY: dict[str, Callable[[Source], Chart]] = {
    "intermediate": trials.intermediate,
    "pareto": front,
    "forgetting": steps.forgetting,
    "classes": steps.classes,
    "confusion": steps.confusion,
    "predictions": predictions.predictions,
}
CHARTS = (*OF_AN_OBJECTIVE, *OF_THE_STUDY)

__all__ = ["CHARTS", "NotDrawn", "Source", "chart_of", "check_chart", "drawings"]


def drawings(
    source: Source, names: Sequence[str] = (), objective: str | None = None
) -> dict[str, Callable[[], Chart]]:
    """What makes the charts with these names, all if there is none; by what each is called.

    A chart of an objective is there for each of several, as `slice-forgetting`, or for the one chosen.
    Raises ConfigError if there is no such chart, or the study has no such objective.
    """
    every = source.goals.objectives
    chosen = every if objective is None else (every[source.place_of(objective)],)
    found: dict[str, Callable[[], Chart]] = {}
    for name in names or CHARTS:
        check_chart(name)
        if name in OF_THE_STUDY:
            found[name] = partial(OF_THE_STUDY[name], source)
            continue
        for metric in chosen:
            called = f"{name}-{metric}" if source.goals.several else name
            found[called] = partial(chart_of, source, name, metric)
    return found


def chart_of(source: Source, name: str, objective: str | None = None) -> Chart:
    """The chart called `name`, of one objective: the first, unless another is chosen.

    Raises ConfigError if there is no such chart or objective, NotDrawn if it would be empty.
    """
    check_chart(name)
    if name in OF_THE_STUDY:
        return OF_THE_STUDY[name](source)
    index = 0 if objective is None else source.place_of(objective)
    chart = OF_AN_OBJECTIVE[name](source, index)
    if not source.goals.several:
        return chart
    wanted = source.objectives[index]
    title = f"{chart.title}: {wanted.measure.label}"
    return replace(chart, name=f"{name}-{wanted.metric}", title=title)


def check_chart(name: str) -> None:
    """Raises ConfigError if there is no such chart."""
    if name not in CHARTS:
        raise ConfigError(f"unknown chart '{name}'; {did_you_mean(name, CHARTS)}")
