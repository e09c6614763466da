"""What Prometheus reads."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from optuna.trial import TrialState
from prometheus_client.parser import text_string_to_metric_families

from tests.service.rows import add_row, app_with_study, client_of
from ucd_ray.service import metrics as module
from ucd_ray.tune.results import stored_trials, trials_table
from ucd_ray.tune.tables import ledger_table
from ucd_ray.tune.tally import trials_by_state

Found = dict[tuple[str, ...], float]


def read(client: TestClient) -> Found:
    """Values by name and labels."""
    text = client.get("/metrics").text
    return {
        (sample.name, *map(str, sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_studies_trials_waits_and_costs_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_with_study(tmp_path, 10)
    database, now = app.state.core.database, time.time()
    add_row(database, "q", name="q", state="QUEUED", created=now - 60)
    add_row(database, "s", name="s", state="SUCCEEDED", created=now - 60, started=now - 50)
    spent = {"study": "study", "kind": "useful", "cpu_seconds": 8.0, "gpu_seconds": 4.0}
    rows = [{**spent, "number": 0}, {**spent, "number": 1}, {**spent, "number": 0, "kind": "saved"}]
    rows.append({**spent, "number": -1, "kind": "wall"})
    database.write(lambda connection: connection.execute(ledger_table.insert(), rows))
    client = client_of(app, "ann", "read")
    found = read(client)
    assert found["ucd_ray_studies", "QUEUED"] == found["ucd_ray_studies", "RUNNING"] == 1
    states = {"COMPLETE": 7, "PRUNED": 2, "FAILED": 1}
    assert {s: found["ucd_ray_trials", s] for s in states} == states
    assert (found["ucd_ray_steps", "cache"], found["ucd_ray_steps", "trained"]) == (7, 14)
    assert found[("ucd_ray_queue_wait_seconds_count",)] == 1
    assert found[("ucd_ray_queue_wait_seconds_sum",)] == pytest.approx(10, abs=0.1)
    assert found[("ucd_ray_queue_longest_seconds",)] == pytest.approx(60, abs=5)
    assert found["ucd_ray_gpu_seconds", "useful"] == 8.0
    assert found["ucd_ray_gpu_seconds", "saved"] == 4.0
    assert found["ucd_ray_gpu_seconds", "idle"] == 0.0
    assert ("ucd_ray_gpu_seconds", "wall") not in found
    add_row(database, "q2", name="q2", state="QUEUED")
    assert read(client)["ucd_ray_studies", "QUEUED"] == 1, "it is read once a moment"
    monkeypatch.setattr(module, "AGE_S", 0.0)
    assert read(client)["ucd_ray_studies", "QUEUED"] == 2


def test_trials_are_counted_by_the_states_that_lists_show(tmp_path: Path) -> None:
    app = app_with_study(tmp_path, 10)
    database, client = app.state.core.database, client_of(app, "ann")
    storage = database.optuna_storage()
    for _ in range(3):
        client.post("/v1/studies/abc/trials", json={"params": {"kd.weight": 42.0}})
    client.post("/v1/studies/abc/trials/10:stop")
    (runs,) = [t for t in stored_trials(database, "study") if t.number == 11]
    storage.set_trial_state_values(runs._trial_id, TrialState.RUNNING)

    def counted() -> dict[str, int]:
        return database.read(trials_by_state)

    def listed() -> Counter[str]:
        return Counter(trials_table(database, "study")["state"].to_pylist())

    states = {"COMPLETE": 7, "PRUNED": 2, "FAILED": 1, "CANCELLED": 1, "QUEUED": 1}
    assert counted() == listed() == {**states, "WAITING": 1}, "it has no driver"
    assert read(client)["ucd_ray_trials", "CANCELLED"] == 1
    database.claim("study")
    assert counted() == listed() == {**states, "RUNNING": 1}
    storage.set_trial_user_attr(runs._trial_id, "waiting", "needs 4 CPUs, 2 free")
    assert counted() == listed() == {**states, "WAITING": 1}


def test_requests_are_measured_by_route_not_by_path(tmp_path: Path) -> None:
    client = client_of(app_with_study(tmp_path, 1), "ann", "read")
    client.get("/v1/studies/abc/trials/0")
    client.get("/v1/studies/abc/trials/7")
    client.get("/nowhere")
    found = read(client)
    route = "/v1/studies/{study_id}/trials/{number}"
    assert found["ucd_ray_request_seconds_count", "GET", route, "200"] == 1
    assert found["ucd_ray_request_seconds_count", "GET", route, "404"] == 1
    assert found["ucd_ray_request_seconds_count", "GET", "none", "404"] == 1


def test_an_empty_service_has_metrics_too_and_only_for_readers(tmp_path: Path) -> None:
    app = app_with_study(tmp_path, 0)
    assert TestClient(app).get("/metrics").status_code == 401
    assert read(client_of(app, "ann", "read"))[("ucd_ray_event_streams",)] == 0
