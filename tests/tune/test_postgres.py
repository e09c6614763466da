"""A study on a real PostgreSQL server: its life, outages, what cannot be mended, and its password."""

from __future__ import annotations

import _thread
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import psutil
import psycopg
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from tests.conftest import TINY
from tests.postgres import PASSWORD, USER, PostgresServer, running
from tests.tune.test_database import rows, step_report
from ucd_ray.errors import StudyError
from ucd_ray.tune import outage
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.database import Database
from ucd_ray.tune.objectives import Best
from ucd_ray.tune.outage import passes, reason
from ucd_ray.tune.results import trials_table
from ucd_ray.tune.spec import StudySpec
from ucd_ray.tune.tables import step_table

SPACE: dict[str, optuna.distributions.BaseDistribution] = {
    f"x{i}": FloatDistribution(0.0, 1.0) for i in range(3)
}


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.url(postgres.new_database())


# A study's life.


def spec_of(**values: Any) -> StudySpec:
    search = {"ucd.weight": {"low": 0.001, "high": 0.1, "log": True}}
    content = {"name": "study", "recipe": TINY, "search": search, "trials": 4, **values}
    return StudySpec.model_validate(content)


def open_book(url: str) -> TrialBook:
    spec, database = spec_of(), Database(url)
    database.save_spec(spec.name, spec.model_dump_json(), {"steps": 2})
    return TrialBook(spec, database)


def test_a_study_is_asked_reported_told_reopened_and_adopted(any_url: str) -> None:
    book = open_book(any_url)
    book.database.claim("study")
    chosen = [book.next_trial() for _ in range(3)]
    assert [c and c[0] for c in chosen] == [0, 1, 2]
    for rung, value in ((1, 10.0), (2, 20.0)):
        book.report(0, {"kind": "epoch", "rung": rung, "value": value})
    book.report(0, step_report(value=20.0))
    book.report(0, {"kind": "done", "value": 20.0})
    book.close(0)
    book.report(1, {"kind": "epoch", "rung": 1, "value": 12.0})
    book.report(2, {"kind": "failed", "code": "ERROR", "reason": "no luck"})
    book.close(2)
    book.database.release("study")

    again = open_book(any_url)  # the first driver is gone
    assert again.adopted == [1]
    assert again.next_trial() == chosen[1]
    again.report(1, {"kind": "epoch", "rung": 2, "value": 30.0})
    again.report(1, {"kind": "done", "value": 30.0})
    again.close(1)
    last = again.next_trial()
    assert last is not None and last[0] == 3
    assert again.next_trial() is None
    trials = again.study.get_trials()
    states = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING]
    assert [t.state for t in trials] == states
    assert trials[1].intermediate_values == {1: 12.0, 2: 30.0}
    assert again.best() == Best((1,), "30.00 (trial 1)")
    assert [r["step"] for r in rows(again.database, step_table)] == [1]
    table = trials_table(Database(any_url), "study")
    assert table.column("value").to_pylist() == [20.0, 30.0, None, None]


