"""The database of studies: opening it, claiming a study, what is stored after a step."""

from __future__ import annotations

import json
import math
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig

from ucd_ray.confusion import pack, unpack
from ucd_ray.errors import StudyError
from ucd_ray.tune import migrations
from ucd_ray.tune.database import LEASE_S, Database
from ucd_ray.tune.tables import (
    class_table,
    confusion_table,
    environment_table,
    metric_table,
    step_table,
    study_table,
    tables,
)


@pytest.fixture
def url(any_url: str) -> str:
    return any_url


@pytest.fixture
def database(url: str) -> Database:
    database = Database(url)
    database.save_spec("study", '{"trials": 3}', {"steps": 2})
    return database


# Opening.


def test_a_new_database_gets_all_tables_as_the_code_sees_them(database: Database) -> None:
    found = sa.MetaData()
    found.reflect(database.engine)
    for table in tables.sorted_tables:
        assert set(found.tables[table.name].columns.keys()) == set(table.columns.keys())
        assert set(found.tables[table.name].primary_key.columns.keys()) == set(
            table.primary_key.columns.keys()
        )
    assert "ucd_alembic_version" in found.tables


def test_opening_again_keeps_what_is_stored(database: Database, url: str) -> None:
    again = Database(url)
    assert again.spec("study") == {"trials": 3}
    assert again.about("study") == {"steps": 2}
    assert again.spec("other") is None
    assert again.about("other") == {}


def test_optunas_tables_live_beside_ours(database: Database, url: str) -> None:
    storage = database.optuna_storage()
    assert storage.get_all_studies() == []
    again = Database(url)
    assert {"studies", "ucd_study"} <= set(sa.inspect(again.engine).get_table_names())
    assert again.spec("study") == {"trials": 3}


