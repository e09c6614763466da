"""What is kept in memory is what is in the database, whoever writes to it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from tests.service.rows import add_row, client_of
from ucd_ray.service.database import open_database
from ucd_ray.service.recent import Reader, Recent, Stamp
from ucd_ray.service.settings import Settings
from ucd_ray.service.tables import study_table, token_table
from ucd_ray.service.tokens import create_token


def test_a_value_is_read_again_once_anybody_has_committed(any_url: str) -> None:
    database, other = open_database(any_url), open_database(any_url)
    reads: list[int] = []

    def read(connection: sa.Connection) -> int:
        reads.append(1)
        return connection.execute(sa.select(sa.func.count()).select_from(token_table)).scalar_one()

    async def run() -> None:
        recent = Recent(Stamp(database), Reader(database))
        assert await recent.of("count", read) == await recent.of("count", read) == 0
        assert len(reads) == (1 if database.is_sqlite else 2)
        create_token(other, "ann", ["read"])
        assert await recent.of("count", read) == 1
        create_token(database, "bob", ["read"])
        assert await recent.of("count", read) == 2

    asyncio.run(run())


def test_what_another_process_changes_shows_at_once(app: FastAPI, settings: Settings) -> None:
    database, other = app.state.core.database, open_database(settings.database)
    add_row(database)
    client = client_of(app, "ann")
    assert client.get("/v1/studies/abc").json()["state"] == "RUNNING"
    other.write(lambda c: c.execute(study_table.update().values(state="PAUSED")))
    assert client.get("/v1/studies/abc").json()["state"] == "PAUSED"


def test_a_token_in_memory_expires_too(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    from ucd_ray.service import auth

    text = create_token(app.state.core.database, "ann", ["read"], days=1)
    client = TestClient(app, headers={"Authorization": f"Bearer {text}"})
    assert client.get("/v1/scenarios").status_code == 200
    later = auth.time.time() + 86_401
    monkeypatch.setattr(auth.time, "time", lambda: later)
    assert client.get("/v1/scenarios").status_code == 401


def test_one_request_reads_at_one_moment(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/studies.db")
    stamp = Stamp(database)
    with stamp.read_once() as begin:
        create_token(database, "ann", ("read",))
        assert stamp.now() == begin
    assert stamp.now() != begin, "the next one sees what was committed meanwhile"
    stamp.close()
