from __future__ import annotations

import inspect

import pytest

import ucd_ray.errors as errors
from ucd_ray.errors import UcdRayError, did_you_mean

ERRORS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_is_caught_as_the_one_base(kind: type[Exception]) -> None:
    assert issubclass(kind, UcdRayError)


@pytest.mark.parametrize("kind", ["ConfigError", "ScenarioError", "DataError", "WeightsError"])
def test_what_a_user_can_give_wrong_is_a_value_error(kind: str) -> None:
    assert issubclass(getattr(errors, kind), ValueError)


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__ is not None
    assert [kind.__name__ for kind in ERRORS if kind.__name__ not in errors.__doc__] == []


def test_a_near_word_is_suggested_alone() -> None:
    assert did_you_mean("overlaped", ["sequential", "overlapped"]) == "did you mean 'overlapped'?"


def test_without_a_near_word_all_choices_are_listed_in_order() -> None:
    assert did_you_mean("xyz", ["mib", "ilt"]) == "choose from: ilt, mib"