# Outages.


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that may be stopped."""
    with running() as server:
        yield server


def in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_numbers_go_on_when_the_server_crashes_in_the_middle(own_server: PostgresServer) -> None:
    url = own_server.url(own_server.new_database())
    database = Database(url)
    said: list[str] = []
    database.on_wait = said.append
    database.save_spec("study", "{}", {})
    study = optuna.create_study(storage=database.optuna_storage(), study_name="study")
    told: dict[int, float] = {}
    end = threading.Event()

    def work() -> None:
        while not end.is_set():
            trial = study.ask(SPACE)
            for epoch in (1, 2, 3):
                trial.report(epoch / 10, epoch)
            database.add_step("study", trial.number, step_report(value=trial.number))
            database.claim("study")
            study.tell(trial, float(trial.number))
            assert trial.number not in told
            told[trial.number] = float(trial.number)

    worker = in_background(work)
    crashes = 3
    for _ in range(crashes):
        reached = len(told) + 5
        while len(told) < reached and worker.is_alive():
            time.sleep(0.01)
        own_server.crash()
        time.sleep(1.5)
        assert worker.is_alive()
        own_server.start()
    reached = len(told) + 5
    while len(told) < reached and worker.is_alive():
        time.sleep(0.01)
    end.set()
    worker.join()

    trials = optuna.load_study(study_name="study", storage=Database(url).optuna_storage()).trials
    assert [t.number for t in trials] == list(range(len(told)))
    assert {t.number: t.value for t in trials} == told
    assert len({t._trial_id for t in trials}) == len(trials)
    assert all(t.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3} for t in trials)
    assert all(set(t.params) == set(SPACE) for t in trials)
    assert sorted(r["number"] for r in rows(database, step_table)) == sorted(told)
    assert len(said) == 2 * crashes
    for waiting, back in zip(said[::2], said[1::2], strict=True):
        assert "does not answer" in waiting and "answers again" in back
        for message in (waiting, back):
            assert own_server.url("x").rpartition("@")[2].split("/")[0] in message
            assert_no_password(message)


def test_waiting_for_a_server_ends_with_its_name_and_the_reason(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_DATABASE_WAIT", "1")
    database = Database(own_server.url(own_server.new_database()))
    said: list[str] = []
    database.on_wait = said.append
    study = optuna.create_study(storage=database.optuna_storage())
    trial = study.ask(SPACE)
    own_server.crash()
    try:
        with pytest.raises(StudyError, match=r"refused.*\(waited 1 s\)") as caught:
            trial.report(1.0, 1)
        assert f"127.0.0.1:{own_server.port}" in str(caught.value)
        assert_no_password(str(caught.value))
        with pytest.raises(StudyError) as again:  # the wait is over; the next call begins no other
            database.release("study")
        assert "(waited" not in str(again.value)
        assert len(said) == 1
    finally:
        own_server.start()
    trial.report(1.0, 1)
    assert study.trials[0].intermediate_values == {1: 1.0}


def test_an_interrupted_wait_ends_that_of_all_threads(own_server: PostgresServer) -> None:
    database = Database(own_server.url(own_server.new_database()))
    database.save_spec("study", "{}", {})
    said: list[str] = []
    waits = threading.Event()

    def on_wait(message: str) -> None:
        said.append(message)
        waits.set()

    database.on_wait = on_wait
    own_server.crash()
    failures: list[StudyError] = []

    def beat() -> None:
        try:
            database.beat("study")
        except StudyError as error:
            failures.append(error)

    try:
        threads = [in_background(beat) for _ in range(3)]
        assert waits.wait(20)
        threading.Timer(0.5, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            database.studies()
        for thread in threads:
            thread.join(20)
        assert len(failures) == 3
        with pytest.raises(StudyError, match="refused"):
            database.release("study")
        assert len(said) == 1
    finally:
        own_server.start()


def test_a_server_that_was_never_there_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outage, "FIRST_WAIT_S", 0.3)
    with pytest.raises(StudyError, match=r"refused.*\(waited 0\.3 s\)"):
        Database("postgresql://u:hidden@127.0.0.1:1/studies")


@contextlib.contextmanager
def lost_answers(database: Database) -> Iterator[list[bool]]:
    """Of each commit the first run reaches the server, and its answer does not reach us."""
    commit = database.engine.dialect.do_commit
    lost: list[bool] = []

    def cut(connection: Any) -> None:
        commit(connection)
        lost.append(not (lost and lost[-1]))
        if lost[-1]:
            connection.dbapi_connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    setattr(database.engine.dialect, "do_commit", cut)  # noqa: B010
    yield lost
    del database.engine.dialect.do_commit


def writes(study: optuna.Study, database: Database) -> dict[str, Callable[[], object]]:
    """What a driver writes, each to be cut off."""
    trial = study.ask(SPACE)
    study.enqueue_trial({"x0": 0.25})
    return {
        "ask an enqueued trial": lambda: study.ask(SPACE).set_user_attr("started", 1.0),
        "ask": lambda: study.ask(SPACE).set_user_attr("started", 1.0),
        "enqueue": lambda: study.enqueue_trial({"x0": 0.75}),
        "report": lambda: trial.report(0.5, 1),
        "attribute": lambda: trial.set_user_attr("a", 1),
        "tell": lambda: study.tell(trial, 1.0),
        "claim": lambda: database.claim("study"),
        "beat": lambda: database.beat("study"),
        "step": lambda: database.add_step("study", 0, step_report()),
        "release": lambda: database.release("study"),
    }


def test_a_lost_answer_to_a_commit_makes_nothing_double(url: str) -> None:
    database = Database(url)
    database.save_spec("study", "{}", {})
    study = optuna.create_study(storage=database.optuna_storage(), study_name="study")
    for name, call in writes(study, database).items():
        with lost_answers(database) as lost:
            call()
        assert any(lost), name
    fresh = optuna.load_study(study_name="study", storage=Database(url).optuna_storage())
    assert [repr(t) for t in fresh.trials] == [repr(t) for t in study.trials]
    states = [t.state.name for t in fresh.trials]
    assert states == ["COMPLETE", "RUNNING", "RUNNING", "WAITING"]
    assert fresh.trials[0].intermediate_values == {1: 0.5}
    assert fresh.trials[1].params["x0"] == 0.25
    assert len(rows(database, step_table)) == 1
    assert database.studies()[0].driver is None


# What waiting cannot mend.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"password": "wrong"}, "password authentication failed.*give user and password in"),
        ({"password": None}, "no password supplied.*PGPASSWORD"),
        ({"user": "nobody-known"}, "password authentication failed"),
        ({"database": "absent"}, 'database "absent" does not exist; create it with createdb'),
    ],
)
def test_a_wrong_name_or_password_fails_at_once(
    postgres: PostgresServer, change: dict[str, Any], message: str
) -> None:
    arguments = {"database": "postgres", **change}
    with pytest.raises(StudyError, match=message) as caught:
        Database(postgres.url(**arguments))
    assert "(waited" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert_no_password(str(caught.value))


def test_a_user_without_the_right_to_write_is_told_so(postgres: PostgresServer, url: str) -> None:
    name = sa.make_url(url).database
    assert name is not None
    database = Database(url)
    database.save_spec("study", "{}", {})
    postgres.run_sql("CREATE ROLE reader LOGIN PASSWORD 'reads'")
    postgres.run_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", name)
    reader = Database(postgres.url(name, user="reader", password="reads"))
    assert reader.spec("study") == {}
    with pytest.raises(StudyError, match=r"permission denied for table ucd_study; it needs the"):
        reader.save_spec("study", "{}", {})


@pytest.mark.parametrize(
    ("state", "ends"),
    [("53100", False), ("42501", False), ("22000", False), ("57P01", True), ("40P01", True)],
)
def test_a_servers_answer_says_whether_waiting_helps(url: str, state: str, ends: bool) -> None:
    database = Database(url)
    raising = f"DO $$ BEGIN RAISE 'could not extend file' USING ERRCODE = '{state}'; END $$"
    with pytest.raises(sa.exc.DBAPIError) as caught, database.engine.begin() as connection:
        connection.exec_driver_sql(raising)
    assert passes(caught.value) is ends
    assert "make room and start the same command again" in reason(caught.value)


# Other ways to a database.


def test_a_database_without_an_encoding_serves_as_well(postgres: PostgresServer) -> None:
    postgres.run_sql("CREATE DATABASE plain ENCODING 'SQL_ASCII' TEMPLATE template0")
    database = Database(postgres.url("plain"))
    database.save_spec("study", '{"note": "Größe"}', {})
    assert Database(postgres.url("plain")).spec("study") == {"note": "Größe"}


def by_variable(server: PostgresServer, folder: Path) -> dict[str, str]:
    return {"PGPASSWORD": PASSWORD}


def by_passfile(server: PostgresServer, folder: Path) -> dict[str, str]:
    path = folder / "pgpass"
    path.write_text(f"127.0.0.1:{server.port}:*:{USER}:{PASSWORD}\n")
    path.chmod(0o600)
    return {"PGPASSFILE": str(path)}


def by_file(server: PostgresServer, folder: Path) -> dict[str, str]:
    path = folder / "secret"
    path.write_text(PASSWORD + "\n")
    return {"UCD_RAY_DATABASE_PASSWORD_FILE": str(path)}


@pytest.mark.parametrize("way", [by_variable, by_passfile, by_file])
def test_the_password_need_not_be_in_the_url(
    postgres: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[PostgresServer, Path], dict[str, str]],
) -> None:
    for name, value in way(postgres, tmp_path).items():
        monkeypatch.setenv(name, value)
    database = Database(postgres.url(postgres.new_database(), password=None))
    study = optuna.create_study(storage=database.optuna_storage())
    study.tell(study.ask(SPACE), 1.0)
    assert study.best_value == 1.0


def test_a_service_of_libpq_names_the_database(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = postgres.new_database()
    lines = ["[studies]", "host=127.0.0.1", f"port={postgres.port}", f"user={USER}"]
    service = tmp_path / "pg_service.conf"
    service.write_text("\n".join([*lines, f"dbname={name}", f"password={PASSWORD}", ""]))
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    database = Database("postgresql:///?service=studies")
    database.optuna_storage()
    database.save_spec("study", "{}", {})
    assert Database(postgres.url(name)).spec("study") == {}


def test_a_missing_driver_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StudyError, match=r"pip install 'ucd-ray\[postgres\]'"):
        Database("postgresql://u@127.0.0.1:1/studies")


def test_a_password_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_DATABASE_PASSWORD_FILE", str(tmp_path / "absent"))
    with pytest.raises(StudyError, match=r"PASSWORD_FILE: '.*absent': No such file"):
        Database("postgresql://u@127.0.0.1:1/studies")


# The password.


def assert_no_password(text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    for form in (PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD), "Zebra", "Quagga"):
        assert form.encode() not in data


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:1/x",
        f"postgresql://{USER}@127.0.0.1:1/x?password={quote(PASSWORD, safe='')}",
        f"postgresql://{USER}:{PASSWORD}@127.0.0.1:1/x",  # not quoted: cannot be read
        f"mysql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:1/x",
    ],
)
def test_no_error_shows_the_password_however_it_is_given(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_DATABASE_WAIT", "0")
    with pytest.raises(StudyError) as caught:
        Database(url)
    shown = str(caught.value)
    assert_no_password(shown)
    assert USER not in shown.split("@")[0] or ":***@" in shown or "?" not in shown


RUN = """
import faulthandler, logging, os, subprocess, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
import optuna
from tests.tune.test_database import step_report
from ucd_ray.errors import StudyError
from ucd_ray.tune.database import Database
from ucd_ray.tune.places import places
from ucd_ray.tune.results import trials_table
database = Database(places().database)
database.save_spec("study", '{"search": {}, "objective": "miou_all"}', {"steps": 2})
database.claim("study")
storage = database.optuna_storage()
study = optuna.create_study(storage=storage, study_name="study")
trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
trial.report(1.0, 1)
database.add_step("study", 0, step_report())
study.tell(trial, 1.0)
print(repr(database), repr(storage), repr(database.engine), repr(storage.rdb.engine), study)
print(storage.rdb.__dict__)
print(trials_table(database, "study"))
try:
    database.save_spec("x" * 200, "{}", {})
except StudyError as error:
    print(error)
try:
    database.stored_spec("absent")
except StudyError as error:
    print(error)
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print("look", flush=True)
input()
child.communicate(b"\\n")
raise RuntimeError("a traceback")
"""


def test_no_file_output_or_command_line_of_a_run_has_the_password(
    url: str, tmp_path: Path, own_home: Path
) -> None:
    environment = {**os.environ, "UCD_RAY_DATABASE": url, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None and process.stdin is not None
    output = b""
    while not output.endswith(b"look\n"):
        line = process.stdout.readline()
        assert line, output.decode()
        output += line
    us = psutil.Process(process.pid)
    commands = [" ".join(p.cmdline()) for p in (us, *us.children(recursive=True))]
    assert len(commands) == 2
    output += process.communicate(b"\n")[0]
    assert b"a traceback" in output and b"value too long" in output
    assert_no_password(output)
    assert_no_password("\n".join(commands))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert_no_password(path.read_bytes())
