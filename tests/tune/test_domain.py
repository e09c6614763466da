"""Which params a study may try: conditions, constraints, points."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from ucd_ray.errors import ConfigError
from ucd_ray.tune.constraints import parse
from ucd_ray.tune.domain import Domain
from ucd_ray.tune.parameter import Parameter

PLOP = {"method": ["plop"]}


def domain_of(*constraints: str, **search: dict[str, Any]) -> Domain:
    parameters = {key: Parameter.model_validate(value) for key, value in search.items()}
    return Domain(parameters, tuple(map(parse, constraints)))


TREE = domain_of(
    method={"choices": ["mib", "plop"]},
    weight={"low": 1, "high": 3, "step": 1, "when": {"method": "plop"}},
    scale={"choices": [4, None], "when": {"weight": [2, 3]}},
    rate={"choices": [0.1, 0.2]},
)


def test_a_key_exists_where_all_that_it_depends_on_does_and_fits() -> None:
    assert TREE.exists("rate", {})
    assert TREE.exists("weight", {"method": "plop"})
    assert not TREE.exists("weight", {"method": "mib"})
    assert not TREE.exists("weight", {})
    assert TREE.exists("scale", {"method": "plop", "weight": 2})
    assert not TREE.exists("scale", {"method": "plop", "weight": 1})
    assert not TREE.exists("scale", {"method": "mib"})


def test_keys_come_after_those_they_depend_on() -> None:
    late = domain_of(
        a={"choices": [1, 2], "when": {"b": 1}},
        b={"choices": [1, 2], "when": {"c": [1, 2]}},
        c={"choices": [1, 2]},
    )
    assert late.order == ("c", "b", "a")
    assert domain_of(b={"choices": [1]}, a={"choices": [1]}).order == ("a", "b")


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (
            {"metod": "plop"},
            "'key' exists only under values of 'metod', which is not searched; did",
        ),
        ({"method": "ewc"}, "'key' would exist where method is ewc, which is not among"),
        ({"method": None}, "where method is null, which is not among"),
        ({"rate": 5}, "where rate is 5, which is not among"),
        ({"method": []}, "exists under no value of 'method'"),
        ({"key": 1}, "in a circle, so none can be met: key -> key"),
        ({"other": 1}, "in a circle, so none can be met: key -> other -> key"),
    ],
)
def test_a_condition_that_cannot_be_met_is_refused(when: dict[str, Any], message: str) -> None:
    domain = domain_of(
        key={"choices": [1, 2], "when": when},
        other={"choices": [1, 2], "when": {"key": 2}},
        method={"choices": ["mib", "plop"]},
        rate={"low": 0, "high": 1},
    )
    with pytest.raises(ConfigError, match=message):
        _ = domain.order


def test_a_condition_against_what_is_implied_is_refused() -> None:
    search = {
        "method": Parameter(choices=("mib", "plop")),
        "pod.weight": Parameter(choices=(1,), when={"method": "mib"}),
    }
    domain = Domain(search, implied={"pod.weight": {"method": ("plop",)}})
    with pytest.raises(ConfigError, match="where method is mib, but it is used only where method"):
        _ = domain.order


def test_all_points_are_those_that_exist_and_fit_each_once() -> None:
    expected = [{"method": "mib"}, {"method": "plop", "weight": 1}]
    expected += [
        {"method": "plop", "weight": weight, "scale": scale}
        for weight in (2, 3)
        for scale in (4, None)
    ]
    expected = [{**point, "rate": rate} for point in expected for rate in (0.1, 0.2)]
    assert len(TREE.points) == len(expected) == 12
    assert all(point in TREE.points for point in expected)


def test_constraints_leave_points_out() -> None:
    domain = domain_of("a < b", a={"choices": [1, 2, 3]}, b={"choices": [1, 2, None]})
    assert {(p["a"], p["b"]) for p in domain.points} == {(1, 2), (1, None), (2, None), (3, None)}


@pytest.mark.parametrize("constraints", [("a < b", "b < a"), ("a > 5",), ("a < b", "b < 0.001")])
def test_contradictory_constraints_are_refused(constraints: tuple[str, ...]) -> None:
    ranges = domain_of(*constraints, a={"low": 0, "high": 1}, b={"low": 0, "high": 1})
    with pytest.raises(ConfigError, match=f"'{constraints[0]}'.* nothing to try: of 10000"):
        ranges.check_possible()
    counted = domain_of(*constraints, a={"choices": [0, 1]}, b={"choices": [0, 1]})
    with pytest.raises(ConfigError, match=r"leaves? none of the points"):
        _ = counted.points


def test_more_points_than_anyone_would_try_are_refused() -> None:
    many = {f"k{i}": {"choices": list(range(10))} for i in range(6)}
    with pytest.raises(ConfigError, match="more than 100000 points to try one by one"):
        _ = domain_of(**many).points


def test_drawn_params_exist_and_lie_in_their_ranges() -> None:
    random = Random(1)
    drawn = [TREE.draw(random) for _ in range(200)]
    assert all(point in TREE.points for point in drawn)
    assert len({str(point) for point in drawn}) == len(TREE.points)
    spans = domain_of(
        a={"low": 0.01, "high": 1, "log": True}, b={"low": 3, "high": 9, "type": "int", "step": 3}
    )
    values = [spans.draw(random) for _ in range(300)]
    assert all(spans.search[k].holds(v) for params in values for k, v in params.items())
    assert 0.4 < sum(params["a"] < 0.1 for params in values) / 300 < 0.6
    assert {params["b"] for params in values} == {3, 6, 9}


def test_given_params_stay_and_the_rest_is_drawn_to_fit() -> None:
    domain = domain_of("a < b", a={"low": 0, "high": 1}, b={"low": 0, "high": 1})
    params = domain.draw_fitting(Random(0), {"b": 0.1})
    assert params["b"] == 0.1
    assert params["a"] < 0.1
    assert domain.draw_fitting(Random(0), {"a": 0.9, "b": 0.1}) == {"a": 0.9, "b": 0.1}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"wait": 1}, "value of 'wait', which is not searched"),
        ({"rate": 0.3}, r"value of 'rate' \(0.3\) is outside"),
        ({"weight": 1.5, "method": "plop"}, r"'weight' \(1.5\) is outside"),
        ({"weight": 2, "method": "mib"}, "'weight', which does not exist where method is mib"),
    ],
)
def test_params_that_no_trial_can_have_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TREE.check(params, "value")


def test_params_that_a_trial_can_have_pass_also_in_part() -> None:
    TREE.check({"method": "plop", "weight": 2, "scale": None}, "value")
    TREE.check({"weight": 2}, "value")
    domain = domain_of("a < b", a={"low": 0, "high": 1}, b={"low": 0, "high": 1})
    domain.check({"a": 1}, "value")
    with pytest.raises(ConfigError, match="values break the constraint 'a < b'"):
        domain.check({"a": 1, "b": 0.5}, "value")


def test_constraints_see_what_is_fixed_for_the_method() -> None:
    search = {
        "method": Parameter(choices=("mib", "plop")),
        "optim.lr_new": Parameter(low=0, high=1),
    }
    fixed = {"mib": {"optim.lr_base": 0.1}, "plop": {"optim.lr_base": 0.5}}
    domain = Domain(search, (parse("optim.lr_new < optim.lr_base"),), fixed=fixed)
    assert domain.broken({"method": "mib", "optim.lr_new": 0.3}) is not None
    assert domain.broken({"method": "plop", "optim.lr_new": 0.3}) is None
