"""Charts as PNG and SVG, drawn by matplotlib: no browser, no display."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ucd_ray.drawing.chart import (
    MISSING,
    Axis,
    Band,
    Bars,
    Cells,
    Chart,
    Line,
    Mark,
    Parallel,
    Pixels,
    Plane,
    Points,
    Rule,
    Surface,
    along,
    padded,
    ticks,
)
from ucd_ray.drawing.colors import BLACK, GREY, LIGHT, SCALE

SYMBOLS = {"dot": "o", "ring": "o", "cross": "x", "star": "*", "diamond": "D"}
DPI = 130
CHARACTERS = 14.5  # of the title, in an inch
LETTER = 0.068  # inches of a letter in the legend
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "x"}


def still(chart: Chart, form: str) -> bytes:
    """The chart as `png` or `svg`."""
    with matplotlib.rc_context(STYLE):
        figure = _figure(chart)
        content = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {}
        figure.savefig(content, format=form, dpi=DPI, metadata=metadata)
    return content.getvalue()


def _figure(chart: Chart) -> Figure:
    columns = min(chart.columns, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    entries = _entries(chart)
    width = max(columns * chart.size[0] + 0.8 * (chart.scale is not None), 5.5)
    beside = 0.5 + LETTER * max(map(len, entries)) if entries else 0.0
    title, note = _wrapped(f"{chart.title}\n{chart.subtitle}", width), _wrapped(chart.note, width)
    height = rows * chart.size[1] + 0.2 * (title.count("\n") + note.count("\n") + 2)
    figure = Figure(figsize=(width + beside, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=GREY)
    grid = figure.subplots(rows, columns, squeeze=False)
    planes = list(grid.flat)
    for plane in planes[len(chart.panels) :]:
        plane.set_axis_off()
    norm = Normalize(chart.scale.low, chart.scale.high) if chart.scale else Normalize(0, 1)
    for plane, panel in zip(planes, chart.panels, strict=False):
        if isinstance(panel, Parallel):
            _draw_parallel(plane, panel, norm)
        else:
            _draw_plane(plane, panel, norm)
    if chart.scale is not None:
        bar = figure.colorbar(ScalarMappable(norm, SCALE), ax=planes, fraction=0.04, pad=0.02)
        bar.set_label(Axis(chart.scale.label, chart.scale.unit).title)
    if entries:
        handles, names = list(entries.values()), list(entries)
        figure.legend(handles, names, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _wrapped(text: str, width: float) -> str:
    lines = (textwrap.wrap(line, int(width * CHARACTERS)) for line in text.splitlines())
    return "\n".join(line for wrapped in lines for line in wrapped)


def _draw_plane(plane: Any, panel: Plane, norm: Normalize) -> None:
    plane.set_title(panel.title, fontsize=9, loc="left")
    images = [mark for mark in panel.marks if isinstance(mark, Pixels)]
    for mark in panel.marks:
        _draw(plane, mark, norm)
    if images:
        plane.set_axis_off()
        return
    _set_axis(plane, panel.x, "x")
    _set_axis(plane, panel.y, "y")
    if not any(isinstance(mark, Cells | Surface) for mark in panel.marks):
        plane.grid(color=LIGHT, linewidth=0.6)
        plane.set_axisbelow(True)


def _set_axis(plane: Any, axis: Axis, which: str) -> None:
    def set_(name: str, *values: Any, **options: Any) -> None:
        getattr(plane, f"set_{which}{name}")(*values, **options)

    set_("label", axis.title)
    if axis.log:
        set_("scale", "log")
    side = getattr(plane, f"{which}axis")
    if axis.names:
        slanted = which == "x" and len("".join(axis.names)) > 30
        options: dict[str, Any] = {"rotation": 45, "ha": "right"} if slanted else {}
        set_("ticks", range(len(axis.names)), axis.names, **options)
        set_("lim", -0.5, len(axis.names) - 0.5)
    elif axis.whole:
        side.set_major_locator(MaxNLocator(integer=True))
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if not axis.names:
        set_("lim", *padded(axis))
    if axis.downwards:
        plane.invert_yaxis()


def _draw(plane: Any, mark: Mark, norm: Normalize) -> None:
    match mark:
        case Points():
            hollow = mark.symbol == "ring"
            colors: dict[str, Any] = {"color": mark.color}
            if hollow:
                colors = {"facecolors": "none", "edgecolors": mark.color}
            elif mark.values is not None:
                colors = {"c": mark.values, "cmap": SCALE, "norm": norm}
                colors |= {"edgecolors": BLACK, "linewidths": 0.4}
            shape = SYMBOLS[mark.symbol]
            plane.scatter(mark.x, mark.y, s=mark.size**2, marker=shape, zorder=3, **colors)
        case Line():
            style = "--" if mark.dashed else "-"
            plane.plot(
                mark.x,
                mark.y,
                style,
                color=mark.color,
                linewidth=mark.width,
                drawstyle="steps-post" if mark.stairs else "default",
                marker="o" if mark.dots else None,
                markersize=4,
            )
        case Band():
            plane.fill_between(mark.x, mark.low, mark.high, color=mark.color, alpha=0.2, lw=0)
        case Bars():
            plane.barh(range(len(mark.values)), mark.values, color=mark.color, height=0.6)
            _draw_ends(plane, mark)
        case Cells():
            _draw_cells(plane, mark, norm)
        case Surface():
            x, y = np.meshgrid(mark.x, mark.y)
            plane.contourf(x, y, np.asarray(mark.values, float), 12, cmap=SCALE, norm=norm)
        case Rule():
            line = plane.axvline if mark.across == "x" else plane.axhline
            line(mark.at, color=BLACK, linewidth=0.8)
        case Pixels():
            plane.imshow(mark.image, interpolation="nearest")


def _draw_ends(plane: Any, mark: Bars) -> None:
    """Intervals and texts at the ends of bars."""
    ends = mark.high or mark.values
    for row, (low, high) in enumerate(zip(mark.low, mark.high, strict=True)):
        plane.plot((low, high), (row, row), color=BLACK, linewidth=1.2)
    for row, (end, text) in enumerate(zip(ends, mark.texts, strict=False)):
        plane.text(max(end, mark.values[row]), row, f"  {text}", va="center", fontsize=8)


def _draw_cells(plane: Any, mark: Cells, norm: Normalize) -> None:
    values = np.asarray(mark.values, float)
    plane.set_facecolor(LIGHT)
    plane.imshow(values, cmap=SCALE, norm=norm, aspect="auto", interpolation="nearest")
    if mark.written:
        for (row, column), value in np.ndenumerate(values):
            if not math.isnan(value):
                color = "white" if norm(value) < 0.5 else BLACK
                size = 8 if values.shape[1] < 12 else 6
                plane.text(
                    column,
                    row,
                    f"{value:.0f}",
                    ha="center",
                    va="center",
                    color=color,
                    fontsize=size,
                )


def _draw_parallel(plane: Any, panel: Parallel, norm: Normalize) -> None:
    axes = panel.axes
    order = np.argsort(panel.values)  # the highest lie on top
    lines = [
        [(i, _height(axis, panel.rows[row][i])) for i, axis in enumerate(axes)] for row in order
    ]
    drawn = LineCollection(lines, cmap=SCALE, norm=norm, linewidths=1.0, alpha=0.8)
    drawn.set_array(np.asarray(panel.values, float)[order])
    plane.add_collection(drawn)
    missing = any(math.isnan(value) for row in panel.rows for value in row)
    for i, axis in enumerate(axes):
        plane.axvline(i, color=BLACK, linewidth=0.8)
        shown = ticks(axis)
        if any(math.isnan(row[i]) for row in panel.rows):
            shown = [(MISSING, "not used"), *shown]
        for place, text in shown:
            plane.text(i + 0.03, place, text, fontsize=7, va="center", bbox=_BEHIND, zorder=3)
    plane.set_xlim(-0.1, len(axes) - 0.6)
    plane.set_ylim(MISSING - 0.05 if missing else -0.05, 1.05)
    plane.set_xticks(range(len(axes)), [axis.title.replace(".", ".\n", 1) for axis in axes])
    plane.set_yticks([])
    plane.spines[:].set_visible(False)


_BEHIND = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.6}


def _height(axis: Axis, value: float) -> float:
    return MISSING if math.isnan(value) else along(axis, value)


def _entries(chart: Chart) -> dict[str, Any]:
    """What stands in the legend: names, and what they look like."""
    entries: dict[str, Any] = {name: Patch(color=color) for name, color in chart.keys}
    for mark in _marks(chart):
        name = getattr(mark, "name", "")
        if name and name not in entries:
            entries[name] = _entry(mark)
    return entries


def _marks(chart: Chart) -> Iterable[Mark]:
    return (mark for p in chart.panels if isinstance(p, Plane) for mark in p.marks)


def _entry(mark: Any) -> Any:
    if isinstance(mark, Band):
        return Patch(color=mark.color, alpha=0.2)
    if isinstance(mark, Line):
        style = "--" if mark.dashed else "-"
        dot = "o" if mark.dots else None
        return Line2D([], [], color=mark.color, lw=mark.width, ls=style, marker=dot, markersize=4)
    face = "none" if mark.symbol == "ring" else mark.color
    shape = SYMBOLS[mark.symbol]
    return Line2D(
        [], [], ls="", marker=shape, color=mark.color, markerfacecolor=face, markersize=mark.size
    )
