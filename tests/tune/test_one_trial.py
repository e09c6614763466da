"""One trial read by its number."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import FrozenTrial

from tests.tune.charts.studies import fill
from tests.tune.test_bridge import PUBLISHED
from ucd_ray.errors import StudyError
from ucd_ray.tune.database import Database
from ucd_ray.tune.one_trial import stored_trial, trial_content, trial_steps
from ucd_ray.tune.whole_trial import whole_trial


def test_a_trial_says_what_its_row_says(database: Database) -> None:
    complete = trial_content(database, "study", 0)
    assert (complete["state"], complete["value"]) == ("COMPLETE", 44.0)
    assert complete["values"] == {"miou_all": 44.0}
    assert complete["params"] == PUBLISHED
    assert complete["ended"] >= complete["started"]
    failed = trial_content(database, "study", 1)
    assert (failed["state"], failed["code"], failed["value"]) == ("FAILED", "NAN", None)
    assert failed["reason"] == "loss term 'kd' became nan"


def test_a_trial_alone_is_the_trial_among_others(any_url: str) -> None:
    database = Database(any_url)
    fill(database, 20, name="other")
    fill(database, 20)
    study = optuna.load_study(study_name="study", storage=database.optuna_storage())
    study.enqueue_trial({"kd.weight": 7.0}, user_attrs={"source": "test"})
    fill_more = optuna.load_study(study_name="other", storage=database.optuna_storage())
    fill_more.enqueue_trial({"kd.weight": 8.0})
    study.enqueue_trial({"kd.weight": 9.0})

    def alone(number: int) -> FrozenTrial | None:
        return database.read(lambda connection: whole_trial(connection, "study", number))

    trials = study.get_trials()
    assert len(trials) == 22
    for trial in trials:
        assert alone(trial.number) == trial
    assert alone(22) is None
    assert alone(2**40) is None


def test_its_steps_have_the_means_of_both_sets_of_images(database: Database) -> None:
    first, second = trial_steps(database, "study", 0)
    assert (first["step"], first["cached"], second["step"]) == (0, True, 1)
    assert second["val"]["miou_all"] == second["select"]["miou_all"] == 41.0
    assert first["val"]["miou_old"] is None, "no class is old at step 0"
    assert "classes" not in first
    assert trial_steps(database, "study", 1) == []


def test_a_single_step_has_its_classes_too(database: Database) -> None:
    (found,) = trial_steps(database, "study", 0, 1)
    assert found["classes"]["val"] == [
        {"class_id": 0, "class_name": "background", "iou": 41.0, "forgetting": None}
    ]
    assert trial_steps(database, "study", 0, 2) == []


def test_a_number_that_is_not_there_is_named(database: Database) -> None:
    with pytest.raises(StudyError, match="has no trial 9; it has trials 0 to 2"):
        stored_trial(database, "study", 9)
