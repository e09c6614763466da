"""Optuna's storage of ours: against Optuna's own suite and own storage, and against the world."""

from __future__ import annotations

import json
import math
import pickle
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState, create_trial

from tests.tune.test_database import at_once, step_report
from ucd_ray.errors import StudyError
from ucd_ray.tune import database as database_module
from ucd_ray.tune.database import Database
from ucd_ray.tune.domain import Domain
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.samplers import make_sampler
from ucd_ray.tune.storage import StudyStorage

DISTRIBUTIONS: dict[str, optuna.distributions.BaseDistribution] = {
    "ucd.weight": FloatDistribution(0.001, 0.1, log=True),
    "ucd.temperature": FloatDistribution(0.05, 1.0),
    "ucd.max_old": CategoricalDistribution([256, None, "all"]),
    "optim.epochs_new": IntDistribution(1, 30),
}


@pytest.fixture
def database(any_url: str) -> Database:
    return Database(any_url)


class TestAsOptunaAsks(StorageTestCase):
    """The suite that every storage of Optuna must pass."""

    @pytest.fixture
    def storage(self, database: Database) -> StudyStorage:
        return StudyStorage(database)

    def test_pickle_storage(self, storage: StudyStorage) -> None:
        """A password would go with it."""
        for part in (storage, storage.database):
            with pytest.raises(TypeError, match="stays in its process"):
                pickle.dumps(part)


# The same trials as in Optuna's own storage.


def optunas_own(database: Database) -> RDBStorage:
    return RDBStorage(database.url.render_as_string(hide_password=False))


def live_through(study: optuna.Study) -> None:
    """Trials of every kind."""
    study.enqueue_trial({"ucd.weight": 0.01}, user_attrs={"from": "paper"})
    values = (1.5, math.inf, -math.inf)
    for value in values:
        trial = study.ask(DISTRIBUTIONS)
        trial.set_user_attr("nested", {"a": [1, (2.5, None)]})
        for step, reported in enumerate((0.1, math.nan, math.inf, 1 / 3)):
            trial.report(reported, step)
        study.tell(trial, value)
    study.tell(study.ask(DISTRIBUTIONS), state=TrialState.FAIL)
    pruned = study.ask(DISTRIBUTIONS)
    pruned.report(7.25, 3)
    study.tell(pruned, state=TrialState.PRUNED)
    done = create_trial(
        params={"ucd.temperature": 0.5},
        distributions={"ucd.temperature": DISTRIBUTIONS["ucd.temperature"]},
        value=3.0,
        intermediate_values={1: 2.0},
    )
    study.add_trial(done)
    study.ask(DISTRIBUTIONS).report(0.5, 1)


def test_optuna_reads_what_we_write_and_we_read_what_optuna_writes(database: Database) -> None:
    ours = database.optuna_storage()
    for name, writer in (("ours", ours), ("optunas", optunas_own(database))):
        live_through(optuna.create_study(storage=writer, study_name=name, direction="maximize"))
        seen = [
            optuna.load_study(study_name=name, storage=reader).get_trials()
            for reader in (ours, optunas_own(database), StudyStorage(database))
        ]
        assert len(seen[0]) == 7
        assert [repr(t) for t in seen[0]] == [repr(t) for t in seen[1]]
        assert [repr(t) for t in seen[0]] == [repr(t) for t in seen[2]]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "qmc"])
def test_suggestions_are_those_of_optunas_storage_in_memory(
    database: Database, sampler: str
) -> None:
    search = {f"x{i}": Parameter(low=-1.0, high=1.0) for i in range(3)}
    space = {key: FloatDistribution(-1.0, 1.0) for key in search}
    found = []
    for storage in (database.optuna_storage(), optuna.storages.InMemoryStorage()):
        study = optuna.create_study(storage=storage, direction="maximize")
        open_trials = []
        for number in range(20):
            study.sampler = make_sampler(sampler, Domain(search), seed=5, number=number)
            open_trials.append(study.ask(space))
            if len(open_trials) == 3:  # three at a time, and some pruned
                trial = open_trials.pop(0)
                trial.report(-sum(x * x for x in trial.params.values()), 1)
                pruned = number % 5 == 0
                value = None if pruned else -sum(x * x for x in trial.params.values())
                study.tell(trial, value, TrialState.PRUNED if pruned else None)
        found.append([t.params for t in study.get_trials()])
    assert found[0] == found[1]


