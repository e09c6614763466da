"""Colours that people with any kind of colour vision tell apart.

Single colours are those of Okabe and Ito (2008).  Scales are cividis (Nuñez, Anderton, Renslow 2018),
which is even in lightness, also in grey.
"""

from __future__ import annotations

BLACK, GREY, LIGHT = "#000000", "#8c8c8c", "#e6e6e6"
ORANGE, SKY, GREEN, YELLOW = "#e69f00", "#56b4e9", "#009e73", "#f0e442"
BLUE, VERMILION, PURPLE = "#0072b2", "#d55e00", "#cc79a7"

SERIES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
SCALE = "cividis"


def series(index: int) -> str:
    """The colour of the index-th of several lines; they repeat after seven."""
    return SERIES[index % len(SERIES)]


def rgb(color: str) -> tuple[int, int, int]:
    """Red, green and blue, 0..255."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def mixed(color: str, other: str, share: float) -> str:
    """`share` of `other` mixed into `color`."""
    pairs = zip(rgb(color), rgb(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def regions(count: int) -> list[str]:
    """Colours of areas in a picture: single ones, then lighter and darker ones; after 18 they repeat."""
    plain = [SKY, VERMILION, GREEN, YELLOW, BLUE, PURPLE]
    lighter = [mixed(color, "#ffffff", 0.55) for color in plain]
    darker = [mixed(color, BLACK, 0.5) for color in plain]
    found = [*plain, *lighter, *darker]
    return [found[i % len(found)] for i in range(count)]
