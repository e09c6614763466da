"""Base steps of studies whose trials do not all share one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import TINY, MakeJob
from tests.test_train import reports_of
from ucd_ray.checkpoint import StepCache
from ucd_ray.tune.bases import BaseSteps, num_bases, own_bases, shares_base
from ucd_ray.tune.spec import StudySpec

RATE = {"low": 0.01, "high": 0.1}


def spec_of(methods: str = "", **search: dict[str, Any]) -> StudySpec:
    recipe = {key: value for key, value in TINY.items() if key != "method"}
    chosen = {"method": {"choices": methods.split()}} if methods else {}
    values = {"name": "study", "recipe": recipe, "search": {**chosen, **search}}
    return StudySpec.model_validate(values)


@pytest.mark.parametrize(
    ("methods", "search", "keys", "number"),
    [
        ("", {"kd.weight": RATE, "optim.lr_new": RATE}, [], 1),
        ("", {"optim.lr_base": RATE}, ["optim.lr_base"], None),
        ("lwf mib plop mib+ucd", {"kd.weight": RATE}, [], 1),
        ("mib lwf-mc", {}, ["method"], 2),  # sigmoids
        (
            "mib lwf joint pi pi+ucd",
            {},
            ["method"],
            3,
        ),  # all classes at once; watched from step 0 on
        ("mib lwf-mc", {"data.flip": {"choices": [0, 0.5]}}, ["data.flip", "method"], None),
    ],
)
def test_it_is_known_which_trials_share_a_base_step(
    methods: str, search: dict[str, Any], keys: list[str], number: int | None
) -> None:
    spec = spec_of(methods, **search)
    assert own_bases(spec) == keys
    assert num_bases(spec) == number
    assert shares_base(spec) == (number == 1)


@pytest.fixture
def bases(make_job: MakeJob) -> BaseSteps:
    return BaseSteps(StepCache(make_job().open_cache(), "study"), "float32")


def test_a_trial_waits_without_workers_while_another_trains_its_base_step(
    bases: BaseSteps, make_job: MakeJob
) -> None:
    mib, sigmoid, lwf = make_job(method="mib"), make_job(method="lwf-mc"), make_job(method="lwf")
    assert bases.waits("0", mib) is None
    assert bases.waits("1", lwf) is None, "nobody has workers yet"
    bases.place("0")
    assert bases.waits("1", lwf) == "its base step is being trained by trial 0"
    assert bases.waits("2", sigmoid) is None
    bases.ended("0")
    assert bases.waits("1", lwf) is None
    bases.place("1")
    reports_of(replace(mib, until=0))
    assert bases.waits("3", mib) is None, "it is there"


def test_a_trial_waits_while_another_study_trains_its_base_step(
    bases: BaseSteps, make_job: MakeJob
) -> None:
    job = make_job()
    other = StepCache(job.open_cache(), "other/4")
    lease = other.lease(job.step_key(0, precision="float32"))
    assert lease is not None
    assert "its base step is being trained by other/4" in str(bases.waits("0", job))
    lease.release()
    assert bases.waits("0", job) is None
