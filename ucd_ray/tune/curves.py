"""Curves for TensorBoard: what the events of runs say, an event directory for each run.

The horizontal axis is the number of epochs since the beginning of the run, over all its steps.  After
every epoch: `loss/<term>`, `lr` and `objective`; after every step: `val/<metric>` and `select/<metric>`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ucd_ray.errors import ConfigError

ENDS = ("finished", "measured", "failed", "done")  # of a run
TRIES = ("start", "stopped", "paused", "lost", "smaller")  # another try of a run may follow
FILE = "events.out.tfevents"


class Curves:
    """Writes what events say (see `event_data`) below one directory.

    A run that goes on where it was interrupted, also under another driver, replaces what it repeats.
    Raises ConfigError if TensorBoard is not installed or the directory cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import tensorboard.summary.writer.record_writer  # noqa: F401
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
        self.on_failure: Callable[[str], None] = lambda line: None  # is told what is missing, once
        self._study: str | None = None
        self._failed = self._lacks = False
        self._runs: dict[str, _Run] = {}
        self._begun: set[str] = set()

    def replay(self, study: str) -> None:
        """All events of the study with this id follow, from its first one on.

        What they gave an earlier time is written anew; files of others stay, and are not shown any more.
        """
        self._study = "".join(filter(str.isalnum, study))

    def event(self, kind: str, data: Mapping[str, Any], *, at: float | None = None) -> None:
        """One event; `of` in its data is the run's directory but for spaces.  at: when; None: now"""
        name = str(data.get("of", "")).replace(" ", "-")
        if self._failed or not name or name.startswith(".") or Path(name).name != name:
            return
        try:
            self._write(kind, name, data, time.time() if at is None else at)
        except OSError as error:  # a full disk is no reason to end a study
            self._failed = True
            self.on_failure(f"no more curves for TensorBoard in '{self.folder}': {error.strerror}")

    def _write(self, kind: str, name: str, data: Mapping[str, Any], at: float) -> None:
        if kind in ("epoch", "step"):
            if "run_epoch" not in data:
                return self._lack()
            self._run(name, at).add(kind, data, at)
        elif kind in TRIES and name in self._runs:
            self._runs[name].goes_on = True
        elif kind in ENDS and name in self._runs:
            self._runs.pop(name).close()

    def _run(self, name: str, at: float) -> _Run:
        if name not in self._runs:
            study = None if name in self._begun else self._study
            self._runs[name] = _Run(self.folder / name, study, at)
            self._begun.add(name)
        return self._runs[name]

    def _lack(self) -> None:
        if not self._lacks:
            self._lacks = True
            self.on_failure(
                f"curves for TensorBoard in '{self.folder}' lack what an earlier version of ucd-ray trained"
            )

    def close(self) -> None:
        """Writes what is left."""
        for run in self._runs.values():
            with contextlib.suppress(OSError):  # every event has been written
                run.close()
        self._runs.clear()


class _Run:
    """An event file of a run.

    study: whose events are told from the first one on; None: what is in other files counts
    """

    def __init__(self, folder: Path, study: str | None, at: float) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{FILE}.*.{study}") if study else ():
            old.unlink(missing_ok=True)
        self.goes_on = study is None and any(folder.glob("events.*"))  # an earlier try wrote here
        # TensorBoard reads the files of a directory in the order of their names.
        name = f"{FILE}.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        path = folder / (f"{name}.{study}" if study else name)
        self.writer = RecordWriter(path.open("wb"))
        self._put(at, 0, file_version="brain.Event:2")
        if study is not None:
            self._forget(at, 0)

    def add(self, kind: str, data: Mapping[str, Any], at: float) -> None:
        """The values of an epoch or a step."""
        if kind == "step" and self.goes_on and data.get("own"):
            return  # told again after an interruption
        if kind == "epoch" and self.goes_on:
            self._forget(at, data["run_epoch"])
            self.goes_on = False
        values = _epoch_values(data) if kind == "epoch" else _step_values(data)
        self._scalars(values, at, data["run_epoch"])

    def close(self) -> None:
        self.writer.close()

    def _scalars(self, values: Mapping[str, float | None], at: float, epoch: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in values.items()
            if value is not None
        ]
        self._put(at, epoch, summary=Summary(value=points))

    def _forget(self, at: float, epoch: int) -> None:
        """Lets TensorBoard forget what was written before from `epoch` on."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._put(at, epoch, session_log=SessionLog(status=SessionLog.START))

    def _put(self, at: float, epoch: int, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.write(Event(wall_time=at, step=epoch, **what).SerializeToString())
        self.writer.flush()


def _epoch_values(data: Mapping[str, Any]) -> dict[str, float | None]:
    losses = {f"loss/{term}": value for term, value in data["losses"].items()}
    return {**losses, "lr": data["lr"], "objective": data["value"]}


def _step_values(data: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        f"{images}/{metric}": value
        for images in ("val", "select")
        for metric, value in data[images].items()
    }
