"""A step is trained once: by one of several processes, and by another if that one is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.conftest import MakeJob
from tests.steps import Process, wait_until
from ucd_ray.checkpoint import StepCache, Store, key_digest
from ucd_ray.errors import CheckpointError
from ucd_ray.job import Job
from ucd_ray.learner import Ranks
from ucd_ray.train import LocalContext, Report, step_reports, train_run
from ucd_ray.turns import turn

SHORT = {"optim.iterations_base": 3, "optim.iterations_new": 2, "method": "finetune"}
KEY = {"a": "key"}
WEIGHTS = {"weight": torch.arange(3.0)}

Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts runs in processes; what is left of them is ended."""
    with ExitStack() as stack:

        def start(job: Job, *, hang: bool = False) -> Process:
            process = Process(job, tmp_path / "processes" / job.name[-1], hang=hang)
            stack.callback(process.reap)
            return process

        yield start


def cached(reports: list[Report]) -> list[bool]:
    return [report["cached"] for report in step_reports(reports)]


def run(job: Job) -> list[Report]:
    reports: list[Report] = []
    train_run(job, LocalContext(reports.append))
    return reports


def test_two_processes_that_start_a_step_at_once_train_it_once(
    make_job: MakeJob, start: Start
) -> None:
    some = {
        **SHORT,
        "optim.iterations_base": 30,
    }  # so that the first still trains when the second begins
    processes = [start(make_job(number, until=1, **some)) for number in range(2)]
    wait_until(lambda: all(process.is_ready() for process in processes))
    for process in processes:
        process.go()
    both = [process.end() for process in processes]
    for step in range(2):
        assert sorted(cached(reports)[step] for reports in both) == [False, True]
    values = [[report["value"] for report in step_reports(reports)] for reports in both]
    assert repr(values[0]) == repr(values[1])
    (waited,) = [r for reports in both for r in reports if r["kind"] == "waiting" and not r["step"]]
    assert "step 0 is being trained by study/" in waited["reason"]


def test_when_the_process_that_trains_is_killed_the_waiting_one_takes_over(
    make_job: MakeJob, start: Start
) -> None:
    first, second = (
        start(make_job(number, until=0, **SHORT), hang=not number) for number in range(2)
    )
    first.go()
    first.wait_for("epoch")
    second.go()
    reason = second.wait_for("waiting")["reason"]
    assert reason.startswith(f"step 0 is being trained by study/0 (process {first.process.pid} on")
    first.kill()
    reports = second.end()
    assert cached(reports) == [False]
    assert [r["kind"] for r in reports] == ["start", "waiting", "epoch", "step"]


def test_the_lease_and_the_hold_of_a_run_are_gone_after_it(make_job: MakeJob) -> None:
    job = make_job(until=0, **SHORT)
    run(job)
    assert {path.name for path in Path(job.cache).rglob("*") if path.is_file()} >= {"entry.json"}
    assert not list(Path(job.cache, "leases").iterdir())
    assert not list(Path(job.cache, "holds").iterdir())


def test_a_run_that_fails_gives_its_lease_back(make_job: MakeJob) -> None:
    job = make_job(until=0, **SHORT)

    def fail(report: Report) -> None:
        if report["kind"] == "epoch":
            key = job.step_key(0, precision="float32")
            assert StepCache(job.open_cache()).holder(key) is not None
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        train_run(job, LocalContext(fail))
    assert not list(Path(job.cache, "leases").iterdir())
    assert not list(Path(job.cache, "holds").iterdir())


