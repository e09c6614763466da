"""Gangs on a real Ray cluster: errors on one rank, lost workers, memory, pauses."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import ray

from tests.conftest import tiny_recipe
from ucd_ray.data.prepare import Prepared
from ucd_ray.data.step import StepImages
from ucd_ray.job import Job
from ucd_ray.tune import gang_run
from ucd_ray.tune.board import GO, PAUSE
from ucd_ray.tune.cluster import _environment, connect, local_head
from ucd_ray.tune.executors import Executor, Gang, follow
from ucd_ray.tune.gangs import _Worker
from ucd_ray.tune.single import quiet_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Reports = list[dict[str, Any]]


@dataclass(frozen=True)
class FaultyJob(Job):
    """A job that meets a fault where it looks up its images, on some ranks."""

    fault: str = "none"
    ranks: tuple[int, ...] = (0, 1)
    marker: str = ""  # a file: the fault happens once

    @cached_property
    def plan(self) -> list[StepImages]:
        import torch

        mine = int(os.environ["RANK"]) in self.ranks
        if mine and self.fault == "always kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if mine and self._first_time():
            if self.fault == "error":
                raise OSError("image 7 cannot be read")
            if self.fault == "CUDA error":
                worker_of(sys._getframe()).cuda = True  # as on a card
                raise RuntimeError("CUDA error: device-side assert triggered")
            if self.fault == "memory":
                raise torch.OutOfMemoryError("injected: no memory")
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        return super().plan

    def _first_time(self) -> bool:
        try:
            Path(f"{self.marker}.{os.environ['RANK']}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def worker_of(frame: FrameType) -> _Worker:
    """The worker whose trial runs in this frame."""
    while not isinstance(found := frame.f_locals.get("self"), _Worker):
        assert frame.f_back is not None
        frame = frame.f_back
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a private head for all tests of this file; it says that it has a card."""
    folder = Path(tempfile.mkdtemp(prefix="ucd-", dir="/tmp"))
    with (
        _environment(RAY_OVERRIDE_RESOURCES='{"GPU": 1}'),
        local_head(folder) as (address, _dashboard),
        connect(address, folder, job="gangs"),
        quiet_ray(),
    ):
        yield address
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def job(shapes: Prepared, tmp_path: Path) -> FaultyJob:
    """A tiny job on two workers."""
    return FaultyJob(
        recipe=tiny_recipe(**{"method": "mib", "compute.deterministic": True}),
        data=str(shapes.path),
        cache=str(tmp_path / "steps"),
        weights=None,
        store=str(tmp_path / "runs"),
        name=("study", "0"),
        workers=2,
        marker=str(tmp_path / "fault"),
    )


def start(folder: Path, trials_per_run: int | None) -> Executor:
    return Executor(Gang(2, 1.0, 0.0), str(folder / "ray"), "study", trials_per_run)


def run(executor: Executor, key: str, job: Job, *smaller: Job) -> Reports:
    """All reports of one trial; a gang is added where the last one was for one trial only."""
    if executor.trials_per_run == 1 or not executor.hosts:
        executor.add_gang(f"gang-{key}")
    executor.put(key, job, smaller)
    found = list(executor.reports(key, executor.status))
    executor.forget(key)
    return found


def ends(reports: Reports) -> list[str]:
    """How the attempts at a trial ended."""
    kinds = [report["kind"] for report in reports]
    return [kind for kind in kinds if kind in ("lost", "smaller", "stopped", "failed", "done")]


def weights(job: Job) -> list[str]:
    """Names of all stored weights: they are digests of their content."""
    return sorted(path.name for path in Path(job.cache).glob("*/*.safetensors"))


both = pytest.mark.parametrize("per_run", [None, 1], ids=["warm-gangs", "run-per-trial"])


