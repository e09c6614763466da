"""Whether background counts in a published mean, found from the row's own numbers.

`miou_all` is the mean over the classes: of 20 on Pascal VOC without background, of 21 with it, where the
first group of the row has one class more.  Numbers are rounded, so often both fit, sometimes neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ucd_ray.errors import ScenarioError
from ucd_ray.scenarios import parse_scenario


def background_of(scenario: str, values: Mapping[str, str]) -> str | None:
    """`with`, `without`, or None where the numbers do not tell.

    values: as printed, in percent, by metric such as miou_0_15, miou_16_20 and miou_all
    """
    try:
        steps = parse_scenario(scenario).steps
    except ScenarioError:
        return None  # a domain-incremental split
    sizes = [len(step) for step in steps]
    groups = _groups(values, sizes[0], sum(sizes))
    if groups is None or "miou_all" not in values:
        return None
    half = _half_unit(values)
    fitting = [
        name
        for name, extra in (("without", 0), ("with", 1))
        if _fits(groups, float(values["miou_all"]), extra=extra, half=half)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _fits(groups: list[tuple[int, float]], mean: float, *, extra: int, half: float) -> bool:
    """Whether the groups' mean rounds to `mean`; extra: classes that the first group has more."""
    sizes = [size + (extra if i == 0 else 0) for i, (size, _) in enumerate(groups)]
    found = sum(size * value for size, (_, value) in zip(sizes, groups, strict=True)) / sum(sizes)
    return abs(found - mean) <= 2 * half + 1e-9  # both sides are rounded


def _groups(values: Mapping[str, str], base: int, total: int) -> list[tuple[int, float]] | None:
    """Size without background and mean of the finest groups that hold every class once, in order."""
    named: dict[int, tuple[int, float]] = {}
    for metric, value in values.items():
        ends = re.fullmatch(r"miou_(\d+)(?:_(\d+))?", metric)
        if ends is not None:
            first, last = max(int(ends[1]), 1), int(ends[2] or ends[1])
            if first not in named or last < named[first][0]:
                named[first] = (last, float(value))
    if not named and {"miou_old", "miou_new"} <= set(values):
        named = {1: (base, float(values["miou_old"])), base + 1: (total, float(values["miou_new"]))}
    groups, start = [], 1
    while start in named:
        last, mean = named[start]
        groups.append((last - start + 1, mean))
        start = last + 1
    return groups if start == total + 1 else None


def _half_unit(values: Mapping[str, str]) -> float:
    """Half of the last digit that the row is printed with; zeros at the end may be padding."""
    printed = [text for metric, text in values.items() if metric.startswith("miou_")]
    digits = max(len(text.rstrip("0").partition(".")[2]) for text in printed)
    return 0.5 * 10.0**-digits
