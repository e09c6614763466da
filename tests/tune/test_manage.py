"""Commands from another process: with a driver that answers, one that does not, one that is gone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from tests.tune.test_bridge import open_book, run_trial, spec_of, trial_of
from tests.tune.test_database import step_report
from tests.tune.test_results import ABOUT
from ucd_ray.confusion import pack
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.store import Store
from ucd_ray.tune import commands, manage
from ucd_ray.tune.admission import Admission
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.database import Database
from ucd_ray.tune.editing import edit, enqueue
from ucd_ray.tune.edits import Edit
from ucd_ray.tune.events import EventLog, events
from ucd_ray.tune.executors import Gang
from ucd_ray.tune.ledger import OPEN, Ledger, totals
from ucd_ray.tune.manage import cancel, delete, driver_of, end_process, pause, resume, stop
from ucd_ray.tune.nodes import Node
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.tables import tables
from ucd_ray.tune.taken import Taken, add_taken

pytestmark = pytest.mark.slow  # processes that load torch or Ray

GANG = Gang(workers=1, cpus=1.0, gpus=0.0)
Drive = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """A database with one study that nobody has driven yet."""
    database = Database(f"sqlite:///{tmp_path}/studies.db")
    database.save_spec("study", spec_of().model_dump_json(), ABOUT)
    return database


@pytest.fixture
def drive(database: Database, tmp_path: Path) -> Iterator[Drive]:
    """Starts a process that drives the study; `mode` says how it behaves."""
    started: list[subprocess.Popen[str]] = []

    def start(mode: str = "answers") -> subprocess.Popen[str]:
        script = str(Path(__file__).parent / "driver.py")
        url = f"sqlite:///{tmp_path}/studies.db"
        process = subprocess.Popen(
            [sys.executable, script, url, "study", mode], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "drives\n"
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def states(database: Database) -> list[str]:
    return [trial.state.name for trial in manage.stored_trials(database, "study")]


# With a driver that answers.


def test_a_driver_is_told_to_pause_and_to_go_on(database: Database, drive: Drive) -> None:
    drive()
    for _ in range(2):
        told = pause(database, "study")
        assert told.done
        assert "is paused; it holds no workers" in told.text
        assert "ucd-ray study resume study" in told.text
    assert commands.is_paused(database, "study")
    assert "goes on" in resume(database, "study").text
    assert "was not paused" in resume(database, "study").text
    assert not commands.is_paused(database, "study")


def test_a_pause_waits_for_the_workers_and_says_how_many_are_left(
    database: Database, drive: Drive
) -> None:
    drive()
    admission = Admission(database, "study", "here", GANG)
    assert admission.acquire("gang0", [Node("a", {"CPU": 2.0}, {"CPU": 2.0})]) is None
    assert "1 gang(s) still train" in pause(database, "study", wait_s=1).text
    threading.Timer(1.0, lambda: admission.release("gang0")).start()
    assert "it holds no workers" in pause(database, "study").text


@pytest.mark.parametrize("how", ["checkpoint", "drain"])
def test_a_stopped_study_keeps_its_open_trials_for_the_next_start(
    database: Database, drive: Drive, how: str
) -> None:
    process = drive()
    told = stop(database, "study", how=how)
    assert told.done
    process.wait(20)
    assert driver_of(database, "study") is None
    assert states(database) == ["RUNNING"]
    assert stop(database, "study", how=how).text == "nothing runs study 'study'"
    if how == "checkpoint":
        assert "has stopped; `ucd-ray study run study` goes on" in told.text


def test_a_killed_study_has_no_open_trials(database: Database, drive: Drive) -> None:
    process = drive()
    told = stop(database, "study", how="kill")
    assert told.text == "study 'study' was stopped at once"
    assert process.wait(20) == 0, "it ended by itself"
    trial = manage.stored_trials(database, "study")[0]
    assert (trial.state.name, trial.user_attrs["code"]) == ("FAIL", "STOPPED_BY_USER")
    assert stop(database, "study", how="kill").text == "nothing runs study 'study'"


def test_one_trial_is_cancelled_and_the_study_goes_on(database: Database, drive: Drive) -> None:
    process = drive()
    assert cancel(database, "study", 0).text == "trial 0 of study 'study' is cancelled"
    assert "has ended already" in cancel(database, "study", 0).text
    assert process.poll() is None
    with pytest.raises(StudyError, match="has no trial 7; it has trials 0 to 0"):
        cancel(database, "study", 7)


def test_a_running_study_is_not_deleted(database: Database, drive: Drive, tmp_path: Path) -> None:
    drive()
    with pytest.raises(StudyError, match=r"running in process \d+ .*ucd-ray study stop study"):
        delete(database, "study", Store(tmp_path / "runs"))
    assert database.spec("study") is not None


def test_a_driver_edits_and_queues_and_cancels_what_is_queued(
    database: Database, drive: Drive
) -> None:
    process = drive()
    told = edit(database, "study", Edit(settings={"trials": 40}))
    assert told.text == "study 'study': revision 1: trials: 6 -> 40"
    assert database.stored_spec("study")["trials"] == 40
    with pytest.raises(ConfigError, match="trials"):
        edit(database, "study", Edit(settings={"trials": 0}))
    with pytest.raises(StudyError, match=r"trial 0 runs with kd\.weight=10"):
        edit(database, "study", Edit(search={"kd.weight": Parameter(low=20, high=100)}))
    told = enqueue(database, "study", {"kd.weight": 42.0})
    assert told.text == "study 'study': trial 1 is queued with kd.weight=42"
    assert states(database) == ["RUNNING", "WAITING"]
    assert cancel(database, "study", 1).text == "trial 1 of study 'study' is cancelled"
    assert states(database) == ["RUNNING", "FAIL"]
    assert process.poll() is None


# With a driver that does not answer.


def test_an_edit_that_its_driver_did_not_live_to_carry_out_is_done_here(
    database: Database, drive: Drive
) -> None:
    process = drive("deaf")
    assert not edit(database, "study", Edit(settings={"trials": 9}), wait_s=0.3).done

    def end() -> None:
        process.kill()
        process.wait()  # a zombie has its process id still

    threading.Timer(1.0, end).start()
    told = edit(database, "study", Edit(settings={"trials": 40}))
    assert "revision 1: trials: 6 -> 40; nothing runs it" in told.text
    assert database.stored_spec("study")["trials"] == 40


def test_a_command_that_is_not_answered_stays_for_the_driver(
    database: Database, drive: Drive
) -> None:
    process = drive("deaf")
    for told in (
        pause(database, "study", wait_s=0.5),
        stop(database, "study", wait_s=0.5),
        cancel(database, "study", 0, wait_s=0.5),
    ):
        assert not told.done
        assert f"process {process.pid}" in told.text
        assert "has not answered within 0.5 s" in told.text
    kinds = [command.kind for command in commands.pending(database, "study")]
    assert kinds == ["pause", "stop", "cancel"]
    process.kill()
    process.wait()
    assert "was not paused" not in resume(database, "study").text


def test_what_a_dead_driver_left_unanswered_is_not_meant_for_the_next(
    database: Database, drive: Drive
) -> None:
    first = drive("deaf")
    stop(database, "study", wait_s=0.3)
    pause(database, "study", wait_s=0.3)
    first.kill()
    first.wait()
    second = drive()
    assert commands.pending(database, "study") == []
    time.sleep(0.5)
    assert second.poll() is None, "the old stop does not end it"
    assert commands.is_paused(database, "study"), "the old pause still counts"


@pytest.mark.parametrize("mode", ["deaf", "hangs"])
def test_a_driver_that_does_not_answer_is_killed(
    database: Database, drive: Drive, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manage, "SILENT_S", 0.5)
    monkeypatch.setattr(manage, "TERM_S", 1.0)
    process = drive(mode)
    ledger = Ledger(database, "study", GANG)
    ledger.spend(0, OPEN, 7.0)
    told = stop(database, "study", how="kill")
    assert f"process {process.pid}" in told.text
    assert "did not answer and was ended; cancelled here: 0" in " ".join(told.text.split("; ", 1))
    assert not psutil.pid_exists(process.pid)
    assert driver_of(database, "study") is None
    trial = manage.stored_trials(database, "study")[0]
    assert (trial.state.name, trial.user_attrs["code"]) == ("FAIL", "STOPPED_BY_USER")
    spent = totals(database, "study")
    assert (spent["failed"].cpu, OPEN in spent) == (7.0, False)
    assert commands.pending(database, "study") == []


def test_a_process_that_only_has_the_drivers_id_is_left_alone(
    database: Database, drive: Drive
) -> None:
    process = drive("deaf")
    driver = driver_of(database, "study")
    assert driver is not None
    end_process(manage.Driver(driver.host, driver.pid, driver.started - 60, 0.0))
    assert psutil.pid_exists(process.pid)
    assert process.poll() is None
    with pytest.raises(StudyError, match=r"elsewhere does not answer.*run the same command on"):
        end_process(manage.Driver("elsewhere", driver.pid, driver.started, 0.0))
    assert process.poll() is None


# Without a driver.


def test_without_a_driver_pause_and_resume_are_noted_for_the_next(database: Database) -> None:
    told = pause(database, "study")
    assert told.done
    assert "is paused; nothing runs it, and its next start waits" in told.text
    assert commands.is_paused(database, "study")
    assert commands.pending(database, "study") == []
    assert "is no longer paused; nothing runs it" in resume(database, "study").text
    assert "is not paused" in resume(database, "study").text
    assert not commands.is_paused(database, "study")


def test_a_command_for_an_unknown_study_names_the_nearest(database: Database) -> None:
    for call in (pause, resume, stop):
        with pytest.raises(StudyError, match=r"no study 'stduy'.*did you mean 'study'"):
            call(database, "stduy")
    with pytest.raises(StudyError, match="no study 'stduy'"):
        cancel(database, "stduy", 0)


def test_open_and_queued_trials_of_a_dead_driver_can_be_cancelled(
    tmp_path: Path, database: Database
) -> None:
    book = open_book(tmp_path)
    book.next_trial()
    book.study.enqueue_trial({"kd.weight": 20.0})
    assert cancel(database, "study", 1).text == "trial 1 of study 'study' is cancelled"
    assert states(database) == ["RUNNING", "FAIL"]
    told = stop(database, "study", how="kill")
    assert told.text == "nothing runs study 'study'; its open trials are cancelled: 0"
    assert states(database) == ["FAIL", "FAIL"]
    again = open_book(tmp_path)
    assert (again.adopted, again.finished()) == ([], 2)
    assert driver_of(database, "study") is None


# Deleting.


def rows_of(database: Database) -> dict[str, int]:
    """Rows in every table of the database, Optuna's too."""
    found = sa.MetaData()
    found.reflect(database.engine)
    with database.engine.connect() as connection:
        return {
            table.name: connection.execute(
                sa.select(sa.func.count()).select_from(table)
            ).scalar_one()
            for table in found.sorted_tables
            if "version" not in table.name
        }