@both
def test_an_error_on_one_rank_costs_only_its_own_trial(
    cluster: str, job: FaultyJob, tmp_path: Path, per_run: int | None
) -> None:
    with start(tmp_path, per_run) as executor:
        failed = run(executor, "0", replace(job, fault="error", ranks=(1,)))
        assert ends(failed) == ["failed"], "a user's error is not tried again"
        last = failed[-1]
        assert (last["code"], last["reason"]) == ("ERROR", "OSError: image 7 cannot be read")
        assert "test_gangs_on_ray" in last["traceback"]
        said = {r["rank"]: r["text"] for r in failed if r.get("level") == "error"}
        assert "image 7 cannot be read" in said[1]
        lines = [(r["rank"], r["text"].split()[0]) for r in failed if r["kind"] == "worker"]
        assert {(0, "begins"), (0, "failed"), (1, "begins"), (1, "failed")} <= set(lines)
        assert run(executor, "1", replace(job, name=("study", "1")))[-1]["kind"] == "done"
        if per_run is None:
            (gang,) = executor.status()["gangs"].values()
            assert gang["starts"] == 1, "the gang went on with the same workers"


@pytest.mark.parametrize("ranks", [(1,), (0, 1)], ids=["one-rank", "all-ranks"])
def test_a_cuda_error_costs_its_trial_and_renews_the_gang(
    cluster: str, job: FaultyJob, tmp_path: Path, ranks: tuple[int, ...]
) -> None:
    with start(tmp_path, None) as executor:
        failed = run(executor, "0", replace(job, fault="CUDA error", ranks=ranks))
        assert ends(failed) == ["failed"], "nobody knows what is left on the card"
        assert failed[-1]["reason"] == "RuntimeError: CUDA error: device-side assert triggered"
        assert run(executor, "1", replace(job, name=("study", "1")))[-1]["kind"] == "done"
        (gang,) = executor.status()["gangs"].values()
        assert gang["starts"] == 2, "the workers are new ones"


