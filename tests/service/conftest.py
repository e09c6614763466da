"""A service over a database of its own, asked in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ucd_ray.service.app import create_app
from ucd_ray.service.settings import Settings
from ucd_ray.service.tokens import create_token


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Of a service on SQLite in a home of its own."""
    monkeypatch.setenv("UCD_RAY_HOME", str(tmp_path))
    return Settings(database=f"sqlite:///{tmp_path}/studies.db")


@pytest.fixture
def on_any_database(any_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The same on SQLite and on PostgreSQL: what a module that tests what lasts has as its `settings`."""
    monkeypatch.setenv("UCD_RAY_HOME", str(tmp_path))
    return Settings(database=any_url)


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    made = create_app(settings)
    yield made
    made.state.core.close()
    made.state.core.database.engine.dispose()


@pytest.fixture
def as_owner(app: FastAPI) -> Callable[..., TestClient]:
    """Makes a client that holds a fresh token of an owner."""

    def make(owner: str, *scopes: str) -> TestClient:
        token = create_token(app.state.core.database, owner, scopes or ("read", "write"))
        return TestClient(
            app,
            base_url="http://testserver",
            headers={"Authorization": f"Bearer {token}"},
            raise_server_exceptions=False,
        )

    return make
