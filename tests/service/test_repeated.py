"""Answers that are given again: only while nothing has changed, and only to whoever got them."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.service.rows import add_row, client_of
from ucd_ray.service import repeated
from ucd_ray.service.app import create_app
from ucd_ray.service.database import open_database
from ucd_ray.service.settings import Settings
from ucd_ray.service.tables import study_table
from ucd_ray.service.tokens import create_token, list_tokens, revoke_token

URL = "/v1/studies/abc"


@pytest.fixture
def routed(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the requests that came as far as a route; no time passes for what is kept."""
    paths: list[str] = []
    router = type(app.router)
    inner = router.__call__

    async def noted(self: Any, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            paths.append(scope["path"])
        await inner(self, scope, receive, send)

    monkeypatch.setattr(router, "__call__", noted)
    monkeypatch.setattr(repeated, "AGE_S", 1000.0)
    add_row(app.state.core.database)
    return paths


def test_the_same_request_is_answered_again_until_something_is_written(
    app: FastAPI, settings: Settings, routed: list[str]
) -> None:
    client = client_of(app, "ann")
    first, again = client.get(URL), client.get(URL)
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["etag"] == first.headers["etag"]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert again.headers["cache-control"] == first.headers["cache-control"]
    assert routed == [URL]
    other = open_database(settings.database)
    other.write(lambda c: c.execute(study_table.update().values(state="PAUSED", revision=5)))
    assert client.get(URL).json()["state"] == "PAUSED"
    assert routed == [URL, URL]


def test_a_304_is_given_again_and_the_whole_answer_to_who_does_not_have_it(
    app: FastAPI, routed: list[str]
) -> None:
    client = client_of(app, "ann")
    tag = {"If-None-Match": client.get(URL).headers["etag"]}
    assert [client.get(URL, headers=tag).status_code for _ in range(2)] == [304, 304]
    assert client.get(URL).status_code == 200
    assert client.get(URL, headers={"If-None-Match": '"other"'}).status_code == 200
    assert routed == [URL] * 3


def test_nobody_gets_the_answer_of_another(app: FastAPI, routed: list[str]) -> None:
    assert client_of(app, "ann").get(URL).status_code == 200
    assert client_of(app, "bob").get(URL).status_code == 404
    bare = TestClient(app, raise_server_exceptions=False)
    assert bare.get(URL).status_code == 401
    assert bare.get(URL, headers={"Authorization": "Bearer ucd_0_0"}).status_code == 401
    assert len(routed) == 4


def test_a_revoked_token_gets_nothing_that_is_kept(
    app: FastAPI, settings: Settings, routed: list[str]
) -> None:
    client = client_of(app, "ann")
    assert [client.get(URL).status_code for _ in range(2)] == [200, 200]
    (token,) = list_tokens(app.state.core.database)
    revoke_token(open_database(settings.database), token.id)
    assert client.get(URL).status_code == 401
    assert len(routed) == 2


def test_a_token_that_expires_gets_nothing_that_is_kept(
    app: FastAPI, routed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = create_token(app.state.core.database, "ann", ["read"], days=1)
    client = TestClient(app, headers={"Authorization": f"Bearer {text}"})
    assert [client.get(URL).status_code for _ in range(2)] == [200, 200]
    later = repeated.time.time() + 86_401
    monkeypatch.setattr(repeated.time, "time", lambda: later)
    assert client.get(URL).status_code == 401
    assert len(routed) == 2


def test_an_answer_is_kept_for_a_moment_only(
    app: FastAPI, routed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeated, "AGE_S", 0.0)
    client = client_of(app, "ann")
    assert [client.get(URL).status_code for _ in range(2)] == [200, 200]
    assert routed == [URL, URL]


def test_what_has_no_tag_is_not_kept(app: FastAPI, routed: list[str]) -> None:
    client = client_of(app, "ann")
    for _ in range(2):
        assert client.get("/v1/studies").status_code == 200
        assert client.get("/healthz").status_code == 200
    assert len(routed) == 4


def test_the_route_of_an_answer_that_is_kept_is_measured(app: FastAPI, routed: list[str]) -> None:
    client = client_of(app, "ann")
    for _ in range(3):
        client.get(URL)
    assert routed == [URL]
    labels = {"method": "GET", "route": "/v1/studies/{study_id}", "status": "200"}
    counted = app.state.core.metrics.registry.get_sample_value(
        "ucd_ray_request_seconds_count", labels
    )
    assert counted == 3


def test_what_is_kept_has_bounds(
    app: FastAPI, routed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(app, "ann")
    size = len(client.get(URL).content)
    monkeypatch.setattr(repeated, "ROOM", 2 * size + size // 2)
    for name in ("a", "b", "c"):
        add_row(app.state.core.database, name, name=name, title="study")
    for name in ("abc", "a", "b", "c", "c", "b", "abc"):
        assert client.get(f"/v1/studies/{name}").status_code == 200
    assert len(routed) == 6, "the first and the third are answered again; the oldest is forgotten"


def test_on_a_server_nothing_is_kept(any_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(database=any_url))
    add_row(app.state.core.database)
    client = client_of(app, "ann")
    assert client.get(URL).status_code == 200
    other = open_database(any_url)
    other.write(lambda c: c.execute(study_table.update().values(state="PAUSED", revision=5)))
    assert client.get(URL).json()["state"] == "PAUSED"