# Few statements.


def statements_of(database: Database, call: Callable[[], object]) -> list[str]:
    """The SQL that a call runs."""
    seen: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    sa.event.listen(database.engine, "before_cursor_execute", note)
    call()
    sa.event.remove(database.engine, "before_cursor_execute", note)
    return [s for s in seen if not s.startswith(("BEGIN", "PRAGMA"))]


def test_a_trial_costs_as_much_after_many_as_at_first(database: Database) -> None:
    study = optuna.create_study(storage=database.optuna_storage())

    def one() -> None:
        trial = study.ask(DISTRIBUTIONS)
        trial.report(1.0, 1)
        study.tell(trial, 1.0)

    counts = [len(statements_of(database, one)) for _ in range(15)]
    assert counts[-1] == counts[11] <= 16  # Optuna's TPE reads once more after ten
    params = [s for s in statements_of(database, one) if "INTO trial_params" in s]
    assert len(params) == 1  # all params of the trial


def test_finished_trials_are_read_once(database: Database) -> None:
    study = optuna.create_study(storage=database.optuna_storage(), study_name="study")
    for _ in range(3):
        study.tell(study.ask(DISTRIBUTIONS), 1.0)
    other = Database(database.url.render_as_string(hide_password=False))
    reader = optuna.load_study(study_name="study", storage=other.optuna_storage())
    assert len(statements_of(other, reader.get_trials)) > 1
    again = statements_of(other, reader.get_trials)
    assert len(again) == 1 and "trial_id >" in again[0]
    study.tell(study.ask(DISTRIBUTIONS), 2.0)
    assert [t.value for t in reader.get_trials()] == [1.0, 1.0, 1.0, 2.0]


# Others.


@pytest.fixture
def two(any_url: str) -> tuple[optuna.Study, optuna.Study]:
    """One study, opened twice."""
    first = optuna.create_study(storage=Database(any_url).optuna_storage(), study_name="study")
    second = optuna.load_study(study_name="study", storage=Database(any_url).optuna_storage())
    return first, second


Two = tuple[optuna.Study, optuna.Study]


def test_another_process_sees_what_is_said_about_an_open_trial(two: Two) -> None:
    first, second = two
    trial = first.ask(DISTRIBUTIONS)
    trial.report(0.5, 1)
    (seen,) = second.get_trials()
    assert (seen.params, seen.intermediate_values) == (trial.params, {1: 0.5})
    trial.report(0.75, 2)
    assert second.get_trials()[0].intermediate_values == {1: 0.5, 2: 0.75}
    first.tell(trial, 1.0)
    assert second.get_trials()[0].state == TrialState.COMPLETE


def test_a_trial_that_another_process_finished_cannot_be_written(two: Two) -> None:
    first, second = two
    trial = first.ask(DISTRIBUTIONS)
    trial.report(0.5, 1)
    second.tell(0, 9.0)
    with pytest.raises(UpdateFinishedTrialError):
        trial.report(0.75, 2)
    assert (first.trials[0].value, first.trials[0].intermediate_values) == (9.0, {1: 0.5})
    again = first.ask(DISTRIBUTIONS)
    second.tell(1, 8.0)
    with pytest.raises(UpdateFinishedTrialError):
        first.tell(again, 7.0)
    assert [t.value for t in first.trials] == [9.0, 8.0]


def test_an_enqueued_trial_is_taken_by_one_only_and_numbers_are_never_double(two: Two) -> None:
    first, second = two
    first.enqueue_trial({"ucd.weight": 0.05})
    asked = [study.ask(DISTRIBUTIONS) for _ in range(3) for study in (first, second)]
    assert [t.number for t in asked] == list(range(6))
    assert [t.params["ucd.weight"] == 0.05 for t in asked] == [True] + [False] * 5
    for trial in asked:
        trial.report(float(trial.number), 1)
    for study in two:
        assert [t.intermediate_values[1] for t in study.trials] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


# Processes.

