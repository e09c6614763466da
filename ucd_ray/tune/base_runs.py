"""The base steps that the trials of a study share: one, or one per replicate.

Each is trained once, before the trials, on a gang of the study; several at the same time where there is
room.  What another study has trained, or is training, is not trained again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from ucd_ray.checkpoint import StepCache, Store
from ucd_ray.errors import StudyError
from ucd_ray.job import Job
from ucd_ray.tune.board import ENDS, GO
from ucd_ray.tune.dispatch import Dispatcher
from ucd_ray.tune.executors import Gang
from ucd_ray.tune.ledger import OPEN, STUDY
from ucd_ray.tune.progress import Progress

POLL_S = 0.5  # between looks at what a base step waits for


def base_key(job: Job, gang: Gang) -> dict[str, Any]:
    """The key of the base step of a job."""
    return job.step_key(0, precision=job.guessed_precision(gpus=gang.gpus > 0))


def base_name(job: Job) -> str:
    """The name under which a study's driver is seen in the step cache: that of its base run."""
    return "/".join(job.base().name)


@dataclass
class Bases:
    """Trains the base steps of `jobs`, the study's or those of its replicates."""

    jobs: list[Job]
    dispatcher: Dispatcher
    progress: Progress
    left: dict[str, Job] = field(default_factory=dict)  # not known to be stored, by key
    running: dict[str, int] = field(default_factory=dict)  # reports that were heard, by key

    def __post_init__(self) -> None:
        for number, job in enumerate(self.jobs):
            base = job.base()
            key = base.name[-1] if len(self.jobs) == 1 else f"{base.name[-1]}-r{number}"
            self.left[key] = replace(base, name=(*base.name[:-1], key))
        self.keys = list(self.left)
        self.cache = StepCache(Store(self.jobs[0].cache), base_name(self.jobs[0]))

    def train(self) -> bool:
        """Returns whether all are stored; the study may be ended before.  Raises StudyError."""
        while self.left:
            self.dispatcher.tick()
            if self.dispatcher.ends and not self.running:
                return False
            waits = [self._start(key) for key in list(self.left) if key not in self.running]
            reason = next(filter(None, waits), None)
            if self.running:
                late = next(iter(self.dispatcher.waiting_reasons().values()), None)
                waits_for = "trials wait for the base step"
                self.progress.wait_for(f"the base step waits: {late}" if late else waits_for)
                self._listen()
            elif reason is not None:
                self.progress.wait_for(f"the base step waits: {reason}")
                time.sleep(POLL_S)
        self.progress.wait_for("")
        return True

    def _start(self, key: str) -> str | None:
        """Starts one, unless it is stored.  Returns why it cannot be started now."""
        base = self.left[key]
        step = base_key(base, self.dispatcher.executor.gang)
        if self.cache.has(step):
            del self.left[key]
            return None
        if self.dispatcher.mode != "run":
            return self.dispatcher.why
        if (holder := self.cache.holder(step)) is not None:
            return f"it is being trained by {holder}"
        reason = self.dispatcher.place(key, [base])
        if reason is None:
            self.running[key] = 0
            self.progress.event("started", self._who(key), {})
        return reason

    def _listen(self) -> None:
        """Hears what the running ones report; waits for it, but not longer than a tick."""
        executor = self.dispatcher.executor
        for key in list(self.running):
            for report in executor.take(key, self.running[key], POLL_S / len(self.running)):
                executor.answer(key, self.running[key], GO)
                self.running[key] += 1
                self._hear(key, report)

    def _hear(self, key: str, report: dict[str, Any]) -> None:
        ledger, kind = self.dispatcher.ledger, report["kind"]
        self.progress.event(kind, self._who(key), report)
        ledger.spend(STUDY, OPEN, report["held_s"], replicate=self.keys.index(key))
        if kind not in ENDS:
            return
        del self.running[key]
        self.dispatcher.ended(key)
        self.progress.running.pop(self._who(key), None)
        if kind == "failed":
            ledger.end(STUDY, "failed")
            raise StudyError(f"the {self._who(key)} failed: {report['reason']}")
        if kind == "done":
            del self.left[key]
        if not self.running:  # the ledger has one account for all
            ledger.end(STUDY, "useful")

    def _who(self, key: str) -> str:
        """What it is called in the log."""
        return f"base step{key.removeprefix('base').replace('-', ' ')}"
