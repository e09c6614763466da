"""Trials over HTTP: pages, one by one, queued, stopped and tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.service.rows import add_row, app_with_study, client_of
from ucd_ray.service.page_tokens import token_of
from ucd_ray.service.tables import study_table
from ucd_ray.tune.database import Database
from ucd_ray.tune.events import events
from ucd_ray.tune.one_trial import trial_content

URL = "/v1/studies/abc/trials"


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return app_with_study(tmp_path, 12)


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    made: TestClient = client_of(app, "ann")
    return made


@pytest.fixture
def database(app: FastAPI) -> Database:
    found: Database = app.state.core.database
    return found


def walk(client: TestClient, **query: Any) -> list[int]:
    """The numbers of all trials of a list, page after page."""
    found, token = [], ""
    while token is not None:
        page = client.get(URL, params={**query, "page_token": token}).json()
        found += [trial["number"] for trial in page["trials"]]
        token = page["next_page_token"]
    return found


def test_pages_lead_from_one_to_the_next(client: TestClient) -> None:
    assert walk(client, page_size=5) == list(range(12))
    assert walk(client, page_size=5, order_by="number desc") == list(range(12))[::-1]
    complete = walk(
        client, page_size=2, order_by="value desc", filter='state="COMPLETE" AND number>1'
    )
    values = [client.get(f"{URL}/{number}").json()["value"] for number in complete]
    assert values == sorted(values, reverse=True)
    assert set(complete) == {2, 4, 5, 7, 9, 10, 11}


def test_a_page_is_never_larger_than_the_largest(client: TestClient) -> None:
    assert len(client.get(URL, params={"page_size": 10**6}).json()["trials"]) == 12
    assert client.get(URL, params={"page_size": 0}).status_code == 422
    assert client.get(URL, params={"page_size": -1}).status_code == 422


def test_a_token_belongs_to_its_list(client: TestClient) -> None:
    token = client.get(URL, params={"page_size": 5}).json()["next_page_token"]
    other = client.get(URL, params={"page_token": token, "order_by": "value"})
    assert (other.status_code, other.json()["errors"][0]["code"]) == (422, "PAGE_TOKEN")
    huge = token_of([2**70, None], "abc", "", "number")
    for bad in ("x", "bm9uc2Vuc2U=", "WzEsMl0=", "é", huge):
        assert client.get(URL, params={"page_token": bad}).status_code == 422


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kd.wieght>1", "did you mean 'kd.weight'"),
        ('state="DONE"', "'DONE' is no state"),
        ("value>", "write value="),
        (">3", "stands where a field should be"),
        ("value=1 number=2", "write AND or OR"),
    ],
)
def test_a_wrong_filter_is_422_with_a_hint(client: TestClient, text: str, told: str) -> None:
    answer = client.get(URL, params={"filter": text})
    assert answer.status_code == 422
    assert told in answer.json()["detail"]
    assert answer.json()["errors"][0]["pointer"] == "#query/filter"


def test_filters_know_and_or_and_not(client: TestClient) -> None:
    text = '(state="PRUNED" OR state="FAILED") AND NOT number>=6'
    assert walk(client, filter=text) == [3]
    assert walk(client, filter="kd.weight>1e9") == []
    assert walk(client, filter='code="a\\u0000b"') == []


def test_a_trial_and_its_steps_are_what_the_library_says(
    client: TestClient, database: Database
) -> None:
    assert client.get(f"{URL}/3").json() == trial_content(database, "study", 3)
    same = client.get(f"{URL}/3", headers={"If-None-Match": client.get(f"{URL}/3").headers["etag"]})
    assert same.status_code == 304
    steps = client.get(f"{URL}/0/steps").json()["steps"]
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert "classes" not in steps[0]
    (one,) = client.get(f"{URL}/0/steps/1").json()["steps"]
    assert one["val"] == steps[1]["val"]
    assert one["classes"]["val"][0]["class_name"] == "background"


@pytest.mark.parametrize("path", ["/99", "/99/steps", "/0/steps/9", "/99/logs", "/99/checkpoint"])
def test_what_is_not_there_is_404(client: TestClient, path: str) -> None:
    assert client.get(URL + path).status_code == 404


@pytest.mark.parametrize("path", ["/-1", "/99999999999999999999", "/one"])
def test_what_is_no_number_of_a_trial_is_404(client: TestClient, path: str) -> None:
    answer = client.get(URL + path)
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


def test_a_trial_is_queued_stopped_and_tried_again(client: TestClient, database: Database) -> None:
    queued = client.post(URL, json={"params": {"kd.weight": 42.0}})
    assert (queued.status_code, queued.json()["trial"]) == (201, 12)
    assert queued.headers["location"] == f"{URL}/12"
    trial = client.get(f"{URL}/12").json()
    assert (trial["state"], trial["params"]) == ("QUEUED", {"kd.weight": 42.0})
    assert client.post(f"{URL}/12:retry").status_code == 409, "it has not ended"
    stopped = client.post(f"{URL}/12:stop")
    assert (stopped.status_code, stopped.json()["done"]) == (200, True)
    assert client.get(f"{URL}/12").json()["code"] == "STOPPED_BY_USER"
    again = client.post(f"{URL}/12:retry")
    assert (again.status_code, again.json()["trial"]) == (201, 13)
    assert client.get(f"{URL}/13").json()["params"] == {"kd.weight": 42.0}
    told = [(row.kind, row.number) for row in events(database, "study")]
    assert told == [("queued", 12), ("finished", 12), ("queued", 13)]


def test_advice_names_the_users_study_and_requests(client: TestClient, app: FastAPI) -> None:
    database = app.state.core.database
    rows = study_table.update().where(study_table.c.id == "abc")
    database.write(lambda c: c.execute(rows.values(title="mine", state="CANCELLED")))
    detail = client.post(URL, json={"params": {"kd.weight": 42.0}}).json()["detail"]
    assert "study 'mine'" in detail and "ucd-ray" not in detail
    assert "nothing runs it: `POST /v1/studies/abc:resume` does" in detail
    retried = client.post(f"{URL}/12:retry").json()["detail"]
    assert (
        "study 'mine'" in retried
        and "cancel it first: `POST /v1/studies/abc/trials/12:stop`" in retried
    )
    space = {"search": {"kd.temperature": {"low": 1, "high": 2}}, "fix": {"kd.weight": 7.0}}
    refused = client.patch("/v1/studies/abc", json={"space": space})
    assert refused.status_code == 409
    assert "cancel it (`POST /v1/studies/abc/trials/12:stop`)" in refused.json()["detail"]
    database.write(lambda c: c.execute(rows.values(state="QUEUED")))
    detail = client.post(URL, json={"params": {"kd.weight": 43.0}}).json()["detail"]
    assert "nothing runs it" not in detail, "it takes its turn"
    assert client.patch("/v1/studies/abc", json={"trials": 12}).status_code == 200
    detail = client.post(URL, json={"params": {"kd.weight": 43.0}}).json()["detail"]
    assert detail.endswith('12 trials (`PATCH /v1/studies/abc {"trials": N}`)')


def test_a_table_shows_at_once_what_was_queued(client: TestClient) -> None:
    before = client.get("/v1/studies/abc/results")
    client.post(URL, json={"params": {"kd.weight": 42.0}})
    after = client.get("/v1/studies/abc/results", headers={"If-None-Match": before.headers["etag"]})
    assert len(after.json()) == len(before.json()) + 1


@pytest.mark.parametrize(
    ("body", "told", "pointer"),
    [
        ({"params": {"kd.wieght": 1.0}}, "kd.wieght", "/params/kd.wieght"),
        ({"params": {"nope": 1}}, "nope", "/params/nope"),
        ({"params": {"seed": 3}}, "'seed' is not searched", "/params/seed"),
        ({"params": {"kd.weight": "x"}}, "valid number", "/params/kd.weight"),
        ({"params": {}}, "at least 1 item", "/params"),
        ({"params": {"kd.weight": 1.0}, "more": 1}, "more", "/more"),
        ({}, "Field required", "/params"),
    ],
)
def test_params_that_cannot_be_are_422_and_nothing_is_queued(
    client: TestClient, body: dict[str, Any], told: str, pointer: str
) -> None:
    answer = client.post(URL, json=body)
    assert answer.status_code == 422
    assert told in answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert len(walk(client)) == 12


def test_only_who_may_write_may_queue(app: FastAPI) -> None:
    reader = client_of(app, "ann", "read")
    assert reader.get(URL).status_code == 200
    assert reader.post(URL, json={"params": {"kd.weight": 1.0}}).status_code == 403
    other = client_of(app, "bob")
    assert other.get(URL).status_code == 404
    assert other.post(f"{URL}/3:stop").status_code == 404


def test_a_driver_that_does_not_answer_leaves_a_202(
    client: TestClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ucd_ray.service.routes.trials.WAIT_S", 0.1)
    database.claim("study")
    answer = client.post(URL, json={"params": {"kd.weight": 42.0}})
    assert (answer.status_code, answer.json()["done"]) == (202, False)
    assert "has not answered" in answer.json()["detail"]


def test_a_study_that_has_not_started_has_no_list_yet(app: FastAPI, database: Database) -> None:
    add_row(database, "new", name="new", state="QUEUED")
    answer = client_of(app, "ann").get("/v1/studies/new/trials")
    assert (answer.status_code, answer.json()["code"]) == (409, "NOT_STARTED")