def test_a_step_that_another_run_stored_meanwhile_is_taken_and_the_rest_continues(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job, other = make_job(**SHORT), make_job(1, until=1, **SHORT)
    fresh = replace(job, cache=str(tmp_path / "fresh"))
    reports: list[Report] = []

    def overtake(report: Report) -> None:
        reports.append(report)
        if report["kind"] == "start":
            run(other)

    train_run(job, LocalContext(overtake))
    assert reports[0]["first_step"] == 0
    assert cached(reports) == [True, True, False]
    expected = [report["value"] for report in step_reports(run(fresh))]
    assert repr([report["value"] for report in step_reports(reports)]) == repr(expected)


def test_runs_that_differ_from_step_3_on_share_the_steps_before(make_job: MakeJob) -> None:
    steps = [list(range(1, 9)), [9], [10], [11], [12]]
    later = [*steps[:3], [12], [11]]
    plain = {"method": "mib", "optim.iterations_base": 2, "optim.iterations_new": 1}
    one = make_job(scenario={"dataset": "shapes", "steps": steps}, **plain)
    two = make_job(1, scenario={"dataset": "shapes", "steps": later}, **plain)
    assert cached(run(one)) == [False] * 5
    reports = run(two)
    assert cached(reports) == [True, True, True, False, False]
    assert reports[0]["first_step"] == 3
    assert cached(run(one)) == [True] * 5


def test_a_run_with_a_memory_shares_the_steps_before_too(make_job: MakeJob) -> None:
    steps = [list(range(1, 9)), [9], [10], [11], [12]]
    later = [*steps[:3], [12], [11]]
    plain = {"method": "ewc", "optim.iterations_base": 2, "optim.iterations_new": 1}
    run(make_job(scenario={"dataset": "shapes", "steps": steps}, **plain))
    reports = run(make_job(1, scenario={"dataset": "shapes", "steps": later}, **plain))
    assert cached(reports) == [True, True, True, False, False]


def test_a_step_that_is_removed_while_it_is_needed_is_an_error_that_says_so(
    make_job: MakeJob,
) -> None:
    job = make_job(until=0, **SHORT)
    run(job)

    class Removing(Ranks):
        def agree(self, value: Any) -> Any:
            Store(job.cache).delete(key_digest(job.step_key(0, precision="float32")))
            return value

    with pytest.raises(CheckpointError, match="step 0 was removed from the step cache"):
        train_run(replace(job, until=1), LocalContext(lambda report: None, ranks=Removing()))


def test_a_damaged_step_is_not_trained_again(make_job: MakeJob) -> None:
    job = make_job(until=0, **SHORT)
    run(job)
    (entry,) = Path(job.cache).glob("*/entry.json")
    entry.write_bytes(entry.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=f"{entry.parent.name}' is damaged"):
        run(job)
    assert len(list(Path(job.cache).glob("*/entry.json"))) == 1


# Ranks wait together.


def wait_as_rank(rank: int, root: str, group: str) -> None:
    """One rank of a run: takes its turn and leaves what it heard and got."""
    dist.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=2)
    short = dist.new_group(timeout=timedelta(seconds=TIMEOUT_S))
    cache, heard = StepCache(Store(root), "study/1"), []
    ranks = Ranks(rank=rank, world_size=2, group=short)

    def tell(who: str) -> None:
        heard.append(who)
        Path(root, f"waits-{rank}").touch()

    with turn(cache, KEY, ranks, stored=lambda: cache.has(KEY), tell=tell) as own:
        Path(root, f"got-{rank}").write_text(f"{own.stored} {own.lease} {heard}")
    dist.destroy_process_group()


TIMEOUT_S = 7  # of a collective; the ranks wait longer


@pytest.mark.slow
def test_the_ranks_of_a_waiting_run_wait_together_longer_than_a_collective_may(
    tmp_path: Path,
) -> None:
    root = str(tmp_path / "steps")
    cache = StepCache(Store(root), "study/0")
    lease = cache.lease(KEY)
    assert lease is not None
    processes: Any = mp.spawn(wait_as_rank, (root, str(tmp_path / "group")), nprocs=2, join=False)
    wait_until(lambda: all(Path(root, f"waits-{rank}").exists() for rank in range(2)))
    assert not processes.join(timeout=TIMEOUT_S + 3)
    assert not Path(root, "got-0").exists()
    cache.put(KEY, WEIGHTS, {"select": []})
    lease.release()
    while not processes.join():
        pass
    for rank in range(2):
        expected = f"True None ['study/0 (process {os.getpid()} on "
        assert Path(root, f"got-{rank}").read_text().startswith(expected)
