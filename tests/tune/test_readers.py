"""Everything that reads a study's results, on SQLite and on PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tune.test_bridge import epoch, spec_of
from tests.tune.test_database import step_report
from tests.tune.test_objectives import SCALAR
from tests.tune.test_objectives import measure as measure_goals
from tests.tune.test_replicate_book import finish, take
from tests.tune.test_revisions import new_database
from ucd_ray.tune.best import measured_trial
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.charts import Source, drawings
from ucd_ray.tune.database import Database
from ucd_ray.tune.replicate_book import ReplicateBook
from ucd_ray.tune.report.plots import Written, made
from ucd_ray.tune.report.tables import report_tables
from ucd_ray.tune.results import VIEWS, open_view
from ucd_ray.tune.spec import StudySpec
from ucd_ray.tune.standing import best_trials, best_two


def stored(url: str, **values: Any) -> tuple[Database, StudySpec]:
    spec = spec_of(**values)
    database = new_database(url, spec)
    about = {**database.about("study"), "steps": 2, "scenario": "shapes-8-2", "method": "mib+ucd"}
    database.save_spec("study", spec.model_dump_json(), about)
    return database, spec


@pytest.fixture
def several(any_url: str) -> Database:
    """Two objectives and a limit: four complete trials, one of which breaks it, and a stopped one."""
    database, spec = stored(any_url, constraints=["drop <= 40"], **SCALAR)
    book = TrialBook(spec, database)
    for old, forgetting, scalar in ((30, 9, 20), (22, 1, 21), (25, 4, 22), (19, 0, 23)):
        measure_goals(book, float(old), float(forgetting), curve=(scalar - 5.0, float(scalar)))
    measure_goals(book, 99.0, 0.0, curve=(1.0,))
    return database


@pytest.fixture
def replicated(any_url: str) -> Database:
    """Two trials of two replicates each."""
    database, spec = stored(any_url, seeds=2, pruner="none", racing=None)
    book = ReplicateBook(TrialBook(spec, database))
    for value in (50.0, 52.0, 55.0, 56.0):
        run = take(book)
        book.report(run, epoch(1, value - 9))
        for step in (0, 1):
            book.report(run, step_report(step, value))
        finish(book, run, value)
    return database


def test_several_objectives(several: Database) -> None:
    source, done = Source(several, "study"), Written()
    made(drawings(source), done)
    wanted = {
        f"{name}-{metric}" for name in ("history", "slice") for metric in SCALAR["objectives"]
    }
    assert wanted | {"pareto", "intermediate"} <= set(done.written)
    assert [outcome.number for outcome in source.front] == [0, 2, 1]
    assert len(source.curves) == 5
    assert {table.title for table in report_tables(source)} >= {"Best trials", "Params"}
    views = {name: open_view(several, "study", name).read_all().to_pylist() for name in VIEWS}
    assert [row["number"] for row in views["paper"]] == [0, 2, 1]
    assert [row["feasible"] for row in views["trials"]] == [True, True, True, False, None]
    assert [row["value"] for row in views["steps"]][:2] == [30.0, 30.0]
    assert [trial.number for trial in best_trials(several, "study", 9)] == [0, 2, 1]


def test_replicates(replicated: Database) -> None:
    source, done = Source(replicated, "study"), Written()
    made(drawings(source), done)
    assert {"history", "slice", "intermediate"} <= set(done.written)
    assert [(curve.name, curve.values) for curve in source.curves] == [
        *(("trial 0-r0", {1: 41.0}), ("trial 0-r1", {1: 43.0})),
        *(("trial 1-r0", {1: 46.0}), ("trial 1-r1", {1: 47.0})),
    ]
    assert report_tables(source)
    views = {name: open_view(replicated, "study", name).read_all().to_pylist() for name in VIEWS}
    assert [row["value"] for row in views["runs"]] == [50.0, 55.0, 52.0, 56.0]
    assert [row["number"] for row in views["paper"]] == [1, 0]
    assert measured_trial(replicated, "study", replicate=1).value == 56.0
    assert len(best_two(replicated, "study")) == 2
