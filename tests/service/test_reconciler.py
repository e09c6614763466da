"""Rows and jobs: whatever is killed, no study runs twice and none is forgotten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.memory import Killed, MemoryCluster, row, service
from ucd_ray.errors import ClusterError
from ucd_ray.service import attempts
from ucd_ray.service.database import open_database
from ucd_ray.service.jobs import REFUSED, Resources
from ucd_ray.service.settings import Settings
from ucd_ray.service.states import condition
from ucd_ray.service.tables import study_table
from ucd_ray.tune import commands

Clients = Callable[..., TestClient]
STUDIES = "/v1/studies"
SHAPES: dict[str, Any] = {"tune": {"scenario": "shapes-8-4", "settings": {"trials": 3}}}


@pytest.fixture
def settings(on_any_database: Settings) -> Settings:
    return on_any_database


@pytest.fixture
def ann(as_owner: Clients) -> TestClient:
    return as_owner("ann")


@pytest.fixture
def cluster() -> MemoryCluster:
    return MemoryCluster()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "AGAIN_S", 0.0)


def start(client: TestClient, **fields: Any) -> str:
    answer = client.post(STUDIES, json={**SHAPES, **fields})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def driver(settings: Settings) -> Iterator[Callable[[str], None]]:
    """Makes this process the driver of a study, as its job would be."""
    database, names = open_database(settings.database), []

    def drive(name: str) -> None:
        database.claim(name)
        names.append(name)

    yield drive
    for name in names:
        database.release(name)


def test_a_study_becomes_a_job_and_ends_with_it(
    ann: TestClient, settings: Settings, cluster: MemoryCluster
) -> None:
    study = start(ann)
    reconciler = service(settings, cluster)
    assert reconciler.tick()
    assert cluster.active() == [f"ucd-{study}-1"]
    assert reconciler.tick()
    seen = ann.get(f"{STUDIES}/{study}").json()
    assert seen["state"] == "RUNNING"
    assert "ResourcesAvailable" in {c["type"] for c in seen["conditions"]}
    cluster.states[f"ucd-{study}-1"] = "SUCCEEDED"
    reconciler.tick()
    seen = ann.get(f"{STUDIES}/{study}").json()
    assert seen["state"] == "SUCCEEDED"
    assert [c["type"] for c in seen["conditions"]] == ["BudgetExhausted"], "it waits for nothing"
    assert seen["end_time"] >= seen["start_time"]


def test_a_study_that_is_stopped_waits_for_nothing_any_more(
    ann: TestClient, settings: Settings, cluster: MemoryCluster
) -> None:
    study = start(ann)
    reconciler = service(settings, cluster)
    reconciler.tick()
    reconciler.tick()
    assert {c["type"] for c in ann.get(f"{STUDIES}/{study}").json()["conditions"]} == {
        *("Admitted", "BaseStepReady", "ResourcesAvailable")
    }
    ann.post(f"{STUDIES}/{study}:stop")
    reconciler.tick()
    reconciler.tick()
    seen = ann.get(f"{STUDIES}/{study}").json()
    assert (seen["state"], seen["conditions"]) == ("CANCELLED", [])


def run_killed(settings: Settings, cluster: MemoryCluster, at: int, ticks: int) -> bool:
    """Whether a process that is killed at a point got there within its ticks."""
    try:
        reconciler = service(settings, cluster, killed_at=at)
        for _ in range(ticks):
            reconciler.tick()
    except Killed:
        return True
    return False


def test_killed_at_any_point_of_a_start_a_study_runs_once(
    ann: TestClient, settings: Settings
) -> None:
    points = 0
    while True:
        cluster, study = MemoryCluster(), start(ann)
        killed = run_killed(settings, cluster, points, ticks=2)
        for _ in range(2):
            service(settings, cluster).tick()
        assert cluster.active() == cluster.starts == [f"ucd-{study}-1"]
        found = row(settings, study)
        assert (found.state, found.submitted is not None) == ("RUNNING", True)
        cluster.states[f"ucd-{study}-1"] = "SUCCEEDED"
        service(settings, cluster).tick()
        assert row(settings, study).state == "SUCCEEDED"
        if not killed:
            break
        points += 1
    assert points >= 10


@pytest.mark.parametrize(
    ("action", "body", "end"),
    [
        ("stop", {"how": "kill"}, "CANCELLED"),
        ("pause", None, "PAUSED"),
        ("delete", None, "DELETED"),
    ],
)
def test_killed_at_any_point_of_an_end_the_study_ends(
    ann: TestClient, settings: Settings, action: str, body: Any, end: str
) -> None:
    points = 0
    while True:
        cluster, study = MemoryCluster(), start(ann)
        service(settings, cluster).tick()
        if action == "delete":
            answer = ann.delete(f"{STUDIES}/{study}?force=true")
        else:
            answer = ann.post(f"{STUDIES}/{study}:{action}", json=body)
        assert answer.status_code == 200
        killed = run_killed(settings, cluster, points, ticks=3)
        for _ in range(3):
            service(settings, cluster).tick()
        assert row(settings, study).state == end
        assert cluster.active() == []
        assert len(cluster.starts) == 1
        if not killed:
            break
        points += 1
    assert points >= 5


def test_a_lost_head_gives_the_next_attempt_of_the_same_study(
    ann: TestClient, settings: Settings, cluster: MemoryCluster
) -> None:
    study = start(ann)
    reconciler = service(settings, cluster)
    reconciler.tick()
    cluster.lose_head()
    reconciler.tick()
    assert cluster.active() == [f"ucd-{study}-2"]
    degraded = condition(row(settings, study).conditions, "Degraded")
    assert degraded is not None and degraded["reason"] == "CLUSTER_LOST"
    assert row(settings, study).failures == 0


def test_a_driver_that_outlived_its_head_is_waited_for(
    ann: TestClient,
    settings: Settings,
    cluster: MemoryCluster,
    driver: Callable[[str], None],
) -> None:
    study = start(ann)
    reconciler = service(settings, cluster)
    reconciler.tick()
    driver(row(settings, study).name)
    cluster.lose_head()
    reconciler.tick()
    assert cluster.active() == []
    open_database(settings.database).release(row(settings, study).name)
    reconciler.tick()
    assert cluster.active() == [f"ucd-{study}-2"]


def test_a_cluster_that_does_not_answer_has_lost_nothing(
    ann: TestClient, settings: Settings, cluster: MemoryCluster
) -> None:
    study = start(ann)
    reconciler = service(settings, cluster)
    reconciler.tick()
    cluster.is_away = True
    with pytest.raises(ClusterError):
        reconciler.tick()
    cluster.is_away = False
    reconciler.tick()
    assert cluster.starts == [f"ucd-{study}-1"]


def test_a_cluster_that_shrinks_or_has_no_node_yet_preempts_nobody(
    ann: TestClient, settings: Settings, cluster: MemoryCluster
) -> None:
    study = start(ann)
    reconciler = service(settings, cluster)
    reconciler.tick()
    cluster.there = Resources(0.0, 0.0)
    with pytest.raises(ClusterError, match="no living node"):
        reconciler.tick()
    cluster.there = Resources(0.5, 0.0)
    reconciler.tick()
    found = row(settings, study)
    admitted = condition(found.conditions, "Admitted")
    assert found.state == "RUNNING"
    assert admitted is not None and admitted["reason"] == "TOO_LARGE"


def test_a_job_that_fails_is_tried_again_then_the_study_has_failed(
    ann: TestClient, settings: Settings, cluster: MemoryCluster
) -> None:
    study = start(ann)
    reconciler = service(settings, cluster)
    cluster.said = "lines\nerror: the data set is damaged\n"
    for attempt in (1, 2, 3):
        reconciler.tick()
        cluster.states[f"ucd-{study}-{attempt}"] = "FAILED"
    reconciler.tick()
    seen = ann.get(f"{STUDIES}/{study}").json()
    assert (seen["state"], seen["attempt"]) == ("FAILED", 3)
    degraded = condition(seen["conditions"], "Degraded")
    assert degraded is not None and degraded["message"] == "the data set is damaged"
    assert len(seen["conditions"]) == 1, "it holds nothing and waits for nothing"
    resumed = ann.post(f"{STUDIES}/{study}:resume").json()
    assert resumed["state"] == "QUEUED"
    assert [c["reason"] for c in resumed["conditions"]] == ["QUEUED"]
    reconciler.tick()
    assert cluster.active() == [f"ucd-{study}-4"]


def test_a_job_that_was_refused_is_not_tried_again(
    ann: TestClient, settings: Settings, cluster: MemoryCluster
) -> None:
    study = start(ann)
    reconciler = service(settings, cluster)
    cluster.said, cluster.exit_code = "error: data set 'mine' is not prepared\n", REFUSED
    reconciler.tick()
    cluster.states[f"ucd-{study}-1"] = "FAILED"
    reconciler.tick()
    seen = ann.get(f"{STUDIES}/{study}").json()
    assert (seen["state"], seen["attempt"]) == ("FAILED", 1)
    degraded = condition(seen["conditions"], "Degraded")
    assert degraded is not None and degraded["message"] == "data set 'mine' is not prepared"


def test_the_exit_code_of_a_job_tells_a_refusal_from_what_may_pass(
    ann: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = row(settings, start(ann)).name

    def code(*, url: str = settings.database, study: str = name) -> int:
        environment = {**os.environ, "UCD_RAY_DATABASE": url}
        command = [sys.executable, "-m", "ucd_ray.service.job", study]
        return subprocess.run(command, env=environment, capture_output=True).returncode

    database = open_database(settings.database)
    spec = database.stored_spec(name)
    spec["recipe"]["data.source"] = "/nowhere"
    database.save_spec(name, json.dumps(spec), {})
    assert code() == REFUSED
    assert code(study="other") == 2
    assert code(url="sqlite:////dev/null/studies.db") == 2


def test_a_running_study_is_paused_by_its_driver_and_resumed(
    ann: TestClient,
    settings: Settings,
    cluster: MemoryCluster,
    driver: Callable[[str], None],
) -> None:
    study, database = start(ann), open_database(settings.database)
    reconciler = service(settings, cluster)
    reconciler.tick()
    name = row(settings, study).name
    driver(name)
    reconciler.tick()
    assert condition(row(settings, study).conditions, "ResourcesAvailable") is not None
    assert ann.post(f"{STUDIES}/{study}:pause").json()["state"] == "PAUSING"
    for _ in range(3):
        reconciler.tick()
    (given,) = commands.pending(database, name)
    assert (given.kind, given.body) == ("stop", {"how": "checkpoint"})
    commands.settle(database, name)  # its driver was only starting: what it found is dropped
    reconciler.tick()
    (again,) = commands.pending(database, name)
    commands.finish(database, again.id, "stopping")
    database.release(name)
    cluster.states[f"ucd-{study}-1"] = "SUCCEEDED"
    reconciler.tick()
    assert ann.get(f"{STUDIES}/{study}").json()["state"] == "PAUSED"
    assert condition(row(settings, study).conditions, "ResourcesAvailable") is None, "it holds none"
    ann.post(f"{STUDIES}/{study}:resume")
    reconciler.tick()
    assert cluster.active() == [f"ucd-{study}-2"]


def test_a_driver_that_does_not_end_at_once_is_ended_with_its_job(
    ann: TestClient,
    settings: Settings,
    cluster: MemoryCluster,
    driver: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = start(ann)
    reconciler = service(settings, cluster)
    reconciler.tick()
    driver(row(settings, study).name)
    ann.post(f"{STUDIES}/{study}:stop", json={"how": "drain"})
    reconciler.tick()
    monkeypatch.setattr(attempts, "KILL_S", 0.0)
    reconciler.tick()
    assert len(cluster.active()) == 1
    ann.post(f"{STUDIES}/{study}:stop", json={"how": "kill"})
    for _ in range(2):
        reconciler.tick()
        time.sleep(0.01)
    assert cluster.active() == []


def test_of_two_replicas_one_reconciles(
    ann: TestClient, settings: Settings, cluster: MemoryCluster
) -> None:
    one = service(settings, cluster)
    assert one.tick()
    two = type(one)(settings, open_database(settings.database), cluster)
    assert not two.tick()
    one.lease.release()
    assert two.tick()
    assert not one.tick()


def test_a_higher_priority_takes_the_place_of_a_lower_at_its_checkpoint(
    ann: TestClient, settings: Settings
) -> None:
    cluster = MemoryCluster(cpus=1)
    low = start(ann)
    reconciler = service(settings, cluster)
    reconciler.tick()
    high = start(ann, priority=5)
    reconciler.tick()
    assert ann.get(f"{STUDIES}/{low}").json()["state"] == "PAUSING"
    assert cluster.active() == [f"ucd-{low}-1"]
    for _ in range(3):
        reconciler.tick()
    assert cluster.active() == [f"ucd-{high}-1"]
    seen = ann.get(f"{STUDIES}/{low}").json()
    admitted = condition(seen["conditions"], "Admitted")
    assert seen["state"] == "QUEUED"
    assert admitted is not None and admitted["reason"] == "WAITS_FOR_ROOM"
    cluster.states[f"ucd-{high}-1"] = "SUCCEEDED"
    reconciler.tick()
    assert cluster.active() == [f"ucd-{low}-2"]


def test_trials_at_a_time_follow_the_share(
    as_owner: Clients, settings: Settings, driver: Callable[[str], None]
) -> None:
    cluster = MemoryCluster(cpus=4)
    ann, bob = as_owner("ann"), as_owner("bob")
    first = start(ann)
    reconciler = service(settings, cluster)
    reconciler.tick()
    assert row(settings, first).share is None  # alone: the whole cluster
    driver(row(settings, first).name)
    second = start(bob)
    reconciler.tick()
    assert row(settings, second).share == 2
    assert row(settings, first).share == 2
    database = open_database(settings.database)
    assert database.stored_spec(row(settings, second).name)["max_concurrent"] == 2
    (asked,) = commands.pending(database, row(settings, first).name)
    assert asked.body["edit"]["settings"] == {"max_concurrent": 2}


def test_a_deleted_study_is_purged_when_its_time_has_come(
    ann: TestClient, settings: Settings, cluster: MemoryCluster
) -> None:
    now = settings.model_copy(update={"purge_after_days": 0.0})
    study = start(ann)
    name = row(settings, study).name
    ann.delete(f"{STUDIES}/{study}")
    database = open_database(settings.database)
    service(settings, cluster).tick()
    assert database.spec(name) is not None
    database.write(lambda c: c.execute(study_table.update().values(purge=time.time() - 1)))
    service(now, cluster).tick()
    assert database.spec(name) is None
    assert ann.get(f"{STUDIES}/{study}").status_code == 404
