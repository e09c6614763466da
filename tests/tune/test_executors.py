"""Gangs and jobs of trials; no cluster is started."""

from __future__ import annotations

import threading

import pytest

from tests.conftest import MakeJob
from ucd_ray.errors import CheckpointError, ConfigError, TrainingDiverged
from ucd_ray.tune.executors import Executor, Gang, Host, trial_jobs
from ucd_ray.tune.gangs import agreed, failure


def test_a_trials_job_has_its_recipe_and_its_number(make_job: MakeJob) -> None:
    study = make_job()
    (job,) = trial_jobs(study, 3, study.recipe.with_overrides({"optim.lr_new": 0.5}), 2)[:1]
    assert job.name[-1] == "3"
    assert job.recipe.optim.lr_new == 0.5


def test_a_trial_out_of_memory_gets_half_the_micro_batch_and_the_same_total(
    make_job: MakeJob,
) -> None:
    study = make_job(**{"data.batch_size": 16})
    jobs = trial_jobs(study, 0, study.recipe, 5)
    assert [job.recipe.data.micro_batch_new for job in jobs] == [None, 8, 4, 2]
    assert {job.recipe.data.batch_size for job in jobs} == {16}
    first, last = jobs[0], jobs[-1]
    assert first.step_key(0, precision="float32") == last.step_key(0, precision="float32")
    assert first.step_key(1, precision="float32") != last.step_key(1, precision="float32")
    assert "data.micro_batch_new" not in first.step_key(1, precision="float32")["recipe"]


def test_failures_carry_their_code() -> None:
    assert failure(TrainingDiverged("kd became nan"))["code"] == "NAN"
    assert failure(ConfigError("no"))["code"] == "USER_ERROR"
    assert failure(CheckpointError("cannot write 'x': No space left"))["code"] == "STORAGE"
    assert failure(OSError("disk"))["reason"] == "OSError: disk"
    assert "OSError: disk" in failure(OSError("disk"))["traceback"]


def test_the_error_of_the_rank_that_made_it_is_the_reason() -> None:
    echo = failure(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"))
    own = failure(KeyError("image 7"))
    assert own["time"] >= echo["time"]
    assert agreed([echo, own])["reason"] == "KeyError: 'image 7'"
    assert agreed([{"kind": "done", "value": 1.0}, own])["kind"] == "failed"
    assert agreed([{"kind": "stopped"}] * 2) == {"kind": "stopped"}


def test_synchronised_norms_need_cards(make_job: MakeJob) -> None:
    recipe = make_job(**{"model.norm": "sync"}).recipe
    with pytest.raises(ConfigError, match=r"model\.norm \(sync\) needs GPUs"):
        Gang(2, 1.0, 0.0).check(recipe)
    Gang(2, 1.0, 1.0).check(recipe)


def test_several_workers_do_not_share_a_card(make_job: MakeJob) -> None:
    recipe = make_job().recipe
    Gang(1, 1.0, 0.25).check(recipe)
    with pytest.raises(ConfigError, match=r"gpus_per_worker \(0\.25\) with 2 workers"):
        Gang(2, 1.0, 0.25).check(recipe)


def test_workers_ask_for_cards_only_if_they_get_some() -> None:
    assert Gang(2, 1.0, 0.0).resources_per_worker() == {"CPU": 1.0}
    assert Gang(2, 1.0, 0.5).resources_per_worker() == {"CPU": 1.0, "GPU": 0.5}


def test_a_gang_whose_study_ended_with_an_error_leaves_ray_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor, runs, closed = Executor(Gang(1, 1.0, 0.0), "/nowhere", "s"), [], threading.Event()

    def run(self: Executor, host: Host) -> str:
        runs.append(host.name)
        closed.wait(30)
        return "the connection is closed"

    def starts(self: Executor, name: str) -> int:
        assert not closed.is_set(), "it would connect to Ray again, in another thread"
        return 0

    monkeypatch.setattr(Executor, "_run", run)
    monkeypatch.setattr(Executor, "_starts", starts)
    retired: list[str] = []
    executor.on_retired = retired.append
    host = Host("gang0")
    thread = threading.Thread(target=executor._host, args=(host,))
    thread.start()
    executor.__exit__(RuntimeError, RuntimeError("disk full"), None)
    closed.set()
    thread.join(30)
    assert runs == ["gang0"]
    assert not retired
