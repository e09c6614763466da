from __future__ import annotations

import math

import pytest

from ucd_ray.drawing.chart import TICKS, Axis, along, padded, ticks


def test_a_value_lies_between_the_ends_of_its_axis() -> None:
    axis = Axis(low=2.0, high=6.0)
    assert [along(axis, value) for value in (2, 3, 6)] == [0, 0.25, 1]
    assert math.isnan(along(axis, math.nan))


def test_on_a_log_axis_equal_factors_are_equal_distances() -> None:
    axis = Axis(log=True, low=0.001, high=10)
    assert [along(axis, value) for value in (0.001, 0.01, 0.1, 1, 10)] == pytest.approx(
        [0, 0.25, 0.5, 0.75, 1]
    )
    assert math.isnan(along(axis, math.nan))


def test_names_have_places_of_equal_width() -> None:
    axis = Axis(names=("a", "b"), low=-0.5, high=1.5)
    assert [along(axis, value) for value in (0, 1)] == [0.25, 0.75]
    assert ticks(axis) == [(0.25, "a"), (0.75, "b")]


def test_an_axis_of_a_single_value_has_it_in_the_middle() -> None:
    axis = Axis(low=3.0, high=3.0)
    assert along(axis, 3.0) == 0.5
    assert ticks(axis) == [(0.5, "3")]


@pytest.mark.parametrize("axis", [Axis(low=0, high=8), Axis(log=True, low=1, high=10_000)])
def test_ticks_say_the_value_at_their_place(axis: Axis) -> None:
    found = ticks(axis)
    assert len(found) == TICKS
    assert [along(axis, float(text)) for _, text in found] == pytest.approx([p for p, _ in found])


def test_a_padded_axis_shows_marks_at_its_ends() -> None:
    low, high = padded(Axis(low=0, high=10))
    assert low is not None and low < 0
    assert high is not None and high > 10
    low, high = padded(Axis(log=True, low=0.1, high=10))
    assert low is not None and 0.05 < low < 0.1
    assert padded(Axis(low=0)) == (0, None)


def test_a_title_has_label_and_unit() -> None:
    assert Axis("mIoU", "%").title == "mIoU [%]"
    assert Axis("step").title == "step"
