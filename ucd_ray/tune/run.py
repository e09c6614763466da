"""One recipe without a study: in this process, or on the workers of a Ray Train run."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ucd_ray.checkpoint import StepCache, Store, TrialStore
from ucd_ray.errors import ConfigError, UcdRayError
from ucd_ray.job import Job
from ucd_ray.methods import ADDED, METHODS
from ucd_ray.recipe import Recipe, schedule
from ucd_ray.tune.cluster import check_local, connect, private_head_needed
from ucd_ray.tune.curves import Curves
from ucd_ray.tune.event_data import event_data
from ucd_ray.tune.places import below, places
from ucd_ray.tune.prepare import prepare_job
from ucd_ray.tune.progress import epoch_line, pass_line
from ucd_ray.tune.space import default_name
from ucd_ray.tune.spec import StudySpec


@dataclass(frozen=True)
class RunResult:
    """What a run measured: one report per step, with means, per-class IoU and forgetting."""

    recipe: Recipe
    steps: list[dict[str, Any]]

    def means(self, step: int = -1, *, images: str = "val") -> dict[str, float]:
        """The mIoU columns and forgetting after a step, in percent; images: val or select."""
        means: dict[str, float] = self.steps[step][images]["means"]
        return means


def run(
    recipe: Recipe,
    *,
    workers: int = 1,
    address: str | None = None,
    console: Console | None = None,
    tensorboard: Path | None = None,
) -> RunResult:
    """Trains a recipe over all its steps, or goes on with it; finished steps come from the cache.

    workers: 1 trains in this process, more as DDP workers of Ray Train
    address: of a Ray cluster; None: RAY_ADDRESS, else a private head on this machine
    tensorboard: directory for curves; None: no curves
    Raises UcdRayError for what a user can mend.
    """
    console = console or Console(quiet=True)
    check_machine(workers, address)
    job = run_job(recipe, workers=workers, console=console)
    return run_prepared(job, address=address, console=console, tensorboard=tensorboard)


def check_machine(workers: int, address: str | None) -> None:
    """Raises ClusterError if a head on this machine is needed and cannot hold the workers."""
    if workers > 1 and private_head_needed(address):
        check_local(workers, cpus=1.0, gpus=0.0)


def run_job(recipe: Recipe, *, workers: int = 1, console: Console | None = None) -> Job:
    """The checked job of a run.  Raises UcdRayError."""
    name = ("train", _digest(recipe))
    return prepare_job(recipe, places(), name=name, workers=workers, console=console)


def run_prepared(
    job: Job, *, address: str | None, console: Console, tensorboard: Path | None = None
) -> RunResult:
    """Trains a checked job, as `run` says.  Raises UcdRayError."""
    named = f"{default_name(job.recipe.flat())}-{job.name[-1][:6]}"
    with contextlib.closing(_Listener(console, named, tensorboard)) as listener:
        if job.workers == 1:
            _run_here(job, listener)
        else:
            _run_on_ray(job, listener, address)
        return RunResult(job.recipe, listener.steps)


class _Listener:
    """Shows reports and keeps those of finished steps.

    name: of the run, among others in the directory for curves
    """

    def __init__(self, console: Console, name: str, tensorboard: Path | None) -> None:
        self.console, self.name = console, name
        self.steps: list[dict[str, Any]] = []
        self.curves = Curves(tensorboard) if tensorboard else None
        if self.curves is not None:
            self.curves.on_failure = self.say

    def close(self) -> None:
        if self.curves is not None:
            self.curves.close()

    def __call__(self, report: dict[str, Any]) -> None:
        kind = report["kind"]
        if self.curves is not None:
            self.curves.event(kind, event_data(kind, self.name, report))
        if kind == "start":
            for note in report["notes"]:
                self.say(note)
        elif kind == "epoch":
            self.say(epoch_line(report))
        elif kind == "waiting":
            self.say(report["reason"])
        elif kind == "worker" and report["level"] == "warning":
            self.say(f"worker {report['rank']} on {report['node']}: {report['text']}")
        elif kind == "pass":
            self.say(pass_line(report))
        elif kind == "step":
            self.steps.append(report)
            where = "from the step cache" if report["cached"] else f"{report['seconds']:.1f} s"
            means = report["val"]["means"]
            self.say(f"step {report['step']} done ({where}): val mIoU {means['miou_all']:.1f}")

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)


def _run_here(job: Job, listener: _Listener) -> None:
    from ucd_ray.train import LocalContext, train_run

    checkpoint = TrialStore(Store(job.store), *job.name)
    train_run(job, LocalContext(listener, checkpoint.load, checkpoint.save))
    checkpoint.clear()


def _run_on_ray(job: Job, listener: _Listener, address: str | None) -> None:
    where = places()
    listener.say("waiting for Ray to start ...")
    with connect(address, where.home, job=job.name[-1]) as cluster:
        from ucd_ray.tune.executors import Executor
        from ucd_ray.tune.single import quiet_ray, run_single

        listener.say(f"Ray dashboard: {cluster.dashboard}")
        spec = StudySpec(name="train", recipe=job.recipe.flat(), workers=job.workers)
        gang = cluster.gang(spec)
        gang.check(job.recipe)
        with quiet_ray(), Executor(gang, below(where.runs, ".ray"), "train", 1) as executor:
            executor.add_gang("gang")
            failure = run_single(executor, "run", job, lambda _kind, report: listener(report))
    if failure is not None:
        raise UcdRayError(f"the run failed: {failure}")


def _digest(recipe: Recipe) -> str:
    return hashlib.sha256(json.dumps(recipe.flat(), sort_keys=True).encode()).hexdigest()[:12]


def plan_table(job: Job) -> Table:
    """What a run would do: images, updates and epochs of every step, and memory of a worker."""
    recipe, workers = job.recipe, job.workers
    from ucd_ray.memory import training_bytes
    from ucd_ray.runtime import choose_runtime

    runtime = choose_runtime(recipe.compute)
    low = runtime.autocast is not None
    gib = training_bytes(recipe, workers=workers, low_precision=low) / 2**30
    table = Table(
        title=f"{recipe.scenario.name} {recipe.setting} {recipe.method}",
        caption="\n".join(
            (
                f"{workers} worker(s), batch {recipe.data.batch_size}, about {gib:.1f} GiB each "
                f"({runtime.reason})",
                base_line(job, precision=runtime.precision),
                *memory_lines(recipe),
            )
        ),
    )
    for column in ("step", "new classes", "images", "hold-out", "val", "iterations", "epochs"):
        table.add_column(column, justify="right")
    names = job.prepared.classes
    for step, images in enumerate(job.plan):
        classes = recipe.steps.steps[step]
        few = ", ".join(names[c] for c in classes) if len(classes) <= 5 else str(len(classes))
        plan = schedule(recipe, step, len(images.train))
        counts = (len(images.train), len(images.holdout), len(images.val))
        numbers = (*counts, plan.iterations, plan.epochs)
        table.add_row(str(step), few, *map(str, numbers))
    return table


def base_line(job: Job, *, precision: str) -> str:
    """Which methods have the same step 0 as this job, and whether it is in the step cache."""
    recipe = job.recipe
    cached = StepCache(job.open_cache()).has(job.step_key(0, precision=precision))
    where = f"{'in' if cached else 'not yet in'} the step cache"
    if job.base_network is not None:
        return f"base step: imported from {job.base_network}; {where}"
    mine = (recipe.acting_until(0), recipe.steps.steps[0])
    others = []
    for method in METHODS:
        try:
            other = recipe.with_overrides({"method": method})
        except ConfigError:  # what is set suits this method alone
            continue
        if method != recipe.method and (other.acting_until(0), other.steps.steps[0]) == mine:
            others.append(method)
    alone = [name for name in others if ADDED not in name]
    shared = f"shared with {', '.join(alone)}, most also {ADDED}" if alone else "of its own"
    if others and not alone:
        shared = f"shared with {', '.join(others)}"
    return f"base step: {shared}; {where}"


def memory_lines(recipe: Recipe) -> list[str]:
    """What the method keeps from step to step, and when it is made."""
    if len(recipe.steps.steps) == 1:
        return []
    return [
        f"keeps {name}: "
        + ("during training, from step 0 on" if memory.watches else "a pass before each later step")
        for name, memory in recipe.memories().items()
    ]


def result_table(result: RunResult) -> Table:
    """mIoU old, new, all and forgetting after every step, on val."""
    recipe = result.recipe
    table = Table(
        title=f"{recipe.scenario.name} {recipe.setting} {recipe.method}",
        caption="mIoU in percent on val, without background",
    )
    for column in ("step", "old", "new", "all", "base", "added", "forgetting", "seconds"):
        table.add_column(column, justify="right")
    for report in result.steps:
        means = report["val"]["means"]
        groups = (means[f"miou_{group}"] for group in ("old", "new", "all", "base", "added"))
        cells = [
            f"{value:.1f}" if value == value else "" for value in (*groups, means["forgetting"])
        ]
        seconds = "cached" if report["cached"] else f"{report['seconds']:.0f}"
        table.add_row(str(report["step"]), *cells, seconds)
    return table
