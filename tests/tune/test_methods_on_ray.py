"""Methods with a memory on two DDP workers of Ray: what the workers keep is what one process finds."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.tune.test_study_on_ray import mentions
from ucd_ray import Recipe, RunResult, run
from ucd_ray.checkpoint import StepCache, StepEntry
from ucd_ray.job import Job
from ucd_ray.learner import Ranks
from ucd_ray.memories import Memories
from ucd_ray.models import Segmenter, build_segmenter, frozen_copy
from ucd_ray.runtime import choose_runtime
from ucd_ray.tune.cluster import local_head
from ucd_ray.tune.places import places
from ucd_ray.tune.prepare import prepare_job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

METHODS = {"plop+ucd": "medians", "sdr": "prototypes", "rw": "rw"}  # method -> its memory

TINY: dict[str, Any] = {
    "scenario": "shapes-8-4",
    "model.backbone": "test_resnet",
    "model.width": 16,
    "data.crop": 64,
    "data.batch_size": 16,
    "optim.iterations_base": 11,
    "optim.iterations_new": 3,
    "optim.lr_base": 0.05,
    "eval.max_images": 8,
    "compute.precision": "float32",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One UCD_RAY_HOME for all tests; afterwards no Ray process that was started from it is left."""
    short = Path(tempfile.mkdtemp(prefix="ucd-", dir="/tmp"))  # Ray's socket names must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(short))
        patch.setattr(tempfile, "tempdir", str(short))
        yield tmp_path_factory.mktemp("home")
    deadline = time.monotonic() + 15
    while left := [process for process in psutil.process_iter() if mentions(process, short)]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.2)
    shutil.rmtree(short, ignore_errors=True)


@pytest.fixture(autouse=True)
def own_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of this module instead of one per test."""
    for name in ("UCD_RAY_DATABASE", "UCD_RAY_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UCD_RAY_HOME", str(home))
    return home


@pytest.fixture(scope="module")
def results(home: Path) -> dict[str, RunResult]:
    """All methods, one after the other, on one head."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("UCD_RAY_DATABASE", "UCD_RAY_STORAGE", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        patch.setenv("UCD_RAY_HOME", str(home))
        with local_head(home) as (address, _dashboard):
            return {name: run(recipe(name), workers=2, address=address) for name in METHODS}


def recipe(method: str) -> Recipe:
    return Recipe.from_flat({**TINY, "method": method})


def job_of(method: str) -> Job:
    return prepare_job(recipe(method), places(), name=("train", "test"), workers=2)


def kept(method: str, step: int = 1) -> StepEntry:
    """What the two workers left for `step`."""
    job = job_of(method)
    cache = StepCache(job.open_cache())
    memories = Memories(job, cache, choose_runtime(job.recipe.compute), Ranks())
    entry = cache.get(memories.key(METHODS[method], step))
    assert entry is not None, "the memory is in the step cache"
    return entry


def base_of(method: str) -> Segmenter:
    """The network that the two workers trained at step 0."""
    job = job_of(method)
    model = job.recipe.model
    segmenter = build_segmenter(
        backbone=model.backbone,
        output_stride=model.output_stride,
        classes_per_step=job.recipe.scenario.classes_per_step()[:1],
        normalisation=job.normalisation,
        width=model.width,
    )
    entry = StepCache(job.open_cache()).get(job.step_key(0, precision="float32"))
    assert entry is not None
    segmenter.load_state_dict(entry.weights)
    return frozen_copy(segmenter)


@pytest.mark.parametrize("method", METHODS)
def test_two_workers_run_all_steps(results: dict[str, RunResult], method: str) -> None:
    steps = results[method].steps
    assert [step["step"] for step in steps] == [0, 1]
    assert [step["iterations"] for step in steps] == [11, 3]
    assert 0 <= results[method].means()["miou_all"] <= 100


def test_methods_with_one_base_train_it_once(results: dict[str, RunResult]) -> None:
    assert [results[m].steps[0]["cached"] for m in METHODS] == [False, True, False]


@pytest.mark.parametrize("method", ["plop+ucd", "sdr"])
def test_a_pass_of_two_workers_is_that_of_one_process(
    results: dict[str, RunResult], tmp_path: Path, method: str
) -> None:
    job = job_of(method)
    cache = StepCache(job.open_cache())
    elsewhere = StepCache(type(cache.store)(tmp_path / "steps"))
    memories = Memories(job, elsewhere, choose_runtime(job.recipe.compute), Ranks())
    alone = memories.enter(1, base_of(method))[METHODS[method]].state()
    of_two = kept(method).weights
    assert of_two.keys() == alone.keys()
    for name, value in alone.items():
        scale = float(value.abs().max())
        assert scale > 0
        torch.testing.assert_close(of_two[name], value, rtol=1e-3, atol=1e-3 * scale)


def test_what_two_workers_watch_at_step_0_belongs_to_every_weight(
    results: dict[str, RunResult],
) -> None:
    found, base = kept("rw").weights, dict(base_of("rw").named_parameters())
    for part in ("fisher", "old_score"):
        values = {n.removeprefix(f"{part}/"): v for n, v in found.items() if n.startswith(part)}
        assert {name: v.shape for name, v in values.items()} == {
            n: p.shape for n, p in base.items()
        }
        assert all(value.isfinite().all() and (value >= 0).all() for value in values.values())
        assert any(value.max() > 0 for value in values.values())