LOOP = """
import sys, optuna
from ucd_ray.tune.database import Database
optuna.logging.set_verbosity(optuna.logging.ERROR)
database = Database(sys.argv[1])
study = optuna.create_study(storage=database.optuna_storage(), study_name="study", load_if_exists=True)
space = {"x": optuna.distributions.FloatDistribution(0, 1)}
while True:
    trial = study.ask(space)
    trial.report(trial.params["x"], 1)
    study.tell(trial, trial.params["x"])
    print(trial.number, trial.params["x"], flush=True)
"""


def test_a_killed_process_loses_nothing_that_it_told(any_url: str) -> None:
    rng = random.Random(1)
    told: dict[int, float] = {}
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, any_url], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        rest, _ = process.communicate()
        for line in (first + rest).splitlines(keepends=True):
            if line.endswith("\n"):
                name, text = line.split()
                assert int(name) not in told
                told[int(name)] = float(text)
    storage = Database(any_url).optuna_storage()
    trials = optuna.load_study(study_name="study", storage=storage).get_trials()
    assert [t.number for t in trials] == list(range(len(trials)))
    for number, value in told.items():
        trial = trials[number]
        assert (trial.value, trial.params, trial.intermediate_values) == (
            value,
            {"x": value},
            {1: value},
        )
    assert len(told) > 8
    lost = [t for t in trials if t.number not in told]
    assert len(lost) <= 4  # one that each process was just at


STUDY = """
import json, sys, optuna
from ucd_ray.tune.database import Database
optuna.logging.set_verbosity(optuna.logging.ERROR)
database = Database(sys.argv[1])
database.on_wait = lambda message: print(message, flush=True)
name, report = sys.argv[2], json.loads(sys.argv[3])
input()
database.save_spec(name, "{}", {})
database.claim(name)
study = optuna.create_study(storage=database.optuna_storage(), study_name=name)
space = {f"x{i}": optuna.distributions.FloatDistribution(0, 1) for i in range(6)}
for number in range(30):
    trial = study.ask(space)
    trial.report(0.5, 1)
    database.add_step(name, number, report)
    study.tell(trial, number)
database.release(name)
"""


def test_ten_studies_in_one_database_do_not_lock_one_another_out(any_url: str) -> None:
    names = [f"study{i}" for i in range(10)]
    Database(any_url).optuna_storage()
    report = json.dumps(step_report())
    assert at_once(STUDY, *((any_url, name, report) for name in names)) == [(0, "")] * 10
    database = Database(any_url)
    for name in names:
        trials = optuna.load_study(study_name=name, storage=database.optuna_storage()).trials
        assert [t.value for t in trials] == [float(n) for n in range(30)]
        assert all(len(t.params) == 6 and len(t.intermediate_values) == 1 for t in trials)
    count = sa.text("SELECT study, count(*) FROM ucd_step GROUP BY study")
    steps = database.read(lambda c: {row[0]: row[1] for row in c.execute(count)})
    assert steps == dict.fromkeys(names, 30)


# SQLite's file.


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "studies.db"


