"""Background in a published mean, from the numbers of its row."""

from __future__ import annotations

import pytest

from ucd_ray.published.arithmetic import background_of


def printed(scenario: str, base: str, added: str, everything: str) -> str | None:
    first, total = {"voc-15-1": (15, 20), "ade-100-50": (100, 150)}[scenario]
    values = {f"miou_1_{first}": base, f"miou_{first + 1}_{total}": added, "miou_all": everything}
    return background_of(scenario, values)


@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize(("background", "first"), [("without", 15), ("with", 16)])
def test_a_mean_tells_how_many_classes_it_has(background: str, first: int, digits: int) -> None:
    base, added = 60.34, 20.21
    mean = (first * base + 5 * added) / (first + 5)
    values = (f"{value:.{digits}f}" for value in (base, added, mean))
    assert printed("voc-15-1", *values) == background


def test_groups_that_hardly_differ_do_not_tell() -> None:
    assert printed("voc-15-1", "79.1", "79.0", "79.1") is None


def test_a_mean_that_fits_neither_does_not_tell() -> None:
    assert printed("voc-15-1", "60.0", "20.0", "30.0") is None


def test_zeros_at_the_end_may_be_padding() -> None:
    assert printed("voc-15-1", "46.20", "12.90", "37.90") == "without"


def test_the_finest_groups_are_taken() -> None:
    values = {"miou_1_100": "50.3", "miou_101_150": "26.0"}
    tens = {f"miou_{first}_{first + 9}": f"{first - 75}.2" for first in range(101, 150, 10)}
    mean = (100 * 50.3 + sum(10 * float(v) for v in tens.values())) / 150
    assert background_of("ade-100-10", {**values, **tens, "miou_all": f"{mean:.2f}"}) == "without"


def test_old_and_new_are_the_groups_where_nothing_finer_is_printed() -> None:
    values = {"miou_old": "34.2", "miou_new": "13.5", "miou_all": "29.3"}
    assert background_of("voc-15-1", values) == "with"


@pytest.mark.parametrize(
    ("scenario", "values"),
    [
        ("cityscapes-11-5", {"miou_all": "59"}),  # no split of classes
        ("voc-15-1", {"miou_1_15": "60.0", "miou_16_20": "20.0"}),
        ("voc-15-1", {"miou_1_15": "60.0", "miou_all": "50.0"}),
    ],
)
def test_rows_without_all_groups_do_not_tell(scenario: str, values: dict[str, str]) -> None:
    assert background_of(scenario, values) is None
