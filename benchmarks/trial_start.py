"""What a trial costs before its first batch, and the memory of a study, beside a plain run.

    python benchmarks/trial_start.py --trials 3 --workers 2

Runs the same tiny recipe in this process and as trials of a study on a private Ray head, and prints
seconds from "trial created" to the first batch, peak memory of all processes (PSS), and the ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

TINY = {
    "scenario": "shapes-8-4",
    "method": "mib+ucd",
    "model.backbone": "resnet18",
    "model.width": 16,
    "data.crop": 48,
    "data.batch_size": 8,
    "optim.iterations_base": 4,
    "optim.iterations_new": 4,
    "eval.max_images": 8,
}


class PeakMemory:
    """Samples the proportional set size of this process and all below it."""

    def __init__(self) -> None:
        self.peak, self.processes = 0, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.5):
            total, processes = 0, [me, *me.children(recursive=True)]
            for process in processes:
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            if total > self.peak:
                self.peak, self.processes = total, len(processes)


def plain() -> None:
    """One run in this process, printing the seconds until its first batch."""
    started = time.time()
    from ucd_ray import Recipe
    from ucd_ray.checkpoint import Store, TrialStore
    from ucd_ray.train import LocalContext, train_run
    from ucd_ray.tune.places import places
    from ucd_ray.tune.prepare import prepare_job

    job = prepare_job(Recipe.from_flat(TINY), places(), name=("plain", "0"), workers=1)
    seconds: list[float] = []

    def listen(report: dict[str, Any]) -> None:
        if report["kind"] == "start":
            seconds.append(report["time"] - started)

    store = TrialStore(Store(job.store), *job.name)
    train_run(job, LocalContext(listen, store.load, store.save))
    print(seconds[0])


def study(trials: int, workers: int) -> list[float]:
    """Seconds from `trial created` to the first batch of every trial."""
    from ucd_ray.tune import study as study_module
    from ucd_ray.tune.progress import Progress
    from ucd_ray.tune.spec import StudySpec

    created: dict[str, float] = {}
    seconds: list[float] = []

    class Timed(Progress):
        def event(self, kind: str, who: str, report: dict[str, Any]) -> None:
            if kind == "started":
                created[who] = time.time()
            if kind == "start" and who.startswith("trial"):
                seconds.append(report["time"] - created[who])
            super().event(kind, who, report)

    study_module.Progress = Timed  # type: ignore[misc]
    spec = StudySpec.model_validate(
        {
            "name": "bench",
            "recipe": TINY,
            "search": {"kd.weight": {"low": 1, "high": 100}},
            "trials": trials,
            "workers": workers,
            "max_concurrent": 1,
            "pruner": "none",
        }
    )
    study_module.run_study(spec, console=Console(quiet=True))
    return seconds


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        return plain()
    with tempfile.TemporaryDirectory() as home:
        os.environ["UCD_RAY_HOME"] = home
        with PeakMemory() as alone:
            command = [sys.executable, str(Path(__file__)), "--plain"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        with PeakMemory() as all_of_it:
            seconds = study(arguments.trials, arguments.workers)
    plain_s, trial_s = float(done.stdout), statistics.median(seconds)
    table = Table(title=f"{arguments.trials} trials, {arguments.workers} worker(s) each")
    for column in ("", "to first batch, s", "peak PSS, GiB", "processes"):
        table.add_column(column, justify="right")
    for name, first, memory in (
        ("plain run", plain_s, alone),
        ("trial of a study", trial_s, all_of_it),
    ):
        table.add_row(name, f"{first:.1f}", f"{memory.peak / 2**30:.2f}", str(memory.processes))
    table.add_row("ratio", f"{trial_s / plain_s:.1f}", f"{all_of_it.peak / alone.peak:.1f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