def test_studies_come_oldest_first_and_a_spec_may_be_replaced(database: Database) -> None:
    database.save_spec("a", "{}", {})
    database.save_spec("study", '{"trials": 5}', {"steps": 2})
    assert [row.name for row in database.studies()] == ["study", "a"]
    assert database.spec("study") == {"trials": 5}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret@127.0.0.1:1/studies",
        "postgresql+psycopg2://user:secret@127.0.0.1:1/studies",
        "postgresql://user:secret@host:port/studies",
        "nothing://user:secret@host/studies",
        "mysql://user:secret@host/studies",
        "sqlite://",
        "sqlite:///:memory:",
        "user:secret@host",
        "",
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_DATABASE_WAIT", "0")
    with pytest.raises(StudyError, match="database '") as caught:
        Database(url)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"cannot create '.*file'"):
        Database(f"sqlite:///{tmp_path}/file/studies.db")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_bytes(b"not a database at all " * 100)
    with pytest.raises(StudyError, match=r"studies\.db' failed: file is not a database"):
        Database(f"sqlite:///{tmp_path}/studies.db")


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database whose file another process holds, and we wait for a moment only."""
    monkeypatch.setattr("ucd_ray.tune.database.BUSY_S", 0.05)
    monkeypatch.setenv("UCD_RAY_DATABASE_WAIT", "0")
    database = Database(f"sqlite:///{tmp_path}/deep/er/studies.db")
    other = sqlite3.connect(tmp_path / "deep/er/studies.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    yield database
    other.close()


def test_a_locked_database_says_that_another_process_holds_it(locked: Database) -> None:
    with pytest.raises(StudyError, match=r"database is locked \(another process holds it\)"):
        locked.save_spec("x", "{}", {})


def test_what_is_read_needs_no_lock(locked: Database) -> None:
    assert locked.studies() == []


# Migrations.


def shape_of(url: str) -> dict[str, Any]:
    """Our tables as the database describes them."""
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    found = sa.inspect(engine)
    shape: dict[str, Any] = {}
    for name in sorted(n for n in found.get_table_names() if n.startswith("ucd_")):
        columns = {c["name"]: (str(c["type"]), c["nullable"]) for c in found.get_columns(name)}
        keys = [
            (k["constrained_columns"], k["referred_table"]) for k in found.get_foreign_keys(name)
        ]
        indices = [(i["name"], i["column_names"], i["unique"]) for i in found.get_indexes(name)]
        primary = found.get_pk_constraint(name)["constrained_columns"]
        shape[name] = (columns, primary, sorted(keys), sorted(indices))
    engine.dispose()
    return shape


def test_the_migrations_make_the_tables_that_the_code_describes(url: str, tmp_path: Path) -> None:
    Database(url)
    made = shape_of(url)
    assert made.pop("ucd_alembic_version")
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        for name in (*reversed(tables.sorted_tables), sa.table("ucd_alembic_version")):
            connection.exec_driver_sql(f"DROP TABLE {name}")
        tables.create_all(connection)
    engine.dispose()
    assert shape_of(url) == made
    assert set(made) == set(tables.tables)


def to_revision(url: str, revision: str) -> None:
    """Brings a database to one migration, up or down."""
    config = AlembicConfig()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        if sa.inspect(connection).has_table("ucd_alembic_version"):
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)
    engine.dispose()


def test_a_database_of_the_first_version_keeps_its_studies(url: str) -> None:
    to_revision(url, "0001")
    assert "ucd_event" not in shape_of(url)
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(
            study_table.insert(), {"name": "old", "spec": '{"trials": 7}', "created": 1.0}
        )
        step = {"cached": True, "seconds": 2.0, "images": 3, "iterations": 4}
        key = {"study": "old", "number": 0, "step": 1}
        old_table = sa.table("ucd_step", *map(sa.column, (*key, *step)))
        connection.execute(old_table.insert(), {**key, **step})
    engine.dispose()
    database = Database(url)
    assert {"ucd_command", "ucd_event", "ucd_hold", "ucd_ledger"} <= set(shape_of(url))
    assert {"ucd_environment", "ucd_confusion"} <= set(shape_of(url))
    assert database.spec("old") == {"trials": 7}
    assert [(row["seconds"], row["replicate"]) for row in rows(database, step_table)] == [(2.0, 0)]


def test_the_newest_migration_can_be_taken_back(url: str) -> None:
    database = Database(url)
    database.save_spec("study", "{}", {})
    to_revision(url, "0001")
    assert "ucd_ledger" not in shape_of(url)
    assert Database(url).spec("study") == {}


def test_an_older_version_finds_the_first_replicate_of_every_trial(url: str) -> None:
    database = Database(url)
    database.save_spec("study", "{}", {})
    for replicate, value in ((0, 10.0), (1, 20.0)):
        database.add_step("study", 3, step_report(value=value), replicate=replicate)
    to_revision(url, "0002")
    with database.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT number, step, iou FROM ucd_class").all()
    assert sorted(tuple(row) for row in found if row.iou == 10.0) == [(3, 1, 10.0)] * 2
    assert not [row for row in found if row.iou == 20.0]
    assert [row["replicate"] for row in rows(Database(url), step_table)] == [0]


def test_a_database_of_a_newer_version_is_refused(url: str) -> None:
    database = Database(url)
    database.write(
        lambda c: c.exec_driver_sql("UPDATE ucd_alembic_version SET version_num = '9999'")
    )
    with pytest.raises(StudyError, match="is of another version of ucd-ray"):
        Database(url)


OPEN = """
import sys
from ucd_ray.tune.database import Database
input()
database = Database(sys.argv[1])
database.optuna_storage()
database.save_spec(sys.argv[2], "{}", {})
"""


def at_once(code: str, *arguments: tuple[str, ...]) -> list[tuple[int, str]]:
    """Runs code in processes that pass their first `input()` together: exit code and output of each."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *own],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own in arguments
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate()[0] for process in processes]
    return [(p.returncode, text) for p, text in zip(processes, outputs, strict=True)]


