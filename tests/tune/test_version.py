"""The version of a study differs after every change that a table could show, and only then."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from tests.tune.test_bridge import open_book, run_trial
from tests.tune.test_results import ABOUT, step
from ucd_ray.errors import StudyError
from ucd_ray.tune import version as version_module
from ucd_ray.tune.database import Database
from ucd_ray.tune.results import trials_table
from ucd_ray.tune.version import StudyVersion


def test_every_change_of_a_table_is_a_new_version(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    database = book.database
    database.save_spec("study", book.spec.model_dump_json(), ABOUT)
    version = StudyVersion(database, "study")
    seen = [version.read()]

    def changed() -> None:
        assert version.read() == StudyVersion(database, "study").read(), (
            "it depends on what was asked"
        )
        assert version.read() not in seen
        seen.append(version.read())

    book.next_trial()
    changed()
    book.report(0, step(0, 40.0))
    changed()
    book.report(0, step(0, 41.0) | {"seconds": 3.0})  # told again after a crash
    changed()
    book.say_waiting(0, "needs 4 GPUs, 2 are free")
    changed()
    book.report(0, {"kind": "done", "value": 44.0})
    book.close(0)
    changed()
    run_trial(book, 30.0)
    changed()
    book.study.enqueue_trial({"kd.weight": 3.0})
    changed()
    database.claim("study")
    changed()
    database.release("study")
    before = trials_table(database, "study")
    assert version.read() == seen[-2], "without the driver it is as it was before"
    assert trials_table(database, "study").equals(before)


def test_reading_and_beating_change_nothing(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    run_trial(book, 30.0)
    book.database.claim("study")
    version = StudyVersion(book.database, "study")
    before = version.read()
    trials_table(book.database, "study")
    book.database.beat("study")
    assert version.read() == before


def test_the_runs_of_replicates_count(tmp_path: Path) -> None:
    database = open_book(tmp_path).database
    version = StudyVersion(database, "study")
    before = version.read()
    replicate = optuna.create_study(storage=database.optuna_storage(), study_name="study/r1")
    replicate.ask()
    assert version.read() != before
    now = version.read()
    other = optuna.create_study(storage=database.optuna_storage(), study_name="study2/r1")
    other.ask()
    assert version.read() == now


def test_a_study_that_is_not_there_has_none(any_url: str) -> None:
    with pytest.raises(StudyError, match="no study 'other'"):
        StudyVersion(Database(any_url), "other").read()


def test_a_version_does_not_depend_on_how_many_rows_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = open_book(tmp_path)
    for _ in range(3):
        run_trial(book, 30.0)
    book.study.enqueue_trial({"kd.weight": 3.0})
    whole = StudyVersion(book.database, "study").read()
    for at_once in (1, 2, 4):
        monkeypatch.setattr(version_module, "AT_ONCE", at_once)
        assert StudyVersion(book.database, "study").read() == whole
