"""The pictures of an experiment: rows with intervals; how the study went and what mattered in it."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.tuning_pays.rows import (
    PUBLISHED,
    SHOWN,
    TUNED,
    Record,
    by_seed,
    groups,
    of_row,
)

# Okabe and Ito's colours, which all kinds of colour vision tell apart.
ORANGE, BLUE, GREEN, GREY = "#E69F00", "#0072B2", "#009E73", "#999999"
COLOUR_OF = {TUNED: ORANGE, PUBLISHED: BLUE}


def draw(record: Record, folder: Path, name: str) -> None:
    """Writes `<name>-rows.png`, once there is a row, and `<name>-study.png`."""
    if record["runs"]:
        draw_rows(record, folder / f"{name}-rows.png")
    draw_study(record, folder / f"{name}-study.png")


def draw_rows(record: Record, path: Path) -> None:
    """Mean, 95 % interval and seeds of every row, a panel for each metric."""
    rows = [row for row in record["rows"] if by_seed(record, row, "miou_all")]
    titles = (*groups(record), "all classes", "forgetting")
    figure = Figure(figsize=(13, 0.42 * len(rows) + 1.6), layout="constrained")
    panels = figure.subplots(1, len(SHOWN), sharey=True)
    for axis, metric, title in zip(panels, SHOWN, titles, strict=True):
        for place, row in enumerate(rows):
            _row(axis, record, row, metric, place)
        unit = "points, less is better" if metric == "forgetting" else "mIoU, %"
        axis.set(title=title, xlabel=unit, ylim=(len(rows) - 0.5, -0.5))
        axis.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(rows)), rows)
    figure.suptitle(
        f"{record['scenario']}, val: mean and 95 % interval over {record['seeds']} seeds (dots)"
    )
    figure.savefig(path, dpi=110)


def _row(axis: Axes, record: Record, row: str, metric: str, place: int) -> None:
    found, seeds = of_row(record, row, metric), by_seed(record, row, metric)
    if found is None:
        return
    colour = COLOUR_OF.get(row, GREY)
    if found.low is not None:
        axis.plot([found.low, found.high], [place, place], color=colour, lw=3, alpha=0.6)
    below = [place + 0.28] * len(seeds)
    axis.plot(list(seeds.values()), below, "o", ms=3, color="black", alpha=0.6)
    axis.plot([found.mean], [place], "D", ms=7, color=colour, markeredgecolor="black")


def draw_study(record: Record, path: Path) -> None:
    """The objective of every trial over its epochs, and the importances of the params."""
    study = record["study"]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for trial in study["trials"]:
        _curve(left, study, trial)
    left.set(
        title=f"{len(study['trials'])} trials on the hold-out",
        xlabel="epochs after step 0",
        ylabel=f"{study['objective']}, %",
    )
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    weights = sorted(study["importances"].items(), key=lambda item: item[1])
    right.barh([key for key, _ in weights], [100 * weight for _, weight in weights], color=BLUE)
    right.set(title="importance of the params", xlabel="% of the objective's variance")
    right.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def _curve(axis: Axes, study: Record, trial: Record) -> None:
    number, points = trial["number"], study["curves"].get(str(trial["number"]), {})
    if not points:
        return
    rungs = sorted(points, key=int)
    kinds = {study["best"]["number"]: ("best", ORANGE, 3.0), 0: ("published", BLUE, 2.0)}
    name, colour, width = kinds.get(number, (trial["state"].lower(), GREY, 1.0))
    style = ":" if trial["state"] == "PRUNED" else "-"
    known = axis.get_legend_handles_labels()[1]
    axis.plot(
        [int(rung) for rung in rungs],
        [points[rung] for rung in rungs],
        style,
        color=colour,
        lw=width,
        label=name if name not in known else "_",
    )