def test_a_start_that_fails_leaves_its_place_to_the_next(
    cluster: str, job: FaultyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty, made = iter(["no kind of process group"]), gang_run.ControlGroup
    monkeypatch.setattr(
        gang_run, "ControlGroup", lambda kinds, timeout_s: made(next(faulty, kinds), timeout_s)
    )
    with start(tmp_path, None) as executor:
        assert run(executor, "0", job)[-1]["kind"] == "done"
        assert next(faulty, None) is None, "the first start has failed"


def test_two_trials_share_a_card(
    cluster: str, job: FaultyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = gang_run.ControlGroup  # networks train on CPUs here, whatever Ray counts
    monkeypatch.setattr(gang_run, "ControlGroup", lambda _, timeout_s: made("gloo", timeout_s))
    with Executor(Gang(1, 1.0, 0.5), str(tmp_path / "ray"), "study") as executor:
        for name in ("a", "b"):
            executor.add_gang(name)
        while not all(gang["up"] for gang in executor.status()["gangs"].values()):
            time.sleep(0.1)
        assert ray.available_resources().get("GPU", 0.0) == 0.0, "both hold a half"
        for key in ("0", "1"):  # neither waits for a base step of the other
            own = str(tmp_path / key)
            executor.put(key, replace(job, workers=1, name=("study", key), cache=own))
        for key in ("0", "1"):
            assert list(executor.reports(key, executor.status))[-1]["kind"] == "done"


def test_an_interrupted_study_ends_its_runs_before_its_connection(
    cluster: str, job: FaultyJob, tmp_path: Path
) -> None:
    executor = start(tmp_path, None).__enter__()
    executor.add_gang("gang")
    (host,) = executor.hosts.values()
    executor.put("0", job)
    try:
        assert any(report["kind"] == "start" for report in executor.reports("0", executor.status))
    finally:
        executor.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert host.thread is not None
    assert not host.thread.is_alive(), "a thread that waits for Ray crashes when Ray is left"


@both
def test_a_killed_worker_costs_at_most_the_open_epoch(
    cluster: str, job: FaultyJob, tmp_path: Path, per_run: int | None
) -> None:
    with start(tmp_path, per_run) as executor:
        reports = run(executor, "0", replace(job, fault="kill", ranks=(1,)))
        assert ends(reports) == ["lost", "done"]
        epochs = [(r["step"], r["epoch"]) for r in reports if r["kind"] == "epoch"]
        assert len(epochs) == len(set(epochs))


def test_a_trial_that_keeps_killing_its_workers_fails_and_the_next_one_runs(
    cluster: str, job: FaultyJob, tmp_path: Path
) -> None:
    with start(tmp_path, None) as executor:
        reports = run(executor, "0", replace(job, fault="always kill", ranks=(0,)))
        assert ends(reports) == ["lost", "lost", "failed"]
        assert reports[-1]["code"] == "LOST_WORKER"
        assert run(executor, "1", replace(job, name=("study", "1")))[-1]["kind"] == "done"


def test_a_trial_out_of_memory_goes_on_with_half_the_micro_batch(
    cluster: str, job: FaultyJob, tmp_path: Path
) -> None:
    recipe = job.recipe.with_overrides({"data.micro_batch_new": 2})
    with start(tmp_path, None) as executor:
        out = replace(job, fault="memory")
        reports = run(executor, "0", out, replace(out, recipe=recipe))
        assert ends(reports) == ["smaller", "done"]
        (smaller,) = (report for report in reports if report["kind"] == "smaller")
        assert smaller["reason"] == "OutOfMemoryError: injected: no memory"
        again = replace(out, name=("study", "1"), marker=str(tmp_path / "again"))
        assert run(executor, "1", again)[-1]["code"] == "OUT_OF_MEMORY"


def test_weights_are_the_same_bits_on_a_used_gang_and_on_new_workers(
    cluster: str, job: FaultyJob, tmp_path: Path
) -> None:
    used = replace(job, cache=str(tmp_path / "used"), name=("study", "1"))
    new = replace(job, cache=str(tmp_path / "new"), name=("study", "2"))
    with start(tmp_path, None) as executor:
        other = job.recipe.with_overrides({"seed": 7, "optim.lr_base": 0.3})
        run(executor, "0", replace(job, recipe=other))
        assert run(executor, "1", used)[-1]["kind"] == "done"
    with start(tmp_path, 1) as executor:
        assert run(executor, "2", new)[-1]["kind"] == "done"
    assert len(weights(used)) == 3
    assert weights(used) == weights(new)


def test_a_paused_trial_goes_on_at_its_checkpoint(
    cluster: str, job: FaultyJob, tmp_path: Path
) -> None:
    longer = replace(job, recipe=job.recipe.with_overrides({"optim.epochs_new": 6}))
    with start(tmp_path, None) as executor:
        executor.add_gang("gang")
        executor.put("0", longer)
        first: Reports = []
        for place, report in follow(executor.board, "0"):
            first.append(report)
            late = report["kind"] == "epoch" and (report["step"], report["epoch"]) == (1, 2)
            executor.answer("0", place, PAUSE if late else GO)
        assert first[-1]["kind"] == "stopped"
        executor.forget("0")
        second = run(executor, "0", longer)
    epochs = [(r["step"], r["epoch"]) for r in (*first, *second) if r["kind"] == "epoch"]
    assert epochs == [(0, 1), (0, 2), *((s, e) for s in (1, 2) for e in range(1, 7))]
    assert second[-1]["kind"] == "done"


def test_a_gang_is_renewed_after_its_trials_and_lets_its_cpus_go_when_retired(
    cluster: str, job: FaultyJob, tmp_path: Path
) -> None:
    with start(tmp_path, 2) as executor:
        for number in range(3):
            one = replace(job, name=("study", str(number)))
            assert run(executor, str(number), one)[-1]["kind"] == "done"
        (gang,) = executor.status()["gangs"].values()
        assert gang["starts"] == 2
    assert not executor.hosts
    total = ray.cluster_resources()["CPU"]
    assert ray.available_resources()["CPU"] == total
