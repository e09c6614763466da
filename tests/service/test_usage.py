"""GPU hours of an owner: counted once, on the day they were used, and kept when a study goes."""

from __future__ import annotations

import pytest

from tests.service.rows import add_row
from ucd_ray.service import usage
from ucd_ray.service.database import open_database
from ucd_ray.service.jobs import Resources
from ucd_ray.service.reconciler import Reconciler
from ucd_ray.service.settings import Quota, Settings
from ucd_ray.service.states import condition
from ucd_ray.service.studies import StudyRow, find_study
from ucd_ray.tune.database import Database
from ucd_ray.tune.tables import ledger_table


@pytest.fixture
def database(any_url: str) -> Database:
    return open_database(any_url)


def add(database: Database, study_id: str, owner: str = "ann", **given: object) -> StudyRow:
    database.save_spec(study_id, "{}", {})
    add_row(database, study_id, owner, name=study_id, **given)
    found = find_study(database, study_id)
    assert found is not None
    return found


def spend(database: Database, study: str, number: int, hours: float, kind: str = "useful") -> None:
    row = {"study": study, "number": number, "kind": kind}
    spent = {"cpu_seconds": 0.0, "gpu_seconds": hours * 3600}
    database.write(lambda c: c.execute(ledger_table.insert(), {**row, **spent}))


def test_what_is_new_in_a_ledger_is_added_once(database: Database) -> None:
    first, second, other = (
        add(database, n, o) for n, o in (("a", "ann"), ("b", "ann"), ("c", "bob"))
    )
    spend(database, "a", 0, 1.5)
    spend(database, "a", 1, 0.5, "failed")
    spend(database, "a", 2, 9.0, "saved")  # by the step cache: nothing was held for it
    for _ in range(2):
        usage.count(database, first)
    assert usage.gpu_hours_today(database) == {"ann": 2.0}
    spend(database, "a", 3, 1.0, "idle")
    spend(database, "b", 0, 0.25)
    spend(database, "c", 0, 4.0)
    for row in (first, second, other):
        usage.count(database, row)
    assert usage.gpu_hours_today(database) == {"ann": 3.25, "bob": 4.0}


def test_a_new_day_begins_at_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    row = add(database, "a")
    spend(database, "a", 0, 2.0)
    usage.count(database, row)
    monkeypatch.setattr(usage, "today", lambda: "2999-01-01")
    assert usage.gpu_hours_today(database) == {}
    spend(database, "a", 1, 0.5)
    usage.count(database, row)
    assert usage.gpu_hours_today(database) == {"ann": 0.5}


def test_a_ledger_that_says_less_takes_nothing_back(database: Database) -> None:
    row = add(database, "a")
    spend(database, "a", 0, 2.0)
    usage.count(database, row)
    database.write(lambda c: c.execute(ledger_table.delete()))
    spend(database, "a", 0, 1.0)
    usage.count(database, row)
    assert usage.gpu_hours_today(database) == {"ann": 2.0}


class Idle:
    """A cluster on which nothing has run yet."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def submit(self, job: str, study: str) -> None:
        self.started.append(study)

    def status(self, job: str) -> None:
        return None

    def stop(self, job: str) -> None:
        raise AssertionError

    def logs(self, job: str) -> str:
        return ""

    def resources(self) -> Resources:
        return Resources(8.0, 8.0)


def test_who_has_used_the_hours_of_the_day_waits_for_the_next(
    database: Database, any_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(database=any_url, quota=Quota(gpu_hours_per_day=2.0))
    ran = add(database, "a", state="SUCCEEDED")
    spend(database, "a", 0, 2.0)
    usage.count(database, ran)
    add(database, "b", state="QUEUED", gpus=1.0)
    cluster = Idle()
    reconciler = Reconciler(settings, database, cluster)
    reconciler.tick()
    waits = find_study(database, "b")
    assert waits is not None and waits.state == "QUEUED" and cluster.started == []
    admitted = condition(waits.conditions, "Admitted")
    assert admitted is not None and admitted["reason"] == "QUOTA_GPU_HOURS"
    assert admitted["message"] == "2 GPU hours of today are used; goes on tomorrow (UTC)"
    monkeypatch.setattr(usage, "today", lambda: "2999-01-01")
    reconciler.tick()
    assert cluster.started == ["b"]
