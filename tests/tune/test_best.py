"""The best trial of a study, and its reproduction from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.tune.finished import SHORT
from tests.tune.test_bridge import open_book, run_trial, spec_of
from tests.tune.test_database import step_report
from tests.tune.test_objectives import TWO, measure
from tests.tune.test_replicate_book import open_runs, take
from ucd_ray.environment import threads
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.tune.best import best_view, export, measured_trial
from ucd_ray.tune.database import Database
from ucd_ray.tune.executors import MICRO_BATCH
from ucd_ray.tune.recipe_file import read_recipe_file
from ucd_ray.tune.reproduce import as_before, verdict
from ucd_ray.tune.results import stored_trials
from ucd_ray.tune.run import run_job, run_prepared

QUIET = Console(quiet=True)


def shown(view: Any) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def test_the_best_trial_has_the_highest_value(finished: Database) -> None:
    values = {trial.number: trial.values[0] for trial in stored_trials(finished, "tiny")}
    best = measured_trial(finished, "tiny")
    assert len(values) == 2
    assert (best.value, best.number) == max((value, number) for number, value in values.items())
    other = measured_trial(finished, "tiny", 1 - best.number)
    assert other.value == values[1 - best.number]
    assert other.recipe.flat()["kd.weight"] == other.params["kd.weight"]


def test_every_step_tells_what_was_measured_and_what_trained_it(finished: Database) -> None:
    best = measured_trial(finished, "tiny")
    assert [step.step for step in best.steps] == [0, 1, 2]
    assert best.last.means["select"]["miou_all"] == best.value
    assert best.steps[0].means["val"]["miou_old"] is None
    for step in best.steps:
        assert step.environment is not None
        assert step.environment["threads"] == 1
        assert step.entry is not None


def test_what_is_shown_names_trial_params_numbers_and_machine(finished: Database) -> None:
    best = measured_trial(finished, "tiny")
    text = shown(best_view(best))
    assert f"study tiny, trial {best.number}: miou_all {best.value:.2f} on holdout" in text
    assert "kd.weight=" in text
    assert "1 worker(s) of 1 thread(s) on CPU" in text
    assert f"{best.last.means['val']['miou_all']:.1f}" in text
    json.dumps(best.content(), allow_nan=False)


def test_a_study_without_complete_trials_has_no_best_one(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(trials=20, pruner="threshold:lower=50,warmup=0"))
    with pytest.raises(StudyError, match="'study' has no complete trial yet"):
        measured_trial_of(book)
    run_trial(book, 40.0)
    run_trial(book, 60.0)
    with pytest.raises(StudyError, match=r"trial 0 of study 'study' is PRUNED.*complete ones: 1"):
        measured_trial_of(book, 0)
    with pytest.raises(StudyError, match="has no trial 7; its trials: 0 to 1"):
        measured_trial_of(book, 7)


# Several replicates, several objectives.


def test_each_replicate_has_its_recipe_value_and_steps(tmp_path: Path) -> None:
    book = open_runs(tmp_path, seeds=2, class_orders=2, racing=None)
    for value in (50.0, 52.0, 54.0, 60.0):
        run = take(book)
        report = step_report(0, value)
        book.report(run, {"kind": "step", **report})
        book.report(run, {"kind": "done", "value": value})
        expected = book.recipe_of(run)
        book.close(run)
        path = tmp_path / f"{run}.yaml"
        if run.replicate == 3:
            break
    database = book.trials.database
    for k, value in enumerate((50.0, 52.0, 54.0, 60.0)):
        found = measured_trial(database, "study", replicate=k)
        assert (found.value, found.mean) == (value, 54.0)
        assert found.steps[0].means["val"]["miou_all"] == value
        assert found.recipe.seed == (42, 42, 43, 43)[k]
    assert found.recipe == expected
    export(found, path)
    file, recipe = read_recipe_file(path)
    assert recipe == expected
    assert file.source == "replicate 3 of trial 0 of study 'study'"
    assert (file.value, file.mean) == (60.0, 54.0)
    assert "trial 0, replicate 3 of 4 (seed 43, class order 1): miou_all 60.00" in shown(
        best_view(found)
    )
    json.dumps(found.content(), allow_nan=False)
    with pytest.raises(StudyError, match="of study 'study' have no replicate 4, but 0 to 3"):
        measured_trial(database, "study", replicate=4)


def test_a_trial_of_one_run_has_no_other_replicate(finished: Database) -> None:
    with pytest.raises(StudyError, match="have no replicate 1, but 0 alone"):
        measured_trial(finished, "tiny", replicate=1)
    assert measured_trial(finished, "tiny").content().keys().isdisjoint({"replicate", "mean"})


def test_all_objectives_of_the_best_are_told(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(**TWO))
    measure(book, 30.0, 4.0)
    measure(book, 20.0, 1.0)
    found = measured_trial(book.database, "study")
    assert found.content()["values"] == {"miou_old": 30.0, "forgetting": 4.0}
    assert "trial 0: miou_old 30.00, forgetting 4.00 on holdout" in shown(best_view(found))
    file = found.recipe_file()
    assert (file.objective, file.value) == ("miou_old, forgetting on holdout", 30.0)


def measured_trial_of(book: Any, number: int | None = None) -> Any:
    return measured_trial(book.database, "study", number)


def test_a_trial_that_ran_out_of_memory_keeps_its_smaller_micro_batch(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    assert book.next_trial() is not None
    book.report(0, {"kind": "start", "first_step": 0, "micro_batch_new": 2})
    assert book.study.get_trials()[0].user_attrs[MICRO_BATCH] == 2
    book.report(0, {"kind": "done", "value": 5.0})
    book.close(0)
    assert measured_trial(book.database, "study").recipe.data.micro_batch_new == 2


def test_a_trial_trained_again_elsewhere_has_the_same_numbers_to_the_last_digit(
    finished: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its home is new, so no step comes from the cache; and it has more threads than the trial."""
    best = measured_trial(finished, "tiny")
    path = tmp_path / "recipe.yaml"
    export(best, path)
    monkeypatch.setenv("UCD_RAY_HOME", str(tmp_path / "elsewhere"))
    file, recipe = read_recipe_file(path)
    with threads(3):
        job = as_before(file, run_job(recipe), console=QUIET)
        result = run_prepared(job, address=None, console=QUIET)
    assert [step["cached"] for step in result.steps] == [False, False, False]
    for then, step in zip(best.steps, result.steps, strict=True):
        for images, means in then.means.items():
            now = step[images]["means"]
            assert means == {k: v if v == v else None for k, v in now.items()}
    assert verdict(file, result).startswith(f"the same numbers as trial {best.number} of study")


def test_an_exported_file_names_inputs_versions_machine_and_numbers(
    finished: Database, tmp_path: Path
) -> None:
    best = measured_trial(finished, "tiny")
    export(best, tmp_path / "recipe.yaml")
    file, recipe = read_recipe_file(tmp_path / "recipe.yaml")
    assert recipe == best.recipe
    assert (file.study, file.trial, file.value, file.workers) == (
        "tiny",
        best.number,
        best.value,
        1,
    )
    assert file.recipe["optim.iterations_new"] == SHORT["optim.iterations_new"]
    assert file.inputs is not None
    assert best.last.environment is not None
    assert file.inputs.data == best.last.environment["inputs"]["data"]
    (trained,) = file.trained
    assert trained.steps == (0, 1, 2)
    assert trained.packages["torch"]
    assert trained.hardware["cpu"]
    assert file.threads(3) == (1, 1, 1)
    assert [m.val["miou_all"] for m in file.measured] == [
        step.means["val"]["miou_all"] for step in best.steps
    ]


def test_a_file_that_cannot_be_written_is_named(finished: Database, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write '.*/absent/recipe.yaml'"):
        export(measured_trial(finished, "tiny"), tmp_path / "absent/recipe.yaml")
