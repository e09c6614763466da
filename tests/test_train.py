"""One run over all its steps: cache, continuation after a kill, reports, every method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import MakeJob
from ucd_ray import metrics
from ucd_ray.checkpoint import StepCache, Store, TrialStore, key_digest
from ucd_ray.confusion import decoded, unpack
from ucd_ray.environment import threads
from ucd_ray.errors import CheckpointError
from ucd_ray.job import Job
from ucd_ray.learner import Ranks
from ucd_ray.memories import Memories
from ucd_ray.methods import METHODS
from ucd_ray.runtime import choose_runtime
from ucd_ray.train import LocalContext, Report, TrialStopped, step_reports, train_run


class Killed(BaseException):
    """Ends a run as a lost process does: nothing of ours catches it."""


def reports_of(job: Job) -> list[Report]:
    reports: list[Report] = []
    train_run(job, LocalContext(reports.append))
    return reports


def hosted(job: Job, *, saves: float = math.inf) -> list[Report]:
    """Runs a job with its checkpoint; Killed right after the given number of saves."""
    store, reports = TrialStore(Store(job.store), *job.name), []

    def save(state: dict[str, Any]) -> None:
        nonlocal saves
        store.save(state)
        saves -= 1
        if saves == 0:
            raise Killed

    train_run(job, LocalContext(reports.append, load=store.load, save=save))
    return reports


def measured(reports: list[Report]) -> list[Report]:
    """The step reports without what a clock or the cache decides."""
    left_out = ("seconds", "cached")
    return [{k: v for k, v in r.items() if k not in left_out} for r in step_reports(reports)]


def same(one: Any, other: Any) -> bool:
    """Equality in which NaN equals NaN."""
    return repr(one) == repr(other)


def weights_of(job: Job, step: int) -> dict[str, torch.Tensor]:
    entry = StepCache(job.open_cache()).get(job.step_key(step, precision="float32"))
    assert entry is not None
    return entry.weights


def elsewhere(job: Job, tmp_path: Path) -> Job:
    """The same job with an empty cache and no checkpoint."""
    return replace(job, cache=str(tmp_path / "other/steps"), store=str(tmp_path / "other/runs"))


def kinds(reports: list[Report]) -> list[str]:
    return [report["kind"] for report in reports]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_over_all_steps(make_job: MakeJob, method: str) -> None:
    short = {"optim.iterations_base": 2, "optim.iterations_new": 1, "data.crop": 64}
    job = make_job(method=method, **short)
    steps = list(step_reports(reports_of(job)))
    assert [step["step"] for step in steps] == list(range(len(job.recipe.steps.steps)))
    last = steps[-1]
    assert [int(c) for c in last["select"]["iou"]] == list(range(13))
    assert 0 <= last["value"] <= 100
    assert set(last["val"]["means"]) >= {"miou_all", "miou_base", "miou_added", "forgetting"}
    assert weights_of(job, last["step"])


def test_reports_come_as_start_then_epochs_then_step(make_job: MakeJob) -> None:
    job = make_job(method="mib")
    reports = reports_of(job)
    assert kinds(reports) == ["start", *["epoch", "epoch", "step"] * 3]
    assert reports[0]["first_step"] == 0
    assert any("float32" in note for note in reports[0]["notes"])
    steps = list(step_reports(reports))
    assert [step["images"] for step in steps] == [len(images.train) for images in job.plan]
    assert [step["cached"] for step in steps] == [False] * 3


def test_a_step_tells_what_trained_it_also_when_another_run_did(make_job: MakeJob) -> None:
    trained = list(step_reports(reports_of(make_job(method="mib"))))
    with threads(torch.get_num_threads() + 1):
        cached = list(step_reports(reports_of(make_job(method="mib"))))
    assert [step["cached"] for step in cached] == [True] * 3
    for one, other in zip(trained, cached, strict=True):
        assert one["environment"]["threads"] == torch.get_num_threads()
        assert one["environment"] == other["environment"]


def test_every_step_is_trained_with_the_threads_of_its_job(make_job: MakeJob) -> None:
    job = replace(make_job(method="mib"), threads=(3, 1, 2))
    before = torch.get_num_threads()
    steps = list(step_reports(reports_of(job)))
    assert [step["environment"]["threads"] for step in steps] == [3, 1, 2]
    assert torch.get_num_threads() == before


def test_rungs_count_the_epochs_since_the_base_step(make_job: MakeJob) -> None:
    epochs = [r for r in reports_of(make_job(method="finetune")) if r["kind"] == "epoch"]
    assert [e["step"] for e in epochs] == [0, 0, 1, 1, 2, 2]
    assert [e["rung"] for e in epochs] == [0, 0, 1, 2, 3, 4]
    assert [e["value"] is None for e in epochs] == [True, True, False, False, False, False]


def test_rungs_do_not_depend_on_what_was_cached(make_job: MakeJob) -> None:
    job = make_job(method="finetune")
    reports_of(replace(job, until=1))
    epochs = [r for r in reports_of(job) if r["kind"] == "epoch"]
    assert [(e["step"], e["rung"]) for e in epochs] == [(2, 3), (2, 4)]


def test_the_last_epochs_value_is_the_steps_value(make_job: MakeJob) -> None:
    reports = reports_of(make_job(method="finetune", until=1))
    assert reports[-2]["value"] == reports[-1]["value"]


def test_means_and_forgetting_follow_from_the_reported_ious(make_job: MakeJob) -> None:
    steps = list(step_reports(reports_of(make_job(method="finetune"))))
    for images in ("select", "val"):
        history = [torch.tensor(list(s[images]["iou"].values()), dtype=torch.double) for s in steps]
        for step, report in enumerate(steps):
            means = report[images]["means"]
            drop = metrics.forgetting(history[: step + 1])
            assert same(list(report[images]["forgetting"].values()), drop.tolist())
            assert same(means["forgetting"], metrics.mean_forgetting(history[: step + 1]))
            assert same(means["miou_all"], float(history[step][1:].nanmean()))
        assert len(steps[0][images]["forgetting"]) == 0
        assert list(steps[2][images]["forgetting"]) == [str(c) for c in range(11)]


def test_the_confusion_on_val_is_told_after_every_step_with_old_classes(make_job: MakeJob) -> None:
    first, second, _ = step_reports(reports_of(make_job(method="finetune")))
    assert first["confusion"] is None
    counts = torch.from_numpy(unpack(decoded(second["confusion"])))
    assert same(metrics.iou_per_class(counts).tolist(), list(second["val"]["iou"].values()))


def test_a_run_may_end_after_a_step(make_job: MakeJob) -> None:
    job = make_job(until=0)
    assert [r["step"] for r in train_run(job, LocalContext(lambda _: None))] == [0]
    assert not StepCache(job.open_cache()).has(job.step_key(1, precision="float32"))


# Cache.


def test_another_method_takes_the_base_step_from_the_cache(make_job: MakeJob) -> None:
    first = reports_of(make_job(method="finetune"))
    second = reports_of(make_job(1, method="mib+ucd"))
    assert second[0]["first_step"] == 1
    assert kinds(second) == ["start", "step", *["epoch", "epoch", "step"] * 2]
    assert next(step_reports(second))["cached"] is True
    assert same(measured(first)[0], measured(second)[0])


def test_a_cached_base_step_changes_no_number(make_job: MakeJob, tmp_path: Path) -> None:
    reports_of(make_job(method="finetune", until=0))
    job = make_job(1, method="mib+ucd")
    fresh = elsewhere(job, tmp_path)
    assert same(measured(reports_of(job)), measured(reports_of(fresh)))
    one, other = weights_of(job, 2), weights_of(fresh, 2)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_is_told_again_without_training(make_job: MakeJob) -> None:
    job = make_job(method="lwf")
    first, second = reports_of(job), reports_of(job)
    assert kinds(second) == ["start", "step", "step", "step"]
    assert second[0]["first_step"] == 3
    assert same(measured(first), measured(second))


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"optim.lr_base": 0.02}, {"data.crop": 96}, {"setting": "disjoint"}],
)
def test_another_base_step_is_trained_anew(make_job: MakeJob, other: dict[str, Any]) -> None:
    short = {"optim.iterations_base": 1}
    reports_of(make_job(until=0, **short))
    assert reports_of(make_job(1, until=0, **short, **other))[0]["first_step"] == 0


def test_damaged_weights_in_the_cache_stop_the_run(make_job: MakeJob) -> None:
    job = make_job(until=0, **{"optim.iterations_base": 1})
    reports_of(job)
    (weights,) = Path(job.cache).glob("*/*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        reports_of(replace(job, until=1))


# What methods keep beside the weights.

MEMORIES = {"plop": "medians", "sdr": "prototypes", "ewc": "ewc", "pi": "pi", "rw": "rw"}
SHORT = {"optim.iterations_base": 3, "optim.iterations_new": 2}


def passes(reports: list[Report]) -> list[tuple[str, int]]:
    return [(r["name"], r["step"]) for r in reports if r["kind"] == "pass"]


def forget(job: Job, step: int) -> None:
    """Removes the memory that enters `step` from the cache."""
    ranks = Ranks()
    memories = Memories(job, StepCache(job.open_cache()), choose_runtime(job.recipe.compute), ranks)
    key = memories.key(MEMORIES[job.recipe.method], step)
    assert memories.cache.has(key)
    memories.cache.store.delete(key_digest(key))


@pytest.mark.parametrize("method", ["plop", "sdr", "ewc"])
def test_a_pass_is_made_once_for_all_runs_that_share_its_step(
    make_job: MakeJob, method: str
) -> None:
    name = MEMORIES[method]
    first = reports_of(make_job(method=method, **SHORT))
    assert passes(first) == [(name, 1), (name, 2)]
    key = "pod.weight" if method == "plop" else "ce.weight" if method == "sdr" else "ewc.weight"
    other = reports_of(make_job(1, method=method, **SHORT, **{key: 0.125, "ce.weight": 1.0}))
    assert passes(other) == ([(name, 2)] if key != "ce.weight" else [])


@pytest.mark.parametrize("method", ["pi", "rw"])
def test_a_method_that_watches_training_has_a_base_step_of_its_own(
    make_job: MakeJob, method: str
) -> None:
    plain = make_job(method="finetune", **SHORT, until=0)
    reports_of(plain)
    job = make_job(1, method=method, **SHORT)
    assert [step["cached"] for step in step_reports(reports_of(job))] == [False] * 3
    one, other = weights_of(plain, 0), weights_of(job, 0)
    assert all(torch.equal(one[name], other[name]) for name in one)  # watching changes nothing
    again = make_job(2, method=method, **SHORT, **{f"{method}.weight": 1.0})
    assert [step["cached"] for step in step_reports(reports_of(again))] == [True, False, False]


@pytest.mark.parametrize("method", MEMORIES)
@pytest.mark.parametrize("lost", [1, 2])
def test_a_lost_memory_is_made_again_from_the_last_step_that_allows_it(
    make_job: MakeJob, method: str, lost: int
) -> None:
    job = make_job(method=method, **SHORT)
    expected = reports_of(make_job(method=method, **SHORT))
    StepCache(job.open_cache()).store.delete(key_digest(job.step_key(2, precision="float32")))
    forget(job, lost)
    first = reports_of(job)[0]["first_step"]
    watches = method in ("pi", "rw")
    assert first == ((1 if lost == 2 else 2) if watches else 2)
    assert same(measured(reports_of(job)), measured(expected))


# Continuation.


@pytest.mark.parametrize(
    ("method", "saves"),
    [
        *(("mib+ucd", saves) for saves in (1, 2, 3, 6)),
        *(
            ("plop", 3),
            ("sdr", 3),
            ("sdr", 6),
            ("ewc", 6),
            ("pi", 1),
            ("pi", 4),
            ("rw", 1),
            ("rw", 5),
        ),
    ],
)
def test_a_killed_run_continues_to_the_same_result(
    make_job: MakeJob, tmp_path: Path, method: str, saves: int
) -> None:
    job = make_job(method=method, **{"optim.iterations_base": 5, "optim.iterations_new": 4})
    whole = elsewhere(job, tmp_path)
    expected = hosted(whole)
    with pytest.raises(Killed):
        hosted(job, saves=saves)
    rest = hosted(job)
    assert same(measured(rest), measured(expected))
    assert kinds(rest).count("epoch") == kinds(expected).count("epoch") - saves
    one, other = weights_of(job, 2), weights_of(whole, 2)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_damaged_checkpoint_starts_its_step_anew(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(method="mib")
    expected = hosted(elsewhere(job, tmp_path))
    with pytest.raises(Killed):
        hosted(job, saves=3)
    state = Path(job.store, *job.name, "state.pt")
    state.write_bytes(state.read_bytes()[:-100])
    rest = hosted(job)
    assert rest[0]["first_step"] == 1
    assert kinds(rest).count("epoch") == 4
    assert same(measured(rest), measured(expected))


def test_the_checkpoint_of_other_values_is_not_used(make_job: MakeJob) -> None:
    with pytest.raises(Killed):
        hosted(make_job(method="mib", until=1), saves=3)
    epochs = [r for r in hosted(make_job(method="mib", until=1, seed=2)) if r["kind"] == "epoch"]
    assert [e["epoch"] for e in epochs] == [1, 2, 1, 2]


@pytest.mark.parametrize("error", [TrialStopped, Killed])
def test_what_the_context_raises_comes_out_and_leaves_nothing_set(
    make_job: MakeJob, error: type[BaseException]
) -> None:
    def stop(report: Report) -> None:
        if report["kind"] == "epoch":
            raise error

    with pytest.raises(error):
        train_run(make_job(), LocalContext(stop))
    assert torch.are_deterministic_algorithms_enabled() is False


# Other ways to run.


def test_joint_learns_everything_at_once_and_is_measured_by_the_same_groups(
    make_job: MakeJob,
) -> None:
    job = make_job(method="joint")
    reports = reports_of(job)
    assert kinds(reports) == ["start", "epoch", "epoch", "step"]
    means = reports[-1]["val"]["means"]
    iou = list(reports[-1]["val"]["iou"].values())
    assert means["miou_base"] == pytest.approx(torch.tensor(iou[1:9]).nanmean().item(), abs=1e-4)
    assert means["miou_added"] == pytest.approx(torch.tensor(iou[9:]).nanmean().item(), abs=1e-4)
    assert math.isnan(means["forgetting"])


def test_selecting_on_val_trains_on_all_images_and_scores_val(make_job: MakeJob) -> None:
    short = {"optim.iterations_base": 2, "optim.iterations_new": 1, "data.crop": 64}
    held, all_images = make_job(**short), make_job(1, **short, **{"eval.select_on": "val"})
    assert len(all_images.plan[0].train) > len(held.plan[0].train)
    for step in step_reports(reports_of(all_images)):
        assert same(step["select"], step["val"])


def test_few_scored_images_change_the_epochs_but_not_the_step(
    make_job: MakeJob, tmp_path: Path
) -> None:
    short = {"method": "finetune", "optim.iterations_base": 2, "optim.iterations_new": 2}
    job = make_job(**short, **{"eval.max_images": 1})
    every = elsewhere(make_job(**short), tmp_path)
    one, other = reports_of(job), reports_of(every)
    assert same(measured(one), measured(other))
    values = [[r["value"] for r in rs if r["kind"] == "epoch"] for rs in (one, other)]
    assert not same(*values)


@pytest.mark.parametrize(
    "flat",
    [
        {"data.micro_batch": 1},
        {"model.norm": "frozen", "optim.lr_base": 1e-5, "optim.lr_new": 1e-5},
        {"eval.mode": "crop", "eval.size": 48},
        {"eval.unseen": "ignore"},
        {"setting": "sequential"},
        {"compute.precision": "bfloat16"},
        {"data.loader_workers": 1},
        {"data.batch_size": 32},
    ],
)
def test_a_run_finishes_under(make_job: MakeJob, flat: dict[str, Any]) -> None:
    job = make_job(until=1, **{"optim.iterations_base": 2, "optim.iterations_new": 1, **flat})
    reports = reports_of(job)
    assert math.isfinite(reports[-1]["value"])


def test_one_image_per_pass_is_noted(make_job: MakeJob) -> None:
    job = make_job(until=0, **{"data.micro_batch": 1, "optim.iterations_base": 1})
    assert any("pooling branch is frozen" in note for note in reports_of(job)[0]["notes"])


def test_pretrained_weights_are_loaded_into_the_backbone(make_job: MakeJob, tmp_path: Path) -> None:
    from ucd_ray.models import create_backbone

    path = tmp_path / "backbone.pth"
    torch.save(create_backbone("test_resnet", 16).body.state_dict(), path)
    path.with_suffix(".json").write_text('{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}')
    job = replace(make_job(until=0, **{"optim.iterations_base": 1}), weights=str(path))
    reports = reports_of(job)
    assert any(f"into backbone test_resnet from {path}" in note for note in reports[0]["notes"])
    assert weights_of(job, 0)["mean"].flatten().tolist() == [127.5] * 3


def test_the_local_context_reports_before_it_saves() -> None:
    order: list[str] = []
    context = LocalContext(
        lambda report: order.append(report["kind"]), save=lambda state: order.append(state["name"])
    )
    state: Callable[[], dict[str, Any]] = lambda: {"name": "state"}  # noqa: E731
    context.report({"kind": "epoch"}, state)
    context.report({"kind": "step"})
    assert order == ["epoch", "state", "step"]
    assert context.load() is None
