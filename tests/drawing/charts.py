"""One chart with every mark, and one of parallel axes."""

from __future__ import annotations

import math

import numpy as np

from ucd_ray.drawing.chart import (
    Axis,
    Band,
    Bars,
    Cells,
    Chart,
    Line,
    Parallel,
    Pixels,
    Plane,
    Points,
    Rule,
    Scale,
    Surface,
)

NAN = math.nan
NAMES = Axis("name", names=("one", "two"))
EVERY_MARK = Chart(
    "every",
    "Every <mark>",
    "study s: sub & title",
    (
        Plane(
            (
                Band([1, 2, 3], [1, 1, 1], [2, 3, 2], "band"),
                Line([1, 2, 3], [1, NAN, 2], "line", dots=True, texts=["<b>", "", "c"]),
                Line([1, 3], [2, 1], "stairs", dashed=True, stairs=True),
                Points([1, 2], [2, NAN], "rings", symbol="ring"),
                Points([1, 2], [2, 3], "crosses", symbol="cross"),
                Points([1, 2], [1, 2], "scaled", values=[0.0, 1.0]),
            ),
            Axis("x", "s", log=True, low=1, high=10),
            Axis("y", "%"),
            "lines",
        ),
        Plane((Bars([3, 1], ["3 %", "1 %"], low=[2, 1], high=[4, 1]),), y=NAMES),
        Plane((Cells([[0.0, 1.0], [NAN, 0.5]], written=True), Rule(0.5, "y")), NAMES, NAMES),
        Plane(
            (Surface([1, 2, 3], [1, 2], [[0, 0.5, 1], [NAN, 0.5, 1]]), Rule(2)),
        ),
        Plane((Pixels(np.full((4, 6, 3), 90, np.uint8)),), title="image"),
    ),
    note="A note.",
    columns=2,
    size=(3, 2),
    scale=Scale("value", "%", 0, 1),
    keys=(("key", "#009e73"),),
)
PARALLEL = Chart(
    "parallel",
    "Parallel",
    "study s",
    (
        Parallel(
            (
                Axis("a", low=0, high=1),
                Axis("b", log=True, low=1, high=100),
                Axis("c", names=("x", "y"), low=-0.5, high=1.5),
            ),
            [[0.5, 10, 1], [1.0, NAN, 0]],
            [0.25, 0.75],
        ),
    ),
    scale=Scale("value", "%", 0, 1),
)
