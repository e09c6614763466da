"""Fine-tuning beside a study: started once, as a study of one trial, and then in the study's charts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.service.rows import add_row, client_of
from tests.tune.finished import finish_study
from ucd_ray.data.prepare import Prepared
from ucd_ray.service.app import create_app
from ucd_ray.service.settings import Settings
from ucd_ray.service.tables import study_table
from ucd_ray.tune.best import measured_trial
from ucd_ray.tune.charts.predictions import best_recipe
from ucd_ray.tune.charts.source import Source
from ucd_ray.tune.finetuning import finetuned
from ucd_ray.tune.places import places
from ucd_ray.tune.registration import stored_spec

URL = "/v1/studies/abc:finetune"
CHART = "/v1/studies/abc/plots/predictions?format=json"


@pytest.fixture
def app(
    finished_home: Path, shapes: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FastAPI]:
    """A service of a copy of it, whose study `abc` everybody may read."""
    own = tmp_path / "home"
    shutil.copytree(finished_home, own)
    monkeypatch.setenv("UCD_RAY_HOME", str(own))
    database, data_sets = f"sqlite:///{own}/studies.db", {"mine": str(shapes.path)}
    made = create_app(Settings(database=database, data_sets=data_sets))
    row: dict[str, Any] = {"name": "tiny", "title": "tiny", "shared": True, "priority": 3}
    row |= {"spec": '{"recipe": {"data.source": "mine"}}', "labels": '{"a": "b"}'}
    add_row(made.state.core.database, **row)
    yield made
    made.state.core.close()


@pytest.fixture
def ann(app: FastAPI) -> TestClient:
    made: TestClient = client_of(app, "ann")
    return made


def start(client: TestClient, status: int = 201, key: str | None = None) -> Any:
    answer = client.post(URL, headers={"Idempotency-Key": key} if key else None)
    assert answer.status_code == status, answer.text
    return answer.json()


def set_state(app: FastAPI, study: Any, state: str) -> None:
    update = study_table.update().where(study_table.c.id == study["id"])
    app.state.core.database.write(lambda c: c.execute(update.values(state=state)))


def test_it_is_a_queued_study_of_one_trial_with_the_recipe_that_the_chart_looks_for(
    ann: TestClient, app: FastAPI, shapes: Prepared
) -> None:
    answer = ann.post(URL)
    assert answer.status_code == 201, answer.text
    study, database = answer.json(), app.state.core.database
    assert answer.headers["location"] == f"/v1/studies/{study['id']}"
    assert (study["name"], study["state"], study["owner"]) == ("tiny-finetune", "QUEUED", "ann")
    assert (study["priority"], study["labels"]) == (3, {"a": "b"})
    assert study["spec"]["recipe"]["data.source"] == "mine" and str(shapes.path) not in answer.text
    spec = stored_spec(study["study"], database)
    assert (spec.search, spec.trials, spec.pruner) == ({}, 1, "none")
    assert spec.base_recipe() == finetuned(best_recipe(Source(database, "tiny")))


def test_the_chart_shows_it_as_soon_as_it_is_trained(
    ann: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def report(*_: str) -> bytes:
        return b"whether it is drawn anew is the question"

    monkeypatch.setattr(app.state.core.drawer, "report", report)
    before = ann.get(CHART)
    assert before.status_code == 200, before.text
    assert "--finetune trains it" in before.text and "fine-tuning after step" not in before.text
    page = ann.get("/v1/studies/abc/report")
    study = start(ann)
    finish_study(stored_spec(study["study"], app.state.core.database))
    after = ann.get(CHART, headers={"If-None-Match": before.headers["etag"]})
    assert after.status_code == 200 and "fine-tuning after step" in after.text
    seen = {"If-None-Match": page.headers["etag"]}
    assert ann.get("/v1/studies/abc/report", headers=seen).status_code == 200
    assert ann.get(CHART, headers={"If-None-Match": after.headers["etag"]}).status_code == 304


def test_who_asks_meanwhile_or_afterwards_gets_the_same_study(
    ann: TestClient, app: FastAPI
) -> None:
    study = start(ann)
    for state in ("RUNNING", "PAUSED"):
        set_state(app, study, state)
        assert start(ann, 200)["id"] == study["id"]
    finish_study(stored_spec(study["study"], app.state.core.database))
    set_state(app, study, "SUCCEEDED")
    assert start(ann, 200)["id"] == study["id"]
    other = start(client_of(app, "bob"))
    assert other["id"] != study["id"] and other["owner"] == "bob"


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "STOPPING", "SUCCEEDED"])
def test_after_one_without_a_network_another_is_started(
    state: str, ann: TestClient, app: FastAPI
) -> None:
    study = start(ann)
    set_state(app, study, state)  # SUCCEEDED: its trial has failed
    second = start(ann)
    assert second["id"] != study["id"] and second["spec"] == study["spec"]
    assert start(ann, 200)["id"] == second["id"]
    assert ann.delete(f"/v1/studies/{second['id']}").status_code == 200
    assert start(ann)["id"] not in (study["id"], second["id"])


def test_after_its_network_was_removed_another_is_started(ann: TestClient, app: FastAPI) -> None:
    study, database = start(ann), app.state.core.database
    finish_study(stored_spec(study["study"], database))
    set_state(app, study, "SUCCEEDED")
    entry = measured_trial(database, study["study"]).last.entry
    assert entry is not None
    shutil.rmtree(Path(places().steps) / entry)
    assert start(ann)["id"] != study["id"]


def test_those_who_ask_at_once_get_one_study(ann: TestClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ann.post(URL), range(8)))
    assert sorted(answer.status_code for answer in answers) == [*[200] * 7, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_a_key_replays_the_answer_whatever_became_of_the_study(
    ann: TestClient, app: FastAPI
) -> None:
    study = start(ann, key="k-1")
    set_state(app, study, "FAILED")
    assert start(ann, key="k-1") == study
    assert start(ann, key="k-2")["id"] != study["id"]
    reused = ann.post("/v1/studies", json={"tune": {}}, headers={"Idempotency-Key": "k-1"})
    assert reused.status_code == 422


def test_what_cannot_be_is_refused_in_the_words_of_the_library(
    ann: TestClient, app: FastAPI, shapes: Prepared
) -> None:
    add_row(app.state.core.database, "new", name="new", title="new")
    answer = ann.post("/v1/studies/new:finetune")
    assert (answer.status_code, answer.json()["code"]) == (409, "NOT_STARTED")
    waits = ann.post("/v1/studies", json={"tune": {"scenario": "shapes-8-4"}}).json()["id"]
    answer = ann.post(f"/v1/studies/{waits}:finetune", headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["code"]) == (409, "NO_COMPLETE_TRIAL")
    assert "has no complete trial yet" in answer.json()["detail"]
    assert ann.post(URL, headers={"Idempotency-Key": "k"}).status_code == 201  # it was freed
    assert client_of(app, "bob").post(f"/v1/studies/{waits}:finetune").status_code == 404
    assert client_of(app, "bob", "read").post(URL).status_code == 403


def test_a_data_set_that_is_registered_no_more_is_refused(ann: TestClient, app: FastAPI) -> None:
    app.state.core.settings.data_sets.clear()
    answer = ann.post(URL)
    assert answer.status_code == 422
    assert "'mine' is not among the registered data sets" in answer.json()["detail"]
