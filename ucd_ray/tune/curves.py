"""Curves for TensorBoard: what a driver hears of its runs, an event directory for each of them.

The horizontal axis is the number of epochs since the beginning of the run, over all its steps.  After
every epoch: `loss/<term>`, `lr` and `objective`; after every step: `val/<metric>` and `select/<metric>`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ucd_ray.errors import ConfigError

FLUSH_S = 5  # between writes to disk
ENDS = ("finished", "failed", "done", "stopped", "paused", "lost", "smaller")  # of a try of a run


class Curves:
    """Writes the events of several runs below one directory.

    A run that goes on where it was interrupted, also under another driver, replaces what it repeats.
    Raises ConfigError if TensorBoard is not installed or the directory cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import tensorboard.summary.writer.event_file_writer  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"--tensorboard '{folder}' needs TensorBoard: `pip install 'ucd-ray[tensorboard]'`, or "
                "leave it out"
            ) from None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"cannot write --tensorboard '{folder}': {error.strerror}") from None
        self.folder = folder
        self.on_failure: Callable[[str], None] = lambda line: None  # is told once
        self._failed = False
        self._runs: dict[str, _Run] = {}

    def event(self, kind: str, who: str, report: Mapping[str, Any]) -> None:
        """One event of a run; `who` is its directory's name but for spaces."""
        if self._failed:
            return
        try:
            self._write(kind, who.replace(" ", "-"), report)
        except OSError as error:  # a full disk is no reason to end a study
            self._failed = True
            self.on_failure(f"no more curves for TensorBoard in '{self.folder}': {error.strerror}")

    def _write(self, kind: str, name: str, report: Mapping[str, Any]) -> None:
        if kind in ("epoch", "step"):
            run = self._runs.get(name) or _Run(self.folder / name)
            self._runs[name] = run
            run.add(kind, report)
        elif kind in ENDS and name in self._runs:
            self._runs.pop(name).close()

    def close(self) -> None:
        """Writes what is left."""
        for name in list(self._runs):
            self.event("done", name, {})


class _Run:
    """The event file of one try of a run."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.goes_on = any(folder.glob("events.*"))  # an earlier try wrote here
        self.writer = EventFileWriter(str(folder), flush_secs=FLUSH_S)

    def add(self, kind: str, report: Mapping[str, Any]) -> None:
        """The values of an epoch or a step."""
        if kind == "step" and self.goes_on and report.get("own"):
            return  # told again after an interruption
        if kind == "epoch" and self.goes_on:
            self._replace(report["run_epoch"])
            self.goes_on = False
        values = _epoch_values(report) if kind == "epoch" else _step_values(report)
        self._scalars(values, report["run_epoch"])

    def close(self) -> None:
        self.writer.close()

    def _scalars(self, values: Mapping[str, float | None], epoch: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in values.items()
            if value is not None and value == value
        ]
        event = Event(wall_time=time.time(), step=epoch, summary=Summary(value=points))
        self.writer.add_event(event)

    def _replace(self, epoch: int) -> None:
        """Lets TensorBoard forget what earlier files have from `epoch` on."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        self.writer.add_event(Event(wall_time=time.time(), step=epoch, session_log=start))


def _epoch_values(report: Mapping[str, Any]) -> dict[str, float | None]:
    losses = {f"loss/{term}": value for term, value in report["losses"].items()}
    return {**losses, "lr": report["lr"], "objective": report["value"]}


def _step_values(report: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        f"{images}/{metric}": value
        for images in ("val", "select")
        for metric, value in report[images]["means"].items()
    }
