"""What every request meets: authentication, limits, problems, headers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ucd_ray.errors import ConfigError, DatabaseError, StudyError
from ucd_ray.service.app import create_app
from ucd_ray.service.database import open_database
from ucd_ray.service.limits import too_deep
from ucd_ray.service.problems import pointer, problem_of
from ucd_ray.service.settings import Settings
from ucd_ray.service.tokens import create_token, list_tokens, revoke_token

Clients = Callable[..., TestClient]
STUDY = "/v1/studies/abc"


def test_both_kinds_of_database_get_the_tables_and_keep_what_is_in_them(any_url: str) -> None:
    text = create_token(open_database(any_url), "ann", ["read"])
    (token,) = list_tokens(open_database(any_url))
    assert token.owner == "ann"
    assert token.scopes == {"read"}
    assert text.split("_")[1] == token.id


def test_without_any_token_only_loopback_is_answered(app: FastAPI) -> None:
    near = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
    assert near.get(STUDY).status_code == 404
    far = TestClient(app, base_url="http://127.0.0.1", client=("10.0.0.7", 1))
    assert far.get(STUDY).status_code == 401
    rebound = TestClient(app, base_url="http://evil.example", client=("127.0.0.1", 1))
    assert rebound.get(STUDY).status_code == 401


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer "])
def test_the_header_of_an_empty_variable_is_none(app: FastAPI, header: str) -> None:
    near = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
    assert near.get(STUDY, headers={"Authorization": header}).status_code == 404
    create_token(app.state.core.database, "ann", ["read"])
    refused = near.get(STUDY, headers={"Authorization": header})
    assert refused.status_code == 401
    assert "this needs a token" in refused.json()["detail"]


def test_a_token_before_there_is_one_is_told_so(app: FastAPI) -> None:
    near = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
    refused = near.get(STUDY, headers={"Authorization": "Bearer ..."})
    assert refused.status_code == 401
    assert "there is no token yet" in refused.json()["detail"]


def test_once_a_token_exists_loopback_needs_one_too(app: FastAPI, as_owner: Clients) -> None:
    assert as_owner("ann").get(STUDY).status_code == 404
    near = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
    refused = near.get(STUDY)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"


def test_a_revoked_an_expired_and_a_guessed_token_are_refused(app: FastAPI) -> None:
    database = app.state.core.database
    good = create_token(database, "ann", ["read"])
    old = create_token(database, "ann", ["read"], days=-1)
    key = good.split("_")[1]
    client = TestClient(app)

    def status(token: str) -> int:
        return client.get(STUDY, headers={"Authorization": f"Bearer {token}"}).status_code

    assert status(good) == 404
    assert status(old) == 401
    assert status(f"ucd_{key}_guess") == 401
    assert status("nonsense") == 401
    revoke_token(database, key)
    assert status(good) == 401


def test_no_secret_of_a_token_is_stored(app: FastAPI, settings: Settings) -> None:
    text = create_token(app.state.core.database, "ann", ["read"])
    secret = text.split("_", 2)[2]
    files = open_database(settings.database).url.database
    assert files is not None
    with open(files, "rb") as stored:
        assert secret.encode() not in stored.read()


def test_every_answer_has_an_id_and_the_security_headers(as_owner: Clients) -> None:
    for path in ("/healthz", STUDY, "/nowhere"):
        answer = as_owner("ann").get(path)
        assert len(answer.headers["X-Request-Id"]) == 16
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"


def test_a_problem_names_status_code_and_request(as_owner: Clients) -> None:
    answer = as_owner("ann").get(STUDY)
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["code"]) == (404, "NO_STUDY")
    assert "'abc'" in body["detail"]
    assert body["request_id"] == answer.headers["X-Request-Id"]


def test_bodies_have_a_limit_of_size_and_of_depth(as_owner: Clients, settings: Settings) -> None:
    client = as_owner("ann")
    large = client.post("/v1/studies", content=b" " * (settings.max_body_bytes + 1))
    assert large.status_code == 413
    deep = client.post("/v1/studies", content=b"[" * 100_000)
    assert deep.status_code == 422
    assert deep.json()["code"] == "TOO_DEEP"


def test_brackets_in_a_string_are_no_depth() -> None:
    assert not too_deep(rb'{"a": "[[[\"[["}', 1)
    assert too_deep(b'{"a": [[1]], "b": [2]}', 2)
    assert not too_deep(b'{"a": [[1]], "b": [2]}', 3)


def test_too_many_requests_are_told_when_to_come_back(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"requests_per_minute": 3}))
    client = TestClient(app)
    bearer = {"Authorization": "Bearer x"}
    answers = [client.get("/healthz", headers=bearer) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert int(answers[3].headers["Retry-After"]) >= 1
    others = [client.get("/healthz", headers={"Authorization": f"Bearer {n}"}) for n in range(40)]
    assert others[0].status_code == 200
    assert (
        others[-1].status_code == 429
    )  # guesses of tokens do not escape the limit of their address


@pytest.mark.parametrize(
    ("error", "status"),
    [(ConfigError("x"), 422), (StudyError("x"), 409), (DatabaseError("x"), 503)],
)
def test_errors_of_the_library_keep_their_sentence(error: Exception, status: int) -> None:
    problem = problem_of(error)  # type: ignore[arg-type]
    assert (problem.status, problem.detail) == (status, "x")


def test_pointers_escape_as_json_pointers_do() -> None:
    assert pointer(("body", "search", "a/b~c", 0)) == "/search/a~1b~0c/0"
    assert pointer(("query", "page_size")) == "#query/page_size"
    assert pointer(("body", "labels", "größe", "[key]")) == "/labels/größe", "it is of the key"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_load_balancer_probes_with_head(app: FastAPI, path: str) -> None:
    answer = TestClient(app).head(path)
    assert answer.status_code == 200
    assert "head" not in app.openapi()["paths"][path]
