"""Constraints between keys, as they are written and when they hold."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ucd_ray.errors import ConfigError
from ucd_ray.tune.constraints import parse


@pytest.mark.parametrize(
    ("text", "values", "holds"),
    [
        ("a.x < b.y", {"a.x": 1, "b.y": 2}, True),
        ("a.x < b.y", {"a.x": 2, "b.y": 2}, False),
        ("a.x <= b.y", {"a.x": 2, "b.y": 2}, True),
        ("a.x > 0.5", {"a.x": 0.5}, False),
        ("a.x >= -1", {"a.x": -1}, True),
        ("1 < a.x <= 10 * b.y", {"a.x": 5, "b.y": 0.5}, True),
        ("1 < a.x <= 10 * b.y", {"a.x": 6, "b.y": 0.5}, False),
        ("1 < a.x <= 10 * b.y", {"a.x": 1, "b.y": 0.5}, False),
        ("a.x + b.y - 1 <= 2", {"a.x": 1, "b.y": 2}, True),
        ("a.x - (b.y + 1) < 0", {"a.x": 3, "b.y": 2}, False),
        ("seed < 7", {"seed": 3}, True),
        ("a.x < b.y", {"a.x": 9}, True),  # b.y does not exist in this trial
        ("a.x <= b.y", {"a.x": None, "b.y": 512}, False),  # null is all: more than any number
        ("a.x <= b.y", {"a.x": 512, "b.y": None}, True),
        ("a.x <= b.y", {"a.x": None, "b.y": None}, True),
    ],
)
def test_a_constraint_holds_where_python_would_say_so(
    text: str, values: dict[str, Any], holds: bool
) -> None:
    assert parse(text).holds(values) is holds


@pytest.mark.parametrize(
    "text",
    [
        *("a.x", "a.x = b.y", "a.x == b.y", "a.x != 1", "a.x <", "", "a.x < b.y and b.y < 1"),
        *("a.x < 'b'", "f(a.x) < 1", "a.x ** 2 < 1", "a.x / 2 < 1", "a.b.c < 1", "True < a.x"),
        *("a.x < None", "(a.x < 1) < 2", "a[0] < 1", "not a.x < 1", "(" * 300 + "a"),
    ],
)
def test_anything_but_comparisons_of_keys_and_numbers_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must compare keys and numbers"):
        parse(text)


def test_a_constraint_without_a_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="'1 < 2' names no key"):
        parse("1 < 2")


def test_what_is_no_number_cannot_be_compared() -> None:
    for value in ("mib", True, [0.1]):
        with pytest.raises(ConfigError, match=r"'method'.* cannot be compared"):
            parse("method < 3").holds({"method": value})


def test_names_are_those_of_the_keys() -> None:
    assert parse("kd.weight < 2 * (ucd.weight + kd.alpha)").names == (
        *("kd.alpha", "kd.weight", "ucd.weight"),
    )


def test_the_excess_says_by_how_much_a_constraint_is_broken() -> None:
    assert parse("drop <= 2").excess({"drop": 3.5}) == 1.5
    assert parse("drop <= 2").excess({"drop": 2}) == 0
    assert parse("drop >= 2").excess({"drop": 0.5}) == 1.5
    assert parse("1 <= drop <= 2").excess({"drop": 1.5}) == -0.5
    strict = parse("drop < 2").excess({"drop": 2})
    assert 0 < strict < 1e-300, "broken by nothing is broken still"
    assert parse("drop < 2").excess({"drop": math.inf}) == math.inf
