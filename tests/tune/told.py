"""A study whose driver tells made-up events, and curves as TensorBoard reads them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tune.test_bridge import spec_of
from tests.tune.test_results import step
from ucd_ray.tune.curves import Curves
from ucd_ray.tune.events import EventLog
from ucd_ray.tune.progress import Progress

Told = list[tuple[str, str, dict[str, Any]]]


def first_half() -> Told:
    """A base step, and a trial up to the middle of its step 1."""
    base = [("start", {"first_step": 0, "notes": []}), *epochs(0, 1, 3), steps(0, 2)]
    trial = [("started", {"kd.weight": 1.5}), ("start", {"first_step": 1, "notes": []})]
    trial += [steps(0, 2, cached=True, own=False), *epochs(1, 3, 6)]
    return [
        *((kind, "base step", report) for kind, report in base),
        ("done", "base step", {}),
        *((kind, "trial 0", report) for kind, report in trial),
    ]


def second_half() -> Told:
    """The trial goes on where it was interrupted, two epochs before; a run of another one follows."""
    trial = [("start", {"first_step": 1, "notes": []}), steps(0, 2, cached=True, own=True)]
    trial += [*epochs(1, 4, 8), steps(1, 7, cached=False, own=False)]
    run = [("run", {"label": "seed 1"}), ("start", {"first_step": 1, "notes": []})]
    run += [steps(0, 2, cached=True, own=False), *epochs(1, 3, 5)]
    return [
        ("lost", "trial 0", {"nodes": ["10.0.0.1"]}),
        *((kind, "trial 0", report) for kind, report in trial),
        ("finished", "trial 0", {"state": "PRUNED", "code": "PRUNED", "reason": "weak"}),
        *((kind, "trial 1-r1", report) for kind, report in run),
    ]


def epochs(at_step: int, first: int, end: int) -> list[tuple[str, dict[str, Any]]]:
    """Some epochs of a run; the last one before `end`."""
    return [
        (
            "epoch",
            {
                **{"step": at_step, "epoch": number, "epochs": end, "run_epoch": number},
                **{"images_per_s": 1.0, "seconds_left": 0.0, "lr": 0.01 / number},
                "losses": {"ce": 1 / number, "kd": 2e-9 / number},
                "value": 100 / 3 + number if at_step else None,
            },
        )
        for number in range(first, end)
    ]


def steps(number: int, run_epoch: int, **more: Any) -> tuple[str, dict[str, Any]]:
    """The end of a step."""
    return "step", {**step(number, 40 + 1 / 3), "run_epoch": run_epoch, **more}


def tell_all(told: Told, *, log: EventLog | None = None, curves: Curves | None = None) -> None:
    """Drives a study: its events are in the database, or its curves on disk, when this returns."""
    quiet = Console(quiet=True)
    with Progress(spec_of(), quiet, finished=Counter(), log=log, curves=curves) as progress:
        for kind, who, report in told:
            progress.event(kind, who, report)


def read(run: Path) -> EventAccumulator:
    """What TensorBoard makes of the directory of a run."""
    return EventAccumulator(str(run)).Reload()


def curves_below(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Every point of every run below a directory, by run and tag."""
    found = {run.name: read(run) for run in sorted(folder.iterdir())}
    return {
        name: {
            tag: [(point.step, point.value) for point in run.Scalars(tag)]
            for tag in sorted(run.Tags()["scalars"])
        }
        for name, run in found.items()
    }
