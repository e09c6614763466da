"""What a study is after: metrics, directions, limits, and what of it can be wrong."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.conftest import TINY
from tests.tune.test_space import spec_of
from ucd_ray.tune.constraints import parse
from ucd_ray.tune.goals import Goals, goals_of, measured_with, sign_of, unit_of
from ucd_ray.tune.spec import StudySpec


def step(number: int, base: float, every: float, seconds: float = 3.0) -> dict[str, Any]:
    means = {"miou_base": base, "miou_all": every, "forgetting": math.nan if number == 0 else 7.0}
    return {"step": number, "seconds": seconds, "select": {"means": means}}


def test_more_of_a_mean_is_better_and_less_of_what_it_costs() -> None:
    names = ("miou_old", "miou_all_bg", "step1_miou_new", "forgetting", "drop", "seconds")
    assert [sign_of(name) for name in names] == [1, 1, 1, -1, -1, -1]
    assert sign_of("step2_forgetting") == -1
    goals = Goals(("miou_new", "seconds"))
    assert goals.directions == ["maximize", "minimize"]
    assert [unit_of(n) for n in (*names[:1], *names[3:])] == ["percent", "points", "points", "s"]


def test_metrics_are_collected_step_after_step() -> None:
    measured: dict[str, float] = {}
    for report in (step(0, 60.0, 60.0, 10.0), step(1, 55.0, 50.0), step(2, 40.0, 45.0, 4.0)):
        measured = measured_with(measured, report)
    assert measured["drop"] == 20.0
    assert measured["step1_drop"] == 5.0
    assert measured["step1_miou_all"] == 50.0
    assert (measured["miou_all"], measured["forgetting"]) == (45.0, 7.0)
    assert (measured["seconds"], measured["step2_seconds"]) == (17.0, 4.0)


def test_limits_are_the_constraints_that_name_metrics() -> None:
    spec = spec_of(
        search={"kd.weight": {"low": 1, "high": 9}},
        constraints=["kd.weight > 2", "drop <= 2", "step1_miou_new >= 0.5 * miou_all"],
    )
    assert [limit.text for limit in spec.goals.limits] == [
        *("drop <= 2", "step1_miou_new >= 0.5 * miou_all"),
    ]
    assert [constraint.text for constraint in spec.domain().constraints] == ["kd.weight > 2"]
    assert spec.goals.metrics == ("miou_all", "drop", "step1_miou_new")
    assert spec.goals.broken({"drop": 3, "step1_miou_new": 1, "miou_all": 2}) == ["drop <= 2"]


def test_a_metric_without_a_number_is_named() -> None:
    goals = Goals(("miou_all",), (parse("drop <= 2"),))
    assert goals.missing({"miou_all": 1.0, "drop": 0.0}) is None
    assert goals.missing({"miou_all": 1.0, "drop": math.nan}) == "drop"
    assert goals.missing({}) == "miou_all"


@pytest.mark.parametrize(
    ("values", "scalar", "plain"),
    [
        ({}, "miou_all", True),
        ({"objective": "forgetting"}, "forgetting", True),
        ({"objective": "miou_new", "prune_on": "miou_all"}, "miou_all", False),
        ({"objective": "seconds", "pruner": "none"}, "miou_all", False),
        ({"objectives": ["miou_old", "miou_new"], "pruner": "none"}, "miou_all", False),
        ({"objectives": ["miou_old", "seconds"], "prune_on": "drop"}, "drop", False),
        ({"objectives": ["miou_old"]}, "miou_old", True),
    ],
)
def test_one_scalar_is_measured_after_every_epoch(
    values: dict[str, Any], scalar: str, plain: bool
) -> None:
    goals = spec_of(**values).goals
    assert (goals.scalar, goals.plain) == (scalar, plain)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"objectives": ["miou_old", "miou_nw"]},
            "unknown objective 'miou_nw'; did you mean 'miou_new'",
        ),
        ({"objective": "accuracy"}, "unknown objective 'accuracy'; choose from: drop, forgetting"),
        ({"objectives": ["drop", "drop"]}, "objective 'drop' is there twice"),
        (
            {"objective": "miou_new", "objectives": ["miou_old", "drop"]},
            "objective 'miou_new' is not among objectives",
        ),
        ({"objectives": ["miou_old", "drop"]}, "pruner 'median' compares one number .* prune_on"),
        ({"objective": "seconds"}, "pruner 'median' compares one number .* and seconds give none"),
        ({"prune_on": "seconds"}, "prune_on 'seconds' is not measured after every epoch"),
        ({"prune_on": "miou"}, "unknown prune_on 'miou'; did you mean"),
        (
            {"objective": "drop", "pruner": "threshold"},
            "stops what is low, but less drop is better",
        ),
        (
            {"objectives": ["miou_old", "drop"], "pruner": "none", "sampler": "cmaes"},
            "sampler 'cmaes' knows one objective, there are 2; use tpe",
        ),
        (
            {"objectives": ["miou_old", "drop"], "pruner": "none", "terminator": True},
            "terminator judges one objective",
        ),
        ({"objective": "step3_miou_new", "pruner": "none"}, "needs step 3, but .* steps 0 to 2"),
        ({"objective": "step0_forgetting", "pruner": "none"}, "needs a second step"),
        (
            {"constraints": ["forgeting <= 2"]},
            "unknown metric 'forgeting'; did you mean 'forgetting'",
        ),
        ({"constraints": ["drop <= kd.weight"]}, "mixes params with 'drop'"),
        ({"constraints": ["step7_drop <= 1"]}, "'step7_drop' needs step 7"),
    ],
)
def test_goals_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(**values)


def test_every_method_of_a_study_must_measure_what_it_is_after() -> None:
    recipe = {key: value for key, value in TINY.items() if key != "method"}
    search = {"method": {"choices": ["mib", "joint"]}}
    for values in ({"objective": "forgetting"}, {"constraints": ["drop <= 2"]}):
        with pytest.raises(ValueError, match="needs a second step"):
            spec_of(recipe=recipe, search=search, **values)
    assert spec_of(recipe=recipe, search=search, objective="miou_base").goals.plain


def test_goals_are_read_from_stored_specs_of_any_version() -> None:
    spec = spec_of(objectives=["miou_old", "drop"], constraints=["drop <= 9"], pruner="none")
    stored = json.loads(spec.model_dump_json())
    assert goals_of(stored) == spec.goals == StudySpec.model_validate(stored).goals
    assert goals_of({"objective": "miou_all", "search": {}}) == Goals(("miou_all",))
