"""The page of the experiment, from made-up numbers; and what the experiment would run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tuning_pays import experiment
from benchmarks.tuning_pays.charts import draw
from benchmarks.tuning_pays.experiment import (
    FULL,
    HOLDOUT,
    PRUNER,
    QUICK,
    ROWS,
    Plan,
    continues,
    measure,
    row_values,
    study_spec,
)
from benchmarks.tuning_pays.page import markdown
from benchmarks.tuning_pays.rows import PUBLISHED, TUNED, difference, kept
from benchmarks.tuning_pays.sentences import answer, pays, promised
from benchmarks.tuning_pays.tables import rows_table, steps_table
from ucd_ray import Recipe, load_search_space

GIVEN = {"data.source": "/data", "model.weights": "/weights.pth"}


def run(row: str, seed: int, miou: float, *, steps: int = 2) -> dict[str, Any]:
    """A run whose base classes lose a point a step from 60."""
    values = [
        {
            "miou_base": 60.0 - step,
            "miou_added": None if step == 0 else 20.0,
            "miou_all": miou if step == steps - 1 else 60.0 - step,
            "forgetting": None if step == 0 else float(step),
        }
        for step in range(1 if row == "joint" else steps)
    ]
    if row == "joint":
        values[0] |= {"miou_added": 30.0, "miou_all": miou}
    return {"row": row, "seed": seed, "steps": values, "seconds": [100.0] * len(values)}


def record(runs: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    trials = [
        {"number": 0, "state": "COMPLETE", "value": 40.0, "seconds": 3600.0},
        {"number": 1, "state": "COMPLETE", "value": 44.0, "seconds": 3600.0},
        {"number": 2, "state": "PRUNED", "value": None, "seconds": 1800.0},
    ]
    study = {
        "objective": "miou_all",
        "pruner": "median",
        "sampler": "tpe",
        "seed": 42,
        "iterations": [500, 250],
        "network": "mobilenetv2_100",
        "crops": [8, 160],
        "images": {"holdout": 60, "val": 118},
        "search": {
            "kd.weight": {"low": 1.0, "high": 200.0, "log": True},
            "ucd.max_old": {"choices": [0, 128, None]},
        },
        "first": {"kd.weight": 10, "ucd.max_old": None},
        "trials": [{**trial, "kd.weight": 12.345, "ucd.max_old": None} for trial in trials],
        "curves": {"0": {"1": 30.0, "2": 40.0}, "1": {"1": 35.0, "2": 44.0}, "2": {"1": 20.0}},
        "best": {"number": 1, "params": {"kd.weight": 12.345, "ucd.max_old": 0}},
        "importances": {"kd.weight": 0.75, "ucd.max_old": 0.25},
    }
    values = {
        "scenario": "msrc-16-5",
        "steps": 2,
        "quick": False,
        "seeds": 3,
        "rows": [TUNED, PUBLISHED, "joint"],
        "machine": {"torch": "2"},
        "study": study,
        "runs": runs,
    }
    return {**values, **more}


def seeds_of(row: str, *values: float, steps: int = 2) -> list[dict[str, Any]]:
    return [run(row, seed, value, steps=steps) for seed, value in enumerate(values, 1)]


def page(found: dict[str, Any], others: tuple[Any, ...] = (), remarks: str = "") -> str:
    return markdown(found, name=found["scenario"], others=list(others), remarks=remarks)


def test_rows_are_paired_by_seed_and_only_where_both_have_it() -> None:
    runs = seeds_of(TUNED, 50.0, 60.0, 70.0) + seeds_of(PUBLISHED, 49.5, 58.5)
    found = difference(record(runs), TUNED, PUBLISHED, "miou_all")
    assert found is not None and (found.mean, found.count) == (1.0, 2)
    assert str(found) == "+1.0 [-5.4, +7.4]"  # t of one degree of freedom, 12.7, times 0.5
    assert difference(record(runs), TUNED, "joint", "miou_all") is None


def test_one_seed_has_neither_interval_nor_test() -> None:
    found = difference(
        record(seeds_of(TUNED, 50.0) + seeds_of("mib", 40.0)), TUNED, "mib", "miou_all"
    )
    assert found is not None and not found.is_distinguishable
    assert (str(found), found.p, found.doubt) == ("+10.0", "", ", one seed")


@pytest.mark.parametrize(
    ("tuned", "words"),
    [
        ((52.0, 53.1, 54.0), "**Tuning pays**: +3.0 ["),
        ((48.0, 48.9, 50.0), "**The tuned params are worse than the published ones**: -1.0 ["),
        ((49.0, 53.0, 51.0), "not distinguishable**: +1.0 ["),
        ((52.0,), "**One seed: the tuned params are 3.0 points above"),
        ((), "No seed has both"),
    ],
)
def test_the_verdict_follows_the_interval(tuned: tuple[float, ...], words: str) -> None:
    runs = seeds_of(TUNED, *tuned) + seeds_of(PUBLISHED, 49.0, 50.0, 51.0)
    assert words in pays(record(runs))


def test_a_study_whose_best_trial_is_the_published_one_found_nothing() -> None:
    found = record(seeds_of(TUNED, 50.0) + seeds_of(PUBLISHED, 50.0))
    found["study"]["best"]["number"] = 0
    assert "found nothing better" in pays(found)


def test_the_promise_of_the_hold_out_stands_beside_what_val_left_of_it() -> None:
    runs = seeds_of(TUNED, 50.0, 51.5) + seeds_of(PUBLISHED, 49.0, 50.0)
    sentence = promised(record(runs))
    assert "best of 2 complete trials was 4.0 points above" in sentence
    assert "it is 1.2 points above" in sentence


def test_rows_level_with_the_best_are_named() -> None:
    runs = seeds_of(TUNED, 50.0, 51.0) + seeds_of(PUBLISHED, 50.5, 50.4) + seeds_of("joint", 40, 41)
    text = "\n".join(answer(record(runs)))
    assert f"From best to worst: {TUNED} (50.5), {PUBLISHED} (50.5), joint (40.5)." in text
    assert f"Not distinguishable from the first: {PUBLISHED}." in text


def test_the_table_has_a_line_for_each_measured_row_and_blanks_where_nothing_is_measured() -> None:
    lines = rows_table(record(seeds_of(TUNED, 50.0) + seeds_of("joint", 45.0))).splitlines()
    assert "classes 1-16 | classes 17-21" in lines[0]
    assert lines[2:] == [
        f"| `{TUNED}` | 1 | 60.0 | 59.0 | 20.0 | 50.0 | 1.0 |",
        "| `joint` | 1 |  | 60.0 | 30.0 | 45.0 |  |",
    ]


def test_what_is_not_finished_or_quick_is_said() -> None:
    some = page(record(seeds_of(TUNED, 50.0), quick=True))
    assert "**Unfinished: 1 of 9 runs so far.**" in some
    assert "**This is `--quick`" in some
    everything = [run(row, seed, 50.0) for row in (TUNED, PUBLISHED, "joint") for seed in (1, 2, 3)]
    whole = page(record(everything))
    assert "Unfinished" not in whole and "--quick" not in whole


def test_params_are_shown_with_range_published_and_best_value() -> None:
    text = page(record([]))
    assert "| `kd.weight` | 1 to 200, log | 10 | 12.3 | 75 % |" in text
    assert "| `ucd.max_old` | 0, 128, all | all | 0 | 25 % |" in text
    assert "from 2 complete trials in 2 params: a hint" in text
    assert "next to nothing about single params" in text
    assert "| 2 | PRUNED after 1 epochs |  | 12.3 | all |" in text


def test_what_the_study_left_out_is_said() -> None:
    text = page(record([]))
    assert "1 of 3 trials was pruned, after 1 of 2 epochs" in text
    assert "no trial had `ucd.max_old` 0, `ucd.max_old` 128." in text


def test_remarks_by_hand_stand_apart() -> None:
    assert "by hand" not in page(record([]))
    assert page(record([]), remarks="A thought.").count("Written by hand") == 1


def test_three_steps_are_shown_step_by_step_and_beside_two() -> None:
    few = record(seeds_of(TUNED, 50.0, 51.0) + seeds_of(PUBLISHED, 49.0, 50.0))
    runs = seeds_of(TUNED, 40.0, 41.0, steps=3) + seeds_of(PUBLISHED, 39.0, 41.0, steps=3)
    many = record(runs, scenario="msrc-11-5", steps=3)
    text = page(many, (few,))
    assert "classes 1-11 | classes 12-21" in text
    assert "classes 1-11, after step 2" in steps_table(many)
    assert "## Beside msrc-16-5: 2 steps instead of 3" in text
    share = kept(many, TUNED)
    assert share is not None and share.mean == pytest.approx(100 * 58 / 60)
    assert f"from 2 to 3 steps: {TUNED} 98 to 97 %" in text
    assert "step 0 has 16 classes there and 11 here" in text


def test_pictures_are_drawn_before_and_after_the_first_row(tmp_path: Path) -> None:
    draw(record([]), tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a-study.png"]
    draw(record(seeds_of(TUNED, 50.0, 51.0) + seeds_of("joint", 45.0)), tmp_path, "a")
    assert (tmp_path / "a-rows.png").read_bytes()[:4] == b"\x89PNG"


def test_the_study_searches_the_space_and_batch_norm_and_starts_published() -> None:
    spec = study_spec("msrc-16-5", FULL, GIVEN)
    space = load_search_space("msrc-16-5")
    assert set(spec.search) == {*space.search, "model.norm"}
    assert spec.first == {**space.first, "model.norm": "batch"}
    assert (spec.trials, spec.pruner) == (16, PRUNER)
    assert spec.recipe["data.holdout"] == HOLDOUT
    assert spec.base_recipe().eval.select_on == "holdout"
    assert spec.base_recipe().seed not in range(1, FULL.seeds + 1)


def test_an_unfinished_record_of_the_same_plan_is_continued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = Plan(trials=3, seeds=2, recipe={})
    before = record([run(TUNED, 1, 41.0), run("mib", 2, 40.0)], seeds=2, rows=[*ROWS])
    before["study"] |= {"pruner": PRUNER, "holdout": HOLDOUT, "best": {"params": {}}}
    ran: list[tuple[str, int]] = []

    def train(row: str, values: dict[str, Any]) -> dict[str, Any]:
        ran.append((row, values["seed"]))
        return run(row, values["seed"], 42.0)

    monkeypatch.setattr(experiment, "run_row", train)
    records = [len(r["runs"]) for r in measure("msrc-16-5", plan, GIVEN, before)]
    assert records == list(range(2, 2 * len(ROWS) + 1))
    assert (TUNED, 1) not in ran and ("mib", 2) not in ran and ("joint", 2) in ran
    assert not continues(before, replace(plan, trials=4))
    assert not continues({**before, "seeds": 3}, plan)
    assert not continues({**before, "study": {**before["study"], "pruner": "none"}}, plan)


@pytest.mark.parametrize("plan", [FULL, QUICK])
def test_rows_differ_from_published_in_their_params_alone(plan: Plan) -> None:
    space = load_search_space("msrc-11-5")
    best = {"kd.weight": 12.5, "ucd.temperature": 0.5, "model.norm": "frozen"}
    study = {"best": {"params": best}, "iterations": [100, 50]}

    def flat(row: str) -> dict[str, Any]:
        return Recipe.from_flat(row_values(row, space, study, plan)).flat()

    published, tuned = flat(PUBLISHED), flat(TUNED)
    assert {key for key in published if published[key] != tuned[key]} == set(best)
    assert all(published[key] == value for key, value in space.first.items())
    mib = flat("mib")
    assert all(mib[key] == published[key] for key in mib if key != "method")
    assert published["eval.select_on"] == "val"
    assert flat("joint")["optim.iterations_base"] == 200  # the updates of all three steps