def fill(book: TrialBook) -> None:
    """At least one row in every table of ours."""
    name, database = book.spec.name, book.database
    run_trial(book, 1.0, 2.0)
    book.next_trial()
    more = {"confusion": pack([[1]]), "environment": {"python": "3"}}
    book.report(1, {**step_report(), "kind": "step", "entries": ["e"], **more})
    commands.give(database, name, commands.PAUSE)
    Ledger(database, name, GANG).spend(1, OPEN, 3.0)
    assert (
        Admission(database, name, "here", GANG).acquire(
            "g", [Node("a", {"CPU": 1e3}, {"CPU": 1e3})]
        )
        is None
    )
    add_taken(database, name, [Taken("other", 0, "COMPLETE", [1.0], {}, {}, {})])
    edit(database, name, Edit(settings={"trials": 7}))
    log = EventLog(database, name)
    log.add("a line", number=1)
    log.close()


def test_deleting_removes_every_row_of_a_study_and_nothing_of_others(
    tmp_path: Path, database: Database
) -> None:
    other = open_book(tmp_path, spec_of(name="study-2"))
    fill(other)
    before = rows_of(database)
    fill(open_book(tmp_path))
    grown = rows_of(database)
    ours = {table.name for table in tables.sorted_tables}
    assert {name for name in ours if grown[name] <= before[name] and name != "ucd_study"} == set()
    runs = tmp_path / "runs"
    for name in ("study", "study-2"):
        (runs / name / "1").mkdir(parents=True)
        (runs / name / "1" / "state.pt").write_bytes(b"x")
    told = delete(database, "study", Store(runs))
    assert "is deleted" in told.text
    assert rows_of(database) == {**before, "ucd_study": 1}
    assert [path.name for path in runs.iterdir()] == ["study-2"]
    assert trial_of(other, 0).state.name == "COMPLETE"
    again = delete(database, "study", Store(runs))
    assert (again.done, again.text) == (True, "there is no study 'study'")


def test_a_study_that_never_had_a_trial_can_be_deleted(database: Database, tmp_path: Path) -> None:
    delete(database, "study", Store(tmp_path / "runs"))
    assert database.studies() == []


def test_the_name_is_free_after_deleting(database: Database, tmp_path: Path) -> None:
    fill(open_book(tmp_path))
    delete(database, "study", Store(tmp_path / "runs"))
    book = open_book(tmp_path)
    assert (book.finished(), book.adopted) == (0, [])
    assert events(database, "study") == []
    assert not commands.is_paused(database, "study")
