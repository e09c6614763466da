"""The training of a study beside T0 + N T1, in CPU seconds of the processes that train.

Wall seconds lie on a machine that others use.  CPU seconds are what training costs, whoever else waits
for the CPU; yet they grow a little when both of a core's threads are busy, so that plain runs are made
between the trials of the study, whose driver waits for them, and not before or after it.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from dataclasses import replace
from typing import Any

import psutil
from rich.console import Console

from benchmarks.engine.memory import WORKER
from benchmarks.engine.setting import TINY, console, head, spec

RECIPE = {**TINY, "optim.epochs_base": 8, "optim.iterations_base": None, "optim.epochs_new": 16}
PLAIN_EVERY = 4  # trials


def plain_runs(requests: Any, job: Any) -> None:
    """A process that trains a recipe as `ucd-ray train` does, and tells the CPU seconds of each step."""
    import torch

    from ucd_ray.checkpoint import Store, TrialStore
    from ucd_ray.train import LocalContext, train_run

    torch.set_num_threads(1)  # as in a Ray worker with one CPU
    while (number := requests.recv()) is not None:
        recipe = job.recipe.with_overrides({"kd.weight": 1.0 + number})
        one = replace(job, recipe=recipe, name=("plain", str(number)))
        spent: list[float] = []
        last = time.process_time()

        def report(found: dict[str, Any], spent: list[float] = spent) -> None:
            nonlocal last
            if found["kind"] == "step":
                spent.append(time.process_time() - last)
                last = time.process_time()

        checkpoint = TrialStore(Store(job.store), *one.name)
        train_run(one, LocalContext(report, checkpoint.load, checkpoint.save))
        requests.send(spent)


def gang_cpu() -> float:
    """CPU seconds that the workers below this process have used."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        if " ".join(process.cmdline()).startswith(WORKER):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def show_work(trials: int) -> None:
    """Prints what a study's training cost, and what T0 + N T1 would have cost."""
    from ucd_ray import run_study
    from ucd_ray.tune import study as study_module
    from ucd_ray.tune.database import Database
    from ucd_ray.tune.ledger import totals
    from ucd_ray.tune.places import places
    from ucd_ray.tune.prepare import prepare_job
    from ucd_ray.tune.progress import Progress

    marks: list[
        float
    ] = []  # CPU seconds of the gang when its first run starts, and when each has ended
    plain: list[list[float]] = []

    class Marked(Progress):
        def event(self, kind: str, who: str, report: dict[str, Any]) -> None:
            super().event(kind, who, report)
            if kind == "start" and not marks:
                marks.append(gang_cpu())
            if kind == "finished":
                marks.append(gang_cpu())
                if len(marks) % PLAIN_EVERY == 2:
                    ask.send(len(marks))
                    plain.append(ask.recv())

    with head() as (address, _):
        os.environ["UCD_RAY_HOME"] += "/plain"  # the same work in a step cache of its own
        recipe = spec("plain", 1, 1, RECIPE).base_recipe()
        job = prepare_job(recipe, places(), name=("plain", "0"), workers=1)
        os.environ["UCD_RAY_HOME"] = os.environ["UCD_RAY_HOME"].removesuffix("/plain")
        ask, answer = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=plain_runs, args=(answer, job)
        )
        process.start()
        ask.send(0)
        t0, first = ask.recv()
        study_module.Progress = Marked  # type: ignore[misc]
        run_study(spec("study", trials, 1, RECIPE), address=address, console=Console(quiet=True))
        ask.send(None)
        process.join()
        spent = totals(Database(places().database), "study")
    _, t1s = zip(*plain, strict=True)
    t1 = statistics.median(t1s)
    ideal, useful = t0 + trials * t1, marks[-1] - marks[0]
    say = console.print
    say(
        f"plain runs, CPU s: T0 {t0:.1f}; T1 {t1:.2f} ({min(t1s):.2f}-{max(t1s):.2f}, first {first:.2f})"
    )
    say(f"{trials} trials, CPU s of the gang: {useful:.1f}; T0 + N T1 = {ideal:.1f}; ", end="")
    say(f"ratio {useful / ideal:.3f} (at most 1.05)")
    say(f"without the step cache N (T0 + T1) = {trials * (t0 + t1):.1f}; ", end="")
    say(f"the ledger's useful wall seconds: {spent['useful'].cpu:.1f}")