HOLD = """
import sqlite3, sys, time
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def held(file: Path) -> Iterator[Callable[[float], None]]:
    """Another process takes the file for some seconds."""
    processes = []

    def hold(seconds: float) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(file), str(seconds)], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


def test_a_file_that_another_process_holds_is_waited_for(
    file: Path, held: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_S", 0.2)
    database = Database(f"sqlite:///{file}")
    said: list[str] = []
    database.on_wait = said.append
    study = optuna.create_study(storage=database.optuna_storage(), study_name="study")
    for seconds in (2.0, 0.0):
        if seconds:
            held(seconds)
        trial = study.ask(DISTRIBUTIONS)
        trial.report(0.5, 1)
        study.tell(trial, 1.0)
    assert [t.number for t in study.trials] == [0, 1]
    waiting, back = said
    assert "does not answer: database is locked (another process holds it)" in waiting
    assert "waiting up to 300 s" in waiting
    assert "answers again" in back


def test_a_reader_does_not_end_the_wait_of_a_writer(
    file: Path, held: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_S", 0.1)
    monkeypatch.setenv("UCD_RAY_DATABASE_WAIT", "1.5")
    database = Database(f"sqlite:///{file}")
    said: list[str] = []
    database.on_wait = said.append
    held(60)
    reads = 0

    def read() -> None:
        nonlocal reads
        while not done.wait(0.05):
            assert database.studies() == []
            reads += 1

    done = threading.Event()
    reader = threading.Thread(target=read)
    reader.start()
    with pytest.raises(StudyError, match=r"locked.*\(waited 1\.5 s\)"):
        database.save_spec("study", "{}", {})
    done.set()
    reader.join()
    assert reads > 3
    assert "does not answer" in said[0]
    assert len([text for text in said if "does not answer" in text]) == 1


def test_waiting_for_a_file_ends(
    file: Path, held: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_S", 0.1)
    monkeypatch.setenv("UCD_RAY_DATABASE_WAIT", "0.5")
    database = Database(f"sqlite:///{file}")
    study = optuna.create_study(storage=database.optuna_storage(), study_name="study")
    held(60)
    with pytest.raises(StudyError, match=r"studies\.db' failed: .*locked.*\(waited 0\.5 s\)"):
        study.ask(DISTRIBUTIONS)


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("UCD_RAY_DATABASE_WAIT", text)
    with pytest.raises(StudyError, match=f"UCD_RAY_DATABASE_WAIT must be .* not '{text}'"):
        Database(f"sqlite:///{file}")


def test_a_full_disk_fails_at_once_and_loses_nothing(file: Path) -> None:
    database = Database(f"sqlite:///{file}")
    said: list[str] = []
    database.on_wait = said.append
    study = optuna.create_study(storage=database.optuna_storage(), study_name="study")
    study.tell(study.ask(DISTRIBUTIONS), 1.0)
    sa.event.listen(  # as a full disk answers
        database.engine,
        "begin",
        lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1"),
    )
    with pytest.raises(StudyError, match=r"disk is full; make room and start the same command"):
        study.ask().set_user_attr("long", "x" * 100_000)
    assert said == []
    again = Database(f"sqlite:///{file}")
    trials = optuna.load_study(study_name="study", storage=again.optuna_storage()).trials
    assert trials[0].value == 1.0
    again.save_spec("study", "{}", {})


def test_a_file_writes_ahead(file: Path) -> None:
    database = Database(f"sqlite:///{file}")
    assert sqlite3.connect(file).execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.read(lambda c: c.exec_driver_sql("PRAGMA synchronous").scalar()) == 1
    assert database.note is None


def test_where_writing_ahead_cannot_be_had_the_file_keeps_its_journal(file: Path) -> None:
    # This way of locking has no shared memory, as on a network.
    url = f"sqlite:///file:{file}?vfs=unix-dotfile&uri=true"
    database = Database(url)
    assert database.note is not None
    assert "is slow: write-ahead logging cannot be had there" in database.note
    assert database.read(lambda c: c.exec_driver_sql("PRAGMA journal_mode").scalar()) == "delete"
    assert database.read(lambda c: c.exec_driver_sql("PRAGMA synchronous").scalar()) == 2  # full
    study = optuna.create_study(storage=database.optuna_storage(), study_name="study")
    study.tell(study.ask(DISTRIBUTIONS), 1.0)
    loaded = optuna.load_study(study_name="study", storage=Database(url).optuna_storage())
    assert loaded.best_value == 1.0


def test_a_file_on_a_network_file_system_is_taken_back_to_its_journal(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Database(f"sqlite:///{file}").engine.dispose()
    monkeypatch.setattr(database_module, "network_file_system", lambda path: "nfs4")
    database = Database(f"sqlite:///{file}")
    assert "it lies on nfs4" in str(database.note)
    assert sqlite3.connect(file).execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_mount_is_known_by_the_longest_path(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = {"/": "ext4", "/home": "nfs4", "/home/me/fast": "xfs", "/mnt": "fuse.sshfs"}
    table = [type("Mount", (), {"mountpoint": k, "fstype": v}) for k, v in mounts.items()]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: table)
    kinds = [
        database_module.network_file_system(Path(path))
        for path in ("/var/x.db", "/home/x.db", "/home/me/fast/x.db", "/homes/x.db", "/mnt/x.db")
    ]
    assert kinds == [None, "nfs4", None, None, "fuse.sshfs"]
