"""The open runs of an Optuna study: what they report, whether they go on, how they ended.

A run is a row of the study.  Everything that is known about it is in the database as soon as it is
reported, so a run that a dead driver left open goes on under another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import TrialState

from ucd_ray.errors import StudyError
from ucd_ray.tune.board import STORAGE
from ucd_ray.tune.database import Database
from ucd_ray.tune.executors import MICRO_BATCH
from ucd_ray.tune.goals import measured_with
from ucd_ray.tune.objectives import RESULTS, Curves
from ucd_ray.tune.pruners import PRUNED_CODES, why_code, why_pruned
from ucd_ray.tune.reasons import PAUSED, STEP, Reason, code_of
from ucd_ray.tune.retention import ENTRIES
from ucd_ray.tune.spec import StudySpec

OnEvent = Callable[[str, int, dict[str, Any]], None]


class RunBook:
    """Reads and writes the open rows of one Optuna study."""

    def __init__(
        self,
        spec: StudySpec,
        database: Database,
        study: optuna.Study,
        on_event: OnEvent = lambda *_: None,
    ) -> None:
        self.spec, self.database, self.study, self.on_event = spec, database, study, on_event
        self.goals = spec.goals
        self.curves = Curves(study, spec.goals, spec.pruner)
        trials = study.get_trials(deepcopy=False)
        self.adopted = [t.number for t in trials if t.state == TrialState.RUNNING]
        self.open: dict[int, optuna.Trial] = {}
        self.measured: dict[int, dict[str, float]] = {}  # metrics after the steps reported so far
        self.results: dict[int, dict[str, float]] = {}  # metrics after the last step
        self.reasons: dict[int, tuple[str, str]] = {}  # why a trial failed or was pruned

    def has_ended(self, number: int) -> bool:
        """Whether an open trial has told its value, or why it has none."""
        return number in self.results or number in self.reasons

    def report(self, number: int, report: dict[str, Any]) -> bool:
        """Stores one report of a trial.  Returns whether the trial shall stop here."""
        trial, kind = self.open[number], report["kind"]
        if kind == "waiting":  # its workers wait for a step that others train
            self.say_waiting(number, Reason(STEP, report["reason"]))
            return False
        if kind == "worker":  # one line of one worker; it changes nothing
            self.on_event(kind, number, report)
            return False
        self.say_waiting(number, None)
        stop = False
        if kind == "epoch" and report["value"] is not None and report["value"] == report["value"]:
            rung = report["rung"]
            stop = self.curves.report(trial, rung, report["value"], report.get("drop"))
            if stop:
                self.reasons[number] = (
                    why_code(self.spec.pruner),
                    why_pruned(self.spec.pruner, rung),
                )
        elif kind == "step":
            # Its own from before it was interrupted, or another trial's: the ledger wants to know.
            report = {**report, "own": trial.user_attrs.get("last_step", -1) >= report["step"]}
            self.add_step(number, report)
            if not report["cached"] and report["step"] > 0:
                self.add_entries(number, report["entries"])
            trial.set_user_attr("last_step", report["step"])
            measured = self.measured.get(number, {}) if report["step"] else {}
            self.measured[number] = measured_with(measured, report)  # an edit may ask for any of it
        elif kind == "start":
            if (micro := report.get("micro_batch_new")) != trial.user_attrs.get(MICRO_BATCH):
                trial.set_user_attr(MICRO_BATCH, micro)
        elif kind == "done":
            measured = self.measured.get(number, {})
            self.results[number] = {**measured, self.goals.scalar: report["value"]}
        elif kind == "failed" and report["code"] == STORAGE:  # the next driver adopts the trial
            raise StudyError(f"{self.who(number)} cannot go on: {report['reason']}")
        elif kind == "failed":
            self.reasons[number] = (report["code"], report["reason"])
            if "traceback" in report:
                trial.set_user_attr("traceback", report["traceback"])
        elif kind == "smaller":
            trial.set_user_attr("memory", report["reason"])
        elif kind == "lost":
            trial.set_user_attr("lost", [*trial.user_attrs.get("lost", []), report["nodes"]])
        self.on_event(kind, number, report)
        return stop

    def open_number(self, key: str) -> int | None:
        """The number of an open trial by its key on the board."""
        return int(key) if key.isdigit() and int(key) in self.open else None

    def say_waiting(self, number: int, reason: str | None) -> None:
        """Stores why a trial waits for its gang; None: it waits no longer."""
        trial = self.open[number]
        if trial.user_attrs.get("waiting") != reason:
            trial.set_user_attr("waiting", None if reason is None else str(reason))
            trial.set_user_attr("waiting_code", code_of(reason))
            self.on_event("waiting", number, {"kind": "waiting", "reason": reason})

    def fail(self, number: int, code: str, reason: str) -> None:
        """Ends a trial that cannot be trained."""
        self.reasons[number] = (code, reason)
        self.close(number)

    def give_back(self, number: int) -> None:
        """A trial stops where its checkpoint is and will be handed out again, with its number."""
        trial = self.open.pop(number)
        trial.set_user_attr("waiting", "it stopped at its checkpoint and goes on later")
        trial.set_user_attr("waiting_code", PAUSED)
        self._add_seconds(trial)
        self.adopted.append(number)
        self.on_event("paused", number, {"kind": "paused"})

    def close(self, number: int, *, lost: bool = False) -> None:
        """Tells Optuna how a trial ended.

        lost: its process ended without telling why
        """
        trial = self.open.pop(number)
        results = self.results.get(number, {})
        code, reason = self.reasons.get(number, (None, None))
        if code is None and lost:
            code, reason = "LOST_DRIVER", "the process that drove the trial ended"
        if code is None and (missing := self.goals.missing(results)) is not None:
            code, reason = "NO_VALUE", f"{missing} has no class with truth pixels"
        state = TrialState.COMPLETE if code is None else TrialState.FAIL
        state = TrialState.PRUNED if code in PRUNED_CODES else state
        self._add_seconds(trial)
        if code is not None:
            trial.set_user_attr("code", code)
            trial.set_user_attr("reason", reason)
        values = self._keep_results(trial, results) if state == TrialState.COMPLETE else None
        trial.study.tell(trial, values, state=state)
        self.curves.end(trial, state, results.get(self.goals.scalar))
        shown = {"state": state.name, "value": results.get(self.goals.objectives[0])}
        broken = self.goals.broken(results) if values else []
        shown |= {"values": values, "broken": broken, "reason": reason, "code": code}
        self.on_event("finished", number, shown)

    def _keep_results(self, trial: optuna.Trial, results: dict[str, float]) -> list[float]:
        """Stores what decides about a complete trial.  Returns the values of its objectives."""
        if not self.goals.plain or self.goals.limits:
            trial.set_user_attr(RESULTS, {name: results[name] for name in self.goals.metrics})
        for limit in self.goals.limits:
            trial.set_constraint(limit.text, self.goals.excess(limit, results))
        return [results[name] for name in self.goals.objectives]

    def add_step(self, number: int, report: dict[str, Any]) -> None:
        """Stores what was measured after a step."""
        self.database.add_step(self.spec.name, number, report)

    def add_entries(self, number: int, digests: list[str]) -> None:
        """Stores which entries of the step cache a trial has made."""
        trial = self.open[number]
        trial.set_user_attr(ENTRIES, sorted({*trial.user_attrs.get(ENTRIES, ()), *digests}))

    def who(self, number: int) -> str:
        """What messages call it."""
        return f"trial {number}"

    def _add_seconds(self, trial: optuna.Trial) -> None:
        started = trial.user_attrs.get("started", time.time())
        seconds = trial.user_attrs.get("seconds", 0.0) + time.time() - started
        trial.set_user_attr("seconds", seconds)
