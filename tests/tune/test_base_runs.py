"""Base steps before the trials: which are trained, beside which, and what is waited for."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.conftest import MakeJob
from tests.tune.test_bridge import open_book, spec_of
from ucd_ray.checkpoint import StepCache, Store
from ucd_ray.errors import StudyError
from ucd_ray.job import Job
from ucd_ray.tune import base_runs
from ucd_ray.tune.base_runs import Bases, base_key
from ucd_ray.tune.executors import Gang
from ucd_ray.tune.ledger import Ledger, Spent, totals
from ucd_ray.tune.progress import Progress
from ucd_ray.tune.replicates import replicate_jobs


@dataclass
class Floor:
    """A dispatcher and executor that trains at most `room` base steps at a time, one report per look."""

    ledger: Ledger
    cache: StepCache
    room: int = 1
    failing: str | None = None
    late: str | None = None  # why workers do not start
    mode: str = "run"
    why: str = "paused"
    placed: dict[str, Job] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)
    most: int = 0  # at the same time

    @property
    def executor(self) -> Floor:
        return self

    @property
    def gang(self) -> Gang:
        return Gang(1, 1.0, 0.0)

    @property
    def ends(self) -> bool:
        return self.mode == "drain"

    def tick(self) -> None:
        pass

    def place(self, key: str, jobs: list[Job]) -> str | None:
        if len(self.placed) == self.room:
            return "all gangs are at work"
        self.placed[key] = jobs[0]
        self.log.append(("placed", key))
        self.most = max(self.most, len(self.placed))
        return None

    def waiting_reasons(self) -> dict[str, str]:
        return {key: self.late for key in self.placed if self.late}

    def take(self, key: str, since: int, wait_s: float) -> list[dict[str, Any]]:
        if since == 0:
            return [{"kind": "start", "first_step": 0, "notes": [], "held_s": 1.0}]
        if key == self.failing:
            return [{"kind": "failed", "code": "ERROR", "reason": "no", "held_s": 2.0}]
        self.cache.put(base_key(self.placed[key], self.gang), {}, {"step": 0})
        return [{"kind": "done", "value": 1.0, "held_s": 5.0}]

    def answer(self, key: str, place: int, answer: str) -> None:
        self.log.append((answer, key))

    def ended(self, key: str) -> bool:
        del self.placed[key]
        return False


@pytest.fixture
def jobs(make_job: MakeJob) -> list[Job]:
    return replicate_jobs(make_job(), spec_of(seeds=3))


def bases_of(folder: Path, jobs: list[Job], **floor: Any) -> tuple[Bases, Floor]:
    database = open_book(folder).database
    cache = StepCache(Store(jobs[0].cache), "other/base")
    dispatcher = Floor(Ledger(database, "study", Gang(1, 1.0, 0.0)), cache, **floor)
    progress = Progress(spec_of(), Console(file=io.StringIO()), finished=Counter())
    return Bases(jobs, dispatcher, progress), dispatcher  # type: ignore[arg-type]


def keys(floor: Floor) -> list[str]:
    return [key for what, key in floor.log if what == "placed"]


def test_every_replicate_has_a_base_step_and_a_study_of_one_has_one(
    tmp_path: Path, jobs: list[Job]
) -> None:
    trained, floor = bases_of(tmp_path, jobs)
    assert trained.train()
    assert keys(floor) == ["base-r0", "base-r1", "base-r2"]
    assert all(floor.cache.has(base_key(job, floor.gang)) for job in jobs)
    alone, floor = bases_of(tmp_path / "alone", jobs[:1])
    assert (list(alone.left), alone.left["base"].name) == (["base"], ("study", "base"))
    assert alone.train()
    assert keys(floor) == [], "it is stored"


def test_base_steps_are_trained_side_by_side_where_there_is_room(
    tmp_path: Path, jobs: list[Job]
) -> None:
    one_by_one, floor = bases_of(tmp_path, jobs, room=1)
    assert one_by_one.train()
    assert floor.most == 1
    together, floor = bases_of(tmp_path, replicate_jobs(jobs[0], spec_of(seeds=5)), room=2)
    assert together.train()
    assert floor.most == 2
    assert keys(floor) == ["base-r3", "base-r4"], "the study before has trained the others"


def test_the_ledger_counts_all_of_them_once(tmp_path: Path, jobs: list[Job]) -> None:
    trained, floor = bases_of(tmp_path, jobs, room=2)
    assert trained.train()
    assert totals(floor.ledger.database, "study") == {"useful": Spent(15.0, 0.0)}


def test_why_the_workers_of_a_base_step_do_not_start_is_said(
    tmp_path: Path, jobs: list[Job]
) -> None:
    late, _ = bases_of(tmp_path, jobs[:1], late="its workers have not started")
    assert late.train()
    assert "the base step waits: its workers have not started" in shown(late)
    other, _ = bases_of(tmp_path / "other", jobs[1:2])
    assert other.train()
    assert "trials wait for the base step" in shown(other)


def shown(bases: Bases) -> str:
    file: Any = bases.progress.console.file
    return str(file.getvalue())


def test_a_base_step_that_fails_ends_the_study_by_its_name(tmp_path: Path, jobs: list[Job]) -> None:
    trained, _ = bases_of(tmp_path, jobs, failing="base-r1")
    with pytest.raises(StudyError, match=r"^the base step r1 failed: no$"):
        trained.train()


def test_a_study_that_ends_meanwhile_trains_no_further_one(tmp_path: Path, jobs: list[Job]) -> None:
    trained, floor = bases_of(tmp_path, jobs)
    floor.mode = "drain"
    assert not trained.train()
    assert keys(floor) == []


def test_what_another_run_trains_is_waited_for(
    tmp_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, floor = bases_of(tmp_path, jobs[:1])
    step = base_key(jobs[0], floor.gang)
    lease = floor.cache.lease(step)
    assert lease is not None
    said: list[str] = []

    def sleep(seconds: float) -> None:
        said.append(trained.progress.waiting)
        floor.cache.put(step, {}, {"step": 0})
        lease.release()

    monkeypatch.setattr(base_runs.time, "sleep", sleep)
    assert trained.train()
    assert [line.split(" (")[0] for line in said] == [
        "the base step waits: it is being trained by other/base"
    ]
    assert keys(floor) == []
