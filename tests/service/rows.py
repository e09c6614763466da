"""Studies with made-up results that the service knows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from tests.tune.charts.studies import make_study
from ucd_ray.service.app import create_app
from ucd_ray.service.settings import Settings
from ucd_ray.service.tables import study_table
from ucd_ray.tune.database import Database
from ucd_ray.tune.space import build_spec, load_search_space

SHAPES = build_spec(load_search_space("shapes-8-2"), name="study").model_dump(mode="json")


def add_row(database: Database, study_id: str = "abc", owner: str = "ann", **given: Any) -> None:
    """The service's row of a study."""
    row = _row(study_id, owner, **given)
    database.write(lambda connection: connection.execute(study_table.insert(), row))


def add_rows(database: Database, count: int, owner: str = "ann", *, prefix: str) -> None:
    """So many of them at once, with specs as they are."""
    spec = json.dumps(SHAPES)
    rows = [
        _row(f"{prefix}{n}", owner, name=f"{prefix}{n}", title=f"t{n * 7 % 1001}", spec=spec)
        | {"created": float(n), "updated": n * 11 % 1009.0, "priority": n % 5}
        for n in range(count)
    ]
    if rows:
        database.write(lambda connection: connection.execute(study_table.insert(), rows))


def _row(study_id: str, owner: str, **given: Any) -> dict[str, Any]:
    now = time.time()
    zeros = dict.fromkeys(("attempt", "failures", "priority", "revision"), 0)
    return {
        **{"id": study_id, "owner": owner, "name": "study", "title": "study", "spec": "{}"},
        **{"workers": 1, "cpus": 1.0, "labels": "{}", "shared": False, "state": "RUNNING"},
        **{"conditions": "[]", "created": now, "updated": now, **zeros, **given},
    }


def app_with_study(folder: Path, trials: int = 40) -> FastAPI:
    """A service whose study `abc` of owner ann has so many trials."""
    made = make_study(folder, trials)
    app = create_app(Settings(database=f"sqlite:///{made.url.database}", requests_per_minute=10**6))
    add_row(app.state.core.database)
    return app


def client_of(app: FastAPI, owner: str, *scopes: str) -> Any:
    """A client with a fresh token."""
    from fastapi.testclient import TestClient

    from ucd_ray.service.tokens import create_token

    token = create_token(app.state.core.database, owner, scopes or ("read", "write"))
    headers = {"Authorization": f"Bearer {token}"}
    return TestClient(app, headers=headers, raise_server_exceptions=False)
