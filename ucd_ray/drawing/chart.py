"""What a chart shows, described once and drawn by `still` (matplotlib) and `interactive` (plotly).

A chart is a grid of panels.  A panel is a plane with two axes and marks on it, or parallel axes with a
line per trial.  Numbers are lists; NaN is a number that is not known, and breaks a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from ucd_ray.drawing.colors import BLUE

Numbers = Sequence[float]
Symbol = Literal["dot", "ring", "cross", "star", "diamond"]


@dataclass(frozen=True)
class Axis:
    """One axis: what is on it, in which unit."""

    label: str = ""
    unit: str = ""
    log: bool = False
    names: tuple[str, ...] = ()  # of the values 0, 1, 2 ...; empty: numbers
    whole: bool = False  # only whole numbers are marked
    low: float | None = None
    high: float | None = None
    downwards: bool = False  # the first of the names is on top

    @property
    def title(self) -> str:
        """Label and unit."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label


@dataclass(frozen=True)
class Points:
    """Marks at x, y, all of one colour or coloured by the chart's scale."""

    x: Numbers
    y: Numbers
    name: str = ""  # in the legend; empty: not there
    color: str = BLUE
    symbol: Symbol = "dot"
    size: float = 7.0
    values: Numbers | None = None  # on the chart's scale, instead of `color`
    texts: Sequence[str] = ()  # of each point


@dataclass(frozen=True)
class Line:
    """A line through x, y; NaN breaks it."""

    x: Numbers
    y: Numbers
    name: str = ""
    color: str = BLUE
    width: float = 2.0
    dashed: bool = False
    stairs: bool = False  # it keeps its height until the next point
    dots: bool = False  # the points are marked
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Band:
    """The area between two lines."""

    x: Numbers
    low: Numbers
    high: Numbers
    name: str = ""
    color: str = BLUE


@dataclass(frozen=True)
class Bars:
    """One horizontal bar for each name of the y axis."""

    values: Numbers
    texts: Sequence[str] = ()
    color: str = BLUE
    low: Numbers = ()  # ends of each value's interval
    high: Numbers = ()


@dataclass(frozen=True)
class Cells:
    """A heat map over the names of both axes, on the chart's scale."""

    values: Sequence[Numbers]  # a row per name of the y axis
    written: bool = False  # the values stand in the cells


@dataclass(frozen=True)
class Surface:
    """Filled contours over x, y, on the chart's scale."""

    x: Numbers
    y: Numbers
    values: Sequence[Numbers]  # a row per y


@dataclass(frozen=True)
class Rule:
    """A thin line across the plane."""

    at: float
    across: Literal["x", "y"] = "x"  # which axis it crosses at `at`


@dataclass(frozen=True)
class Pixels:
    """An image; its plane shows no axes."""

    image: NDArray[Any]  # [H, W, 3] uint8


Mark = Points | Line | Band | Bars | Cells | Surface | Rule | Pixels


@dataclass(frozen=True)
class Plane:
    """Two axes and what is drawn on them, the first mark lowest."""

    marks: tuple[Mark, ...]
    x: Axis = Axis()
    y: Axis = Axis()
    title: str = ""


@dataclass(frozen=True)
class Parallel:
    """Axes side by side and a line per row through its values; NaN: the row has no such value."""

    axes: tuple[Axis, ...]
    rows: Sequence[Numbers]  # a value per axis
    values: Numbers  # of each row, on the chart's scale


@dataclass(frozen=True)
class Scale:
    """What colours mean: numbers from `low` to `high`, dark to light."""

    label: str
    unit: str
    low: float
    high: float


@dataclass(frozen=True)
class Chart:
    """A titled grid of panels."""

    name: str
    title: str
    subtitle: str  # study, scenario, setting, images
    panels: tuple[Plane | Parallel, ...]
    note: str = ""  # how to read it, and what is not shown
    columns: int = 1
    size: tuple[float, float] = (6.4, 4.0)  # inches of a panel
    scale: Scale | None = None
    keys: tuple[tuple[str, str], ...] = ()  # names and colours beside those of the marks


ROOM = 0.03  # of an axis, beyond its ends
TICKS = 5  # of one of several parallel axes
MISSING = -0.14  # height of a value that a row does not have, where an axis is 0..1


def along(axis: Axis, value: float) -> float:
    """Where a value lies on an axis with `low` and `high`, 0..1; NaN stays."""
    assert axis.low is not None and axis.high is not None
    if axis.names:
        return (value + 0.5) / len(axis.names)
    low, high = axis.low, axis.high
    if axis.log and not math.isnan(value):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.5 + 0 * value


def padded(axis: Axis) -> tuple[float | None, float | None]:
    """The ends of an axis with room for marks at its `low` and `high`; None: as the marks need."""
    low, high = axis.low, axis.high
    if low is None or high is None:
        return low, high
    if axis.log:
        room = (high / low) ** ROOM
        return low / room, high * room
    return low - ROOM * (high - low), high + ROOM * (high - low)


def ticks(axis: Axis) -> list[tuple[float, str]]:
    """Places 0..1 on an axis with `low` and `high`, and what stands there."""
    if axis.names:
        return [(along(axis, i), name) for i, name in enumerate(axis.names)]
    assert axis.low is not None and axis.high is not None
    places = [i / (TICKS - 1) for i in range(TICKS)] if axis.high > axis.low else [0.5]
    if axis.log:
        ratio = axis.high / axis.low
        return [(place, f"{axis.low * ratio**place:.3g}") for place in places]
    return [(place, f"{axis.low + (axis.high - axis.low) * place:.4g}") for place in places]
