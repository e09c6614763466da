"""The dry run of a study: what it starts from, what it costs, where the numbers come from."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import TINY, MakeJob
from tests.test_train import reports_of
from tests.tune.test_database import step_report
from tests.tune.test_results import ABOUT
from ucd_ray.data.prepare import Prepared
from ucd_ray.errors import ClusterError, ConfigError, StudyError
from ucd_ray.tune.costs import CPU_FLOPS, forward_flops, measured, rough, update_costs
from ucd_ray.tune.database import Database
from ucd_ray.tune.executors import Gang
from ucd_ray.tune.places import places
from ucd_ray.tune.plan import Plan, plan_view, study_plan
from ucd_ray.tune.spec import StudySpec

pytestmark = pytest.mark.slow  # processes that load torch or Ray

GANG = Gang(workers=1, cpus=1.0, gpus=0.0)
SEARCH: dict[str, Any] = {"kd.weight": {"low": 1, "high": 200, "log": True}}


def spec_of(
    data: Prepared | None = None, recipe: dict[str, Any] | None = None, **values: Any
) -> StudySpec:
    source = {"data.source": str(data.path)} if data else {}
    content = {"name": "study", "recipe": {**TINY, **source, **(recipe or {})}, "search": SEARCH}
    return StudySpec.model_validate({**content, "trials": 6, "gpus_per_worker": 0, **values})


def text_of(plan: Plan) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_view(plan))
    return " ".join(console.export_text().split())


def store_steps(spec: StudySpec, *seconds: float, cached: bool = False) -> Database:
    """A study in the database at home whose trial 0 took `seconds` for 10 updates of each step."""
    database = Database(places().database)
    database.save_spec(spec.name, spec.model_dump_json(), ABOUT)
    for step, each in enumerate(seconds):
        report = {
            **step_report(),
            "step": step,
            "seconds": each,
            "iterations": 10,
            "cached": cached,
        }
        database.add_step(spec.name, 0, report)
    return database


def test_step_0_is_paid_once_and_the_rest_by_every_trial(shapes: Prepared) -> None:
    plan = study_plan(spec_of(shapes))
    assert (plan.trials, plan.done, plan.cached) == (6, 0, [False] * 3)
    assert plan.whole.low == pytest.approx(plan.base.low + 6 * plan.trial.low)
    assert plan.uncached.high == pytest.approx(6 * (plan.base.high + plan.trial.high))
    text = text_of(plan)
    assert "6 trial(s) to run; sampler tpe, pruner median" in text
    assert "kd.weight │ 1 .. 200 log" in text
    assert "FLOPs: rough" in text
    assert "5 to 60 GFLOP/s of a core" in text


def test_every_replicate_pays_its_base_step_once_and_the_rest_in_every_trial(
    shapes: Prepared,
) -> None:
    plan = study_plan(spec_of(shapes, seeds=2, class_orders=2))
    assert (plan.trials, plan.runs, plan.bases) == (6, 24, 4)
    assert plan.whole.low == pytest.approx(4 * plan.base.low + 24 * plan.trial.low)
    text = text_of(plan)
    assert "each trial is measured 4 times, 2 seed(s) x 2 class order(s)" in text
    assert "racing may drop a trial after 2" in text
    never = text_of(study_plan(spec_of(shapes, seeds=3, racing=0.1)))
    assert "racing drops none" in never


def test_nothing_is_started_and_no_study_is_made(shapes: Prepared, own_home: Path) -> None:
    study_plan(spec_of(shapes))
    assert Database(places().database).studies() == []
    assert not (own_home / "steps").exists()
    assert not (own_home / "runs").exists()


def test_a_base_step_in_the_cache_costs_nothing(shapes: Prepared, make_job: MakeJob) -> None:
    spec = spec_of(shapes, recipe={"optim.iterations_base": 2})
    job = make_job(until=0, **{"optim.iterations_base": 2})
    reports_of(replace(job, cache=places().steps))
    plan = study_plan(spec)
    assert plan.cached == [True, False, False]
    assert plan.whole.low == pytest.approx(6 * plan.trial.low)
    assert "the first trial finds 1 of its 3 steps in the step cache" in text_of(plan)


def test_keys_that_act_at_step_0_are_named_and_paid_for(shapes: Prepared) -> None:
    search = {**SEARCH, "optim.lr_base": {"low": 0.01, "high": 0.1}}
    plan = study_plan(spec_of(shapes, search=search))
    assert plan.own_bases == ["optim.lr_base"]
    assert plan.whole == plan.uncached
    assert "searched at step 0: optim.lr_base: trials cannot share a base step" in text_of(plan)


def test_trials_that_are_finished_are_not_run_again(shapes: Prepared) -> None:
    from ucd_ray.tune.bridge import TrialBook

    spec = spec_of(shapes)
    database = store_steps(spec)
    book = TrialBook(spec, database)
    book.next_trial()
    book.fail(0, "NAN", "nan")
    plan = study_plan(spec)
    assert (plan.trials, plan.done) == (5, 1)
    with pytest.raises(StudyError, match="exists with another spec"):
        study_plan(spec_of(shapes, recipe={"optim.lr_new": 0.5}))


def test_what_was_measured_with_the_same_costs_is_used(shapes: Prepared) -> None:
    store_steps(spec_of(shapes, name="slow"), 20.0, 40.0)
    store_steps(spec_of(shapes, name="fast", recipe={"optim.lr_new": 0.5}), 10.0, 30.0, cached=True)
    plan = study_plan(spec_of(shapes))
    assert [cost.studies for cost in plan.costs] == [("fast", "slow")] * 2 + [()]
    assert (plan.costs[0].seconds.low, plan.costs[0].seconds.high) == (1.0, 2.0)
    assert (plan.costs[1].seconds.low, plan.costs[1].seconds.high) == (3.0, 4.0)
    assert "measured in fast, slow" in text_of(plan)


@pytest.mark.parametrize(
    ("other", "steps"),
    [
        ({"recipe": {"data.crop": 96}}, set()),
        ({"recipe": {"data.batch_size": 8}}, set()),
        ({"workers": 2}, set()),
        ({"recipe": {"scenario": "shapes-8-4"}}, {0}),
        (
            {"recipe": {"method": "finetune"}, "search": {"optim.lr_new": {"low": 0.1, "high": 1}}},
            {0},
        ),
        ({"recipe": {"optim.epochs_new": 9}}, {0, 1}),
        ({"trials": 50, "seed": 4}, {0, 1}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_networks_batches_and_methods_are_not_taken_for_the_same(
    shapes: Prepared, other: dict[str, Any], steps: set[int]
) -> None:
    database = store_steps(spec_of(shapes, name="other", **other), 20.0, 40.0)
    assert set(measured(database, spec_of(shapes))) == steps


def test_an_estimate_counts_multiplications_of_the_network_as_pytorch_does() -> None:
    recipe = spec_of().base_recipe()
    with FlopCounterMode(display=False) as counter:
        nn.Conv2d(3, 8, 3, padding=1)(torch.zeros(1, 3, 4, 4))
    assert counter.get_total_flops() == 2 * 3 * 8 * 9 * 16
    double = spec_of(recipe={"data.crop": 128}).base_recipe()
    assert forward_flops(double, 0) == pytest.approx(4 * forward_flops(recipe, 0), rel=0.1)
    slow = rough(recipe, 0, GANG).high
    work = 3 * recipe.data.batch_size * forward_flops(recipe, 0)
    assert slow == pytest.approx(work / CPU_FLOPS[0])
    assert rough(recipe, 0, Gang(2, 2.0, 0.0)).high == pytest.approx(slow / 4)
    assert rough(recipe, 1, GANG).high > rough(recipe, 0, GANG).high * 4 / 3 * 0.99
    assert rough(recipe, 0, Gang(1, 1.0, 1.0)).high < rough(recipe, 0, GANG).low


def test_a_plan_refuses_what_a_start_refuses(shapes: Prepared) -> None:
    with pytest.raises(ConfigError, match="nothing is searched"):
        study_plan(spec_of(shapes, search={}))
    with pytest.raises(ClusterError, match="use fewer --workers"):
        study_plan(spec_of(shapes, workers=4096, recipe={"data.batch_size": 4096}))


def test_a_single_trial_needs_nothing_to_search(shapes: Prepared) -> None:
    assert study_plan(spec_of(shapes, search={}, trials=1)).trials == 1


def test_a_cluster_decides_how_many_trials_run_at_a_time(shapes: Prepared) -> None:
    plan = study_plan(spec_of(shapes), address="127.0.0.1:1")
    assert plan.concurrent is None
    assert "as many as fit at a time on the cluster" in text_of(plan)
    assert study_plan(spec_of(shapes, max_concurrent=1)).concurrent == 1


def test_every_step_has_a_cost(shapes: Prepared) -> None:
    spec = spec_of(shapes)
    costs = update_costs(Database(places().database), spec, GANG)
    assert len(costs) == 3
    assert all(0 < cost.seconds.low < cost.seconds.high for cost in costs)