def test_processes_that_open_a_new_database_together_all_succeed(url: str) -> None:
    done = at_once(OPEN, *((url, f"study{i}") for i in range(4)))
    assert done == [(0, "")] * 4
    assert len(Database(url).studies()) == 4


# Claims.


def driver_of(database: Database) -> dict[str, Any] | None:
    (row,) = database.studies()
    return json.loads(row.driver) if row.driver else None


def set_driver(database: Database, heartbeat: float | None = None, **driver: Any) -> None:
    with database.engine.begin() as connection:
        connection.execute(
            study_table.update().values(driver=json.dumps(driver), heartbeat=heartbeat)
        )


@pytest.fixture
def other_process() -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def claim_of(process: psutil.Process) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": round(process.create_time(), 1),
    }


def test_a_claim_names_this_process_and_is_given_back(database: Database) -> None:
    database.claim("study")
    assert driver_of(database) == claim_of(psutil.Process())
    database.claim("study")  # its own is no obstacle
    database.release("study")
    assert driver_of(database) is None


def test_a_beat_renews_the_claim(database: Database) -> None:
    database.claim("study")
    before = database.studies()[0].heartbeat
    time.sleep(0.01)
    database.beat("study")
    assert database.studies()[0].heartbeat > before


def test_a_second_driver_is_refused_while_the_first_lives(
    database: Database, other_process: psutil.Process
) -> None:
    set_driver(database, **claim_of(other_process))
    with pytest.raises(StudyError, match=f"already running in process {other_process.pid} on"):
        database.claim("study")
    database.release("study")  # not ours to give back
    assert driver_of(database) == claim_of(other_process)


def test_the_study_of_a_dead_driver_is_taken_over(
    database: Database, other_process: psutil.Process
) -> None:
    set_driver(database, **claim_of(other_process))
    other_process.kill()
    other_process.wait()
    database.claim("study")
    assert driver_of(database) == claim_of(psutil.Process())


def test_a_process_id_in_new_hands_is_no_driver(
    database: Database, other_process: psutil.Process
) -> None:
    claim = claim_of(other_process)
    set_driver(database, **{**claim, "started": claim["started"] - 3600})
    database.claim("study")
    assert driver_of(database) == claim_of(psutil.Process())


def test_a_driver_on_another_host_lives_as_long_as_it_beats(database: Database) -> None:
    far = {"host": "far-away", "pid": 1, "started": 0.0}
    set_driver(database, heartbeat=time.time() - LEASE_S / 2, **far)
    with pytest.raises(StudyError, match="in process 1 on far-away"):
        database.claim("study")
    set_driver(database, heartbeat=time.time() - 2 * LEASE_S, **far)
    database.claim("study")
    assert driver_of(database) == claim_of(psutil.Process())


CLAIM = """
import sys, time
from ucd_ray.errors import StudyError
from ucd_ray.tune.database import Database
database = Database(sys.argv[1])
print("ready", flush=True)
time.sleep(max(0, float(input()) - time.time()))
try:
    database.claim("study")
    print("won", flush=True)
    input()
except StudyError as error:
    print("lost:", error, flush=True)
"""


