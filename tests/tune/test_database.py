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

from ucd_ray.errors import StudyError
from ucd_ray.tune.database import LEASE_S, Database
from ucd_ray.tune.tables import class_table, metric_table, step_table, study_table, tables


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/deep/er/studies.db"


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
def locked(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another process holds the file, and we wait for a moment only."""
    monkeypatch.setattr("ucd_ray.tune.database.BUSY_S", 0.05)
    monkeypatch.setenv("UCD_RAY_DATABASE_WAIT", "0")
    other = sqlite3.connect(str(database.engine.url.database), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    yield
    other.close()


@pytest.mark.usefixtures("locked")
def test_a_locked_database_says_that_another_process_holds_it(url: str) -> None:
    with pytest.raises(StudyError, match=r"database is locked \(another process holds it\)"):
        Database(url).save_spec("x", "{}", {})


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


# Steps.


def step_report(step: int = 1, value: float = 50.0) -> dict[str, Any]:
    images = {
        "means": {"miou_all": value, "miou_old": math.nan},
        "iou": {"0": 90.0, "1": value, "2": math.nan},
        "forgetting": {"0": 1.0, "1": math.nan},
    }
    counts = {"seconds": 2.5, "images": 18, "iterations": 4, "cached": False}
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
