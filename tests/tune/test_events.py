"""The log of a study: what its driver says is found again, and never holds it up."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from tests.tune.test_bridge import open_book, spec_of
from ucd_ray.errors import StudyError
from ucd_ray.tune import database as database_module
from ucd_ray.tune import events as events_module
from ucd_ray.tune.database import Database
from ucd_ray.tune.events import EventLog, events, last_lines
from ucd_ray.tune.progress import Progress


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_book(tmp_path).database


def texts(database: Database, **options: int) -> list[str]:
    return [row.text for row in events(database, "study", **options)]


def test_lines_are_found_by_trial_by_place_and_from_the_end(database: Database) -> None:
    log = EventLog(database, "study")
    log.add("study starts")
    for number in (0, 1):
        for epoch in (1, 2):
            log.add(f"trial {number} epoch {epoch}", kind="epoch", number=number)
    log.close()
    assert texts(database, number=1) == ["trial 1 epoch 1", "trial 1 epoch 2"]
    assert texts(database, last=2) == ["trial 1 epoch 1", "trial 1 epoch 2"]
    first = events(database, "study")[0]
    assert (first.number, first.text, first.kind) == (None, "study starts", "study")
    assert len(texts(database, after=first.id)) == 4
    newest = last_lines(database, "study", "epoch")
    assert {n: row.text for n, row in newest.items()} == {
        0: "trial 0 epoch 2",
        1: "trial 1 epoch 2",
    }


def test_lines_are_there_while_the_study_runs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "FLUSH_S", 0.05)
    log = EventLog(database, "study")
    log.add("early")
    deadline = time.monotonic() + 10
    while texts(database) != ["early"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    log.close()


def test_a_text_that_a_database_refuses_is_written_without_the_character(
    database: Database,
) -> None:
    log = EventLog(database, "study")
    log.add("a\0b", kind="a kind that is much longer than its column")
    log.close()
    assert texts(database) == ["ab"]


def test_a_database_that_is_away_costs_no_line_and_no_time(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "FLUSH_S", 0.05)
    monkeypatch.setattr(database_module, "BUSY_S", 0.1)
    monkeypatch.setenv("UCD_RAY_DATABASE_WAIT", "0.1")
    opened = Database(str(database.url))
    opened.on_wait = lambda text: None
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    log = EventLog(opened, "study")
    for line in range(100):
        log.add(str(line))
    with pytest.raises(StudyError, match="locked"):  # as the log's own thread finds it
        opened.save_spec("study", "{}", {})
    other.execute("COMMIT")
    other.close()
    log.close()
    assert texts(database) == [str(line) for line in range(100)]


def test_progress_records_every_line_with_its_trial(database: Database) -> None:
    console = Console(quiet=True)
    log = EventLog(database, "study")
    with Progress(spec_of(), console, finished=Counter(), log=log) as progress:
        progress.wait_for("waiting for Ray to start ...")
        progress.wait_for("")
        progress.event("started", "base step", {})
        progress.event("started", "trial 3", {"kd.weight": 10.0})
        ended = {"state": "FAIL", "code": "STOPPED_BY_USER", "value": None, "reason": "by command"}
        progress.event("finished", "trial 3", ended)
        progress.note("goes on")
        assert progress.states == Counter({"CANCELLED": 1})
    rows = [(row.number, row.kind, row.text) for row in events(database, "study")]
    assert rows[0][2].startswith("driven by process ")
    assert rows[1:] == [
        (None, "study", "waiting for Ray to start ..."),
        (None, "started", "base step created: no searched params"),
        (3, "started", "trial 3 created: kd.weight=10"),
        (3, "finished", "trial 3 CANCELLED: by command"),
        (None, "study", "study study: goes on"),
        (None, "study", "its driver ends"),
    ]


def test_the_log_says_why_a_driver_ended(database: Database) -> None:
    for error, why in ((StudyError("no room"), "no room"), (KeyboardInterrupt(), "interrupted")):
        log = EventLog(database, "study")
        with (
            pytest.raises(type(error)),
            Progress(spec_of(), Console(quiet=True), finished=Counter(), log=log),
        ):
            raise error
        assert texts(database)[-1] == f"its driver ends: {why}"