def test_of_two_drivers_that_claim_at_the_same_instant_one_wins(
    database: Database, url: str
) -> None:
    for _ in range(3):
        pair = [
            subprocess.Popen(
                [sys.executable, "-c", CLAIM, url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        said = []
        for process in pair:
            assert process.stdout is not None and process.stdin is not None
            assert process.stdout.readline() == "ready\n"
        instant = time.time() + 0.1
        for process in pair:
            assert process.stdin is not None
            process.stdin.write(f"{instant}\n")
            process.stdin.flush()
        for process in pair:
            assert process.stdout is not None
            said.append(process.stdout.readline())
        winner = pair[said.index("won\n")]
        driver = driver_of(database)
        assert driver is not None
        for process in pair:
            process.communicate("end\n")
        assert sorted(text.split(":")[0] for text in said) == ["lost", "won\n"]
        assert driver["pid"] == winner.pid
        loser = next(text for text in said if text != "won\n")
        assert "already running" in loser or "just taken" in loser


# Steps.


def step_report(step: int = 1, value: float = 50.0) -> dict[str, Any]:
    images = {
        "means": {"miou_all": value, "miou_old": math.nan},
        "iou": {"0": 90.0, "1": value, "2": math.nan},
        "forgetting": {"0": 1.0, "1": math.nan},
    }
    counts = {"seconds": 2.5, "images": 18, "iterations": 4, "cached": False, "entries": []}
    return {"kind": "step", "step": step, "value": value, **counts, "select": images, "val": images}


def rows(database: Database, table: sa.Table) -> list[dict[str, Any]]:
    with database.engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(sa.select(table))]


def test_a_step_is_stored_with_means_and_classes(database: Database) -> None:
    database.add_step("study", 3, step_report())
    (step,) = rows(database, step_table)
    assert (step["number"], step["step"], step["seconds"], step["cached"]) == (3, 1, 2.5, False)
    means = {(r["images"], r["metric"]): r["value"] for r in rows(database, metric_table)}
    assert means == {
        ("select", "miou_all"): 50.0,
        ("select", "miou_old"): None,
        ("val", "miou_all"): 50.0,
        ("val", "miou_old"): None,
    }
    classes = [r for r in rows(database, class_table) if r["images"] == "val"]
    assert [(r["class_id"], r["iou"], r["forgetting"]) for r in classes] == [
        (0, 90.0, 1.0),
        (1, 50.0, None),
        (2, None, None),
    ]


def test_an_environment_is_stored_once_for_all_steps_that_it_trained(database: Database) -> None:
    here, there = {"threads": 1}, {"threads": 2}
    for number, found in enumerate((here, here, there)):
        database.add_step("study", number, {**step_report(), "environment": found})
    database.add_step("study", 3, {**step_report(), "environment": None, "entries": ["e", "m"]})
    stored = {r["digest"]: json.loads(r["content"]) for r in rows(database, environment_table)}
    steps = rows(database, step_table)
    assert [stored.get(step["environment"]) for step in steps] == [here, here, there, None]
    assert [step["entry"] for step in steps] == [None, None, None, "e"]
    assert len(stored) == 2


def test_a_repeated_step_replaces_the_earlier_report(database: Database) -> None:
    database.add_step("study", 3, step_report(value=10.0))
    database.add_step("study", 4, step_report(value=20.0))
    database.add_step("study", 3, step_report(value=30.0))
    values = {
        r["number"]: r["value"]
        for r in rows(database, metric_table)
        if (r["images"], r["metric"]) == ("val", "miou_all")
    }
    assert values == {3: 30.0, 4: 20.0}
    assert len(rows(database, step_table)) == 2


def test_replicates_of_a_trial_are_stored_side_by_side(database: Database) -> None:
    for replicate, value in ((0, 10.0), (1, 20.0), (1, 30.0)):
        database.add_step("study", 3, step_report(value=value), replicate=replicate)
    values = {
        r["replicate"]: r["value"]
        for r in rows(database, metric_table)
        if (r["images"], r["metric"]) == ("val", "miou_all")
    }
    assert values == {0: 10.0, 1: 30.0}


def test_the_confusion_of_a_step_is_stored_where_there_is_one(database: Database) -> None:
    database.add_step("study", 3, {**step_report(0), "confusion": None})
    database.add_step("study", 3, {**step_report(1), "confusion": pack([[5, 1], [0, 7]])})
    database.add_step("study", 3, {**step_report(1), "confusion": pack([[6, 1], [0, 7]])})
    (row,) = rows(database, confusion_table)
    assert (row["number"], row["step"]) == (3, 1)
    assert unpack(row["counts"]).tolist() == [[6, 1], [0, 7]]
