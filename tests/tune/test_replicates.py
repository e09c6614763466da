"""Under what replicates are measured, what is refused, and in which order they are started."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from scipy import stats

from tests.conftest import MakeJob
from tests.tune.test_bridge import spec_of
from ucd_ray.class_orders import in_order
from ucd_ray.errors import DataError
from ucd_ray.tune.keys import Run, run_keys, trial_of
from ucd_ray.tune.replicates import next_replicate, replicate_jobs, replicates_of, undroppable


def test_every_class_order_is_run_under_every_seed_orders_first() -> None:
    spec = spec_of(seeds=2, class_orders=3)
    recipe, found = spec.base_recipe(), replicates_of(spec.model_dump())
    assert [(r.number, r.seed, r.order) for r in found] == [
        *((0, 42, 0), (1, 42, 1), (2, 42, 2)),
        *((3, 43, 0), (4, 43, 1), (5, 43, 2)),
    ]
    assert found[0].overrides(recipe) == {}
    recipes = [recipe.with_overrides(r.overrides(recipe)) for r in found]
    assert recipes[0] == recipe
    assert [r.seed for r in recipes] == [r.seed for r in found]
    assert [r.scenario.steps for r in recipes] == [
        in_order(recipe.scenario, r.order).steps for r in found
    ]


def test_seeds_beyond_the_largest_begin_again_at_0() -> None:
    stored = {"seeds": 3, "recipe": {"seed": 2**32 - 1}}
    assert [r.seed for r in replicates_of(stored)] == [2**32 - 1, 0, 1]


def test_trials_share_the_base_step_of_a_replicate_and_no_two_replicates_do(
    make_job: MakeJob,
) -> None:
    def bases(**params: Any) -> list[str]:
        jobs = replicate_jobs(make_job(**params), spec_of(seeds=2, class_orders=2))
        return [str(job.step_key(0, precision="float32")) for job in jobs]

    one, other = bases(**{"ucd.weight": 0.01}), bases(**{"ucd.weight": 0.5})
    assert one == other
    assert len(set(one)) == 4
    assert one[0] == str(make_job().step_key(0, precision="float32"))


def test_a_class_order_that_leaves_a_step_without_images_is_named(make_job: MakeJob) -> None:
    spec = spec_of(class_orders=9)
    job = make_job(setting="disjoint", scenario="shapes-1-1")
    with pytest.raises(DataError, match=r"^replicate \d \(seed 42, class order \d\): step \d "):
        replicate_jobs(job, spec)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "greater than 0"),
        ({"class_orders": 0}, "greater than 0"),
        ({"racing": 1.0}, "less than 1"),
        (
            {"recipe": {"scenario": {"dataset": "voc", "steps": [[1, 2], [3]], "name": "mine"}}},
            r"class_orders \(2\): scenario 'mine' is a file that fixes the order of its classes",
        ),
        (
            {"recipe": {"scenario": "voc-19-1"}, "class_orders": 21},
            r"class_orders \(21\): the 2 step\(s\) of scenario 'voc-19-1' have 20 class order\(s\)",
        ),
        (
            {"recipe": {"scenario": "voc-19-1", "data.split_lists": "/lists"}},
            r"class_orders \(2\): data.split_lists \('/lists'\) is for the published order",
        ),
        (
            {
                "recipe": {
                    "scenario": "voc-19-1",
                    "model.base": "/m.pth",
                    "model.base_classes": "/c.txt",
                }
            },
            r"class_orders \(2\): model.base \('/m.pth'\) is for the published order",
        ),
        (
            {"seeds": 3, "search": {"seed": {"choices": [1, 2]}}},
            r"key 'seed' is searched, but seeds \(3\) gives each replicate its own",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec_of(**{"class_orders": 2, "first": {}, "search": {}, **values})


def test_runs_are_called_by_trial_and_replicate() -> None:
    assert str(Run(3, 1)) == f"{Run(3, 1)}" == "3-r1"
    assert run_keys(3, 1) == ["3"]
    assert run_keys(3, 2) == ["3-r0", "3-r1"]
    assert [trial_of(key) for key in ("3", "3-r1", "12-r10")] == [3, 3, 12]
    assert [trial_of(key) for key in ("base", "base-r1", "3-r", "x3")] == [None] * 4


@pytest.mark.parametrize("racing", [0.4, 0.3, 0.25, 0.2, 0.1, 0.05])
def test_racing_can_drop_a_trial_once_wilcoxons_smallest_p_is_below_its_own(racing: float) -> None:
    surely = undroppable(10, racing)
    for count in range(2, 10):
        least = stats.wilcoxon([-1.0 - k for k in range(count)], alternative="less").pvalue
        assert (least < racing) == (count >= surely)


def test_few_replicates_are_all_run_where_racing_has_no_say() -> None:
    assert undroppable(3, None) == 3
    assert undroppable(3, 0.1) == 3
    assert undroppable(2, 0.9) == 2
    assert undroppable(1, 0.9) == 1


def test_replicates_run_side_by_side_until_racing_may_spare_one() -> None:
    def order(surely: int) -> list[tuple[int, int | None]]:
        return [
            (started, next_replicate(started, running, count=4, surely=surely))
            for started, running in ((0, 0), (1, 1), (2, 2), (2, 1), (2, 0), (3, 1), (3, 0), (4, 0))
        ]

    assert order(2) == [(0, 0), (1, 1), *((2, None),) * 2, (2, 2), (3, None), (3, 3), (4, None)]
    assert order(4) == [(0, 0), (1, 1), *((2, 2),) * 3, (3, 3), (3, 3), (4, None)]
