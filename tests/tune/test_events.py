"""The log of a study: what its driver says is found again, and never holds it up."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from tests.postgres import PostgresServer
from tests.tune.test_bridge import open_book, spec_of
from tests.tune.test_results import step
from ucd_ray.errors import StudyError
from ucd_ray.tune import database as database_module
from ucd_ray.tune import events as events_module
from ucd_ray.tune.database import Database
from ucd_ray.tune.event_data import event_data
from ucd_ray.tune.events import EventLog, _insert, _row, events, last_lines, tell
from ucd_ray.tune.progress import Progress
from ucd_ray.tune.reasons import NEEDS_GPUS, Reason


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


def test_lines_of_one_worker_are_found_by_its_rank(any_url: str) -> None:
    database = Database(any_url)
    database.save_spec("study", spec_of().model_dump_json(), {"steps": 2})
    report = {"node": "10.0.0.1", "level": "warning", "text": "slow disk"}
    for rank in (0, 1, 11):
        data = event_data("worker", "trial 0", {**report, "rank": rank})
        tell(database, "study", f"rank {rank}", kind="worker", number=0, data=data)
    tell(database, "study", 'says "rank": 1, too', number=0, data={"of": '"rank": 1,'})
    assert texts(database, worker=1, number=0) == ["rank 1"]
    assert texts(database, worker=11) == ["rank 11"]
    assert texts(database, worker=2) == []


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


def test_an_event_tells_programs_what_it_tells_people(database: Database) -> None:
    log = EventLog(database, "study")
    with Progress(spec_of(), Console(quiet=True), finished=Counter(), log=log) as progress:
        progress.event("started", "trial 3", {"kd.weight": 10.0})
        progress.event("waiting", "trial 3", {"reason": Reason(NEEDS_GPUS, "needs 4 GPUs")})
        progress.event("start", "trial 3-r1", {"first_step": 1, "notes": []})
        progress.event("step", "trial 3", step(1, 41.0) | {"own": True})
        failed = {"state": "FAIL", "code": "OUT_OF_MEMORY", "values": None, "reason": "no memory"}
        progress.event("finished", "trial 3", failed)
    rows = [(row.kind, json.loads(row.data)) for row in events(database, "study") if row.data]
    assert [(kind, data.get("state"), data["of"]) for kind, data in rows] == [
        ("started", "WAITING", "trial 3"),
        ("waiting", "WAITING", "trial 3"),
        ("start", "RUNNING", "trial 3-r1"),
        ("step", None, "trial 3"),
        ("finished", "INFEASIBLE", "trial 3"),
    ]
    assert rows[0][1]["params"] == {"kd.weight": 10.0}
    assert rows[1][1] == {
        **{"of": "trial 3", "state": "WAITING"},
        **{"reason": "needs 4 GPUs", "code": NEEDS_GPUS},
    }
    assert rows[3][1]["val"]["miou_all"] == 41.0
    assert event_data("step", "trial 0", step(0, 41.0))["val"]["miou_old"] is None, "NaN is no JSON"


def test_the_first_lines_after_one_are_found(database: Database) -> None:
    for line in "abcd":
        tell(database, "study", line)
    first = events(database, "study", first=1)[0]
    assert first.text == "a"
    assert [row.text for row in events(database, "study", after=first.id, first=2)] == ["b", "c"]


def test_ids_become_visible_in_their_order(postgres: PostgresServer) -> None:
    made = Database(postgres.url(postgres.new_database()))
    made.save_spec("study", spec_of().model_dump_json(), {})
    with made.engine.connect() as slow:
        _insert(slow, [_row("study", "slow", "study", None, None)])
        fast = threading.Thread(target=tell, args=(made, "study", "fast"))
        fast.start()
        fast.join(0.5)
        assert texts(made) == [], "a later line would be seen before an earlier one"
        slow.commit()
    fast.join(10)
    assert texts(made) == ["slow", "fast"]
