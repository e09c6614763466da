"""When a trial gets a gang, when it must give it back, and why it waits.

The dispatcher stands between the book of trials and the gangs.  Tune's loop ticks it; on a tick it carries
out commands, follows the budgets, lets idle gangs go and says what waits for what.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ucd_ray.job import Job
from ucd_ray.tune import commands
from ucd_ray.tune.admission import Admission
from ucd_ray.tune.bases import BaseSteps
from ucd_ray.tune.board import GO, PAUSE, STOP
from ucd_ray.tune.executors import Executor
from ucd_ray.tune.keys import trial_of
from ucd_ray.tune.ledger import WRITE_EVERY_S, Ledger
from ucd_ray.tune.nodes import Node
from ucd_ray.tune.reasons import BUSY, PAUSED, STARTING, Reason

TICK_S = 0.5  # between looks at commands, gangs and budgets
IDLE_S = 30.0  # before a gang without a trial is let go
TURN_S = 60.0  # that a gang is kept at least while another study waits
STUCK_S = 20.0  # after which workers that do not come up are a reason to wait


class Budget(Protocol):
    """What ends a study before it has all its trials."""

    def exhausted(self) -> str | None:
        """Why no more trials shall start, None if they may."""

    def look(self) -> str | None:
        """The same, at once."""


class StudyStopped(Exception):  # noqa: N818
    """A command ended the study at once."""


@dataclass
class Dispatcher:
    """Places the trials of one study on gangs."""

    job: Job  # of the study; number and params make it a trial's
    executor: Executor
    admission: Admission
    ledger: Ledger
    budget: Budget
    nodes: Callable[[], Sequence[Node]]
    capacity: Callable[[], int]
    oom_retries: int = 0
    on_note: Callable[[str], None] = lambda text: None
    on_cancel: Callable[[int], bool] = lambda number: False  # of a trial that no gang has
    handlers: dict[str, Callable[[commands.Command], str]] = field(default_factory=dict)
    mode: str = "run"  # run, paused, drain, checkpoint
    why: str = ""  # of a mode that is not run
    placed: dict[str, str] = field(default_factory=dict)  # trial key -> answer that it is due
    cancelled: set[str] = field(default_factory=set)  # keys of trials that a user stopped
    since: dict[str, float] = field(default_factory=dict)  # when a gang was started
    gangs: dict[str, Any] = field(default_factory=dict)  # as the board last said
    queued: list[str] = field(default_factory=list)
    max_gangs: int = 1
    bases: BaseSteps | None = None  # None: all trials have the one that is trained before them
    fatal: Exception | None = None
    _no_room: str | None = None  # for a gang that a queued trial needs
    _used_up: bool = False  # a budget, so that running trials are finished alone
    _counter: int = 0
    _last_tick: float = 0.0
    _idle: float = 0.0
    _wall: float = 0.0
    _written: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.max_gangs = self.capacity()

    @property
    def ends(self) -> bool:
        """Whether no further trial will be started."""
        return self.mode in ("drain", "checkpoint")

    def may_ask(self) -> bool:
        """Whether a new trial may be asked for now."""
        return self.mode == "run" and self.has_room()

    def has_room(self) -> bool:
        """Whether a gang could have one more run."""
        return len(self.placed) < self.max_gangs

    def place(self, key: str, jobs: Sequence[Job]) -> str | None:
        """Gives a trial to a gang.  Returns None, or why it must wait.

        jobs: the trial's, and what it becomes each time memory runs out
        """
        halted = self.mode in ("paused", "checkpoint")
        reason: str | None = Reason(PAUSED, self.why) if halted else None
        if reason is None and self.bases is not None:
            reason = self.bases.waits(key, jobs[0])
        if reason is None:
            reason = self._gang_for_one_more()
        if reason is None:
            self.placed[key] = GO
            if self.bases is not None:
                self.bases.place(key)
            self.executor.put(key, jobs[0], tuple(jobs[1:]))
        return reason

    def _gang_for_one_more(self) -> str | None:
        waiting = len(set(self.placed) - self._on_gangs())
        return None if self._free_gangs() > waiting else self.acquire()

    def _free_gangs(self) -> int:
        """How many gangs have no trial, or are just starting."""
        return sum(
            1
            for name, gang in self.gangs.items()
            if not gang["trial"] and not gang["closing"] and name in self.admission.slots
        )

    def acquire(self) -> str | None:
        """Starts one more gang.  Returns None, or why there is no room for it now."""
        if len(self.admission.slots) >= self.max_gangs:
            return Reason(BUSY, f"all {self.max_gangs} gang(s) of the study are at work")
        slot = f"gang{self._counter}"
        reason = self.admission.acquire(slot, self.nodes())
        if reason is None:
            self._counter += 1
            self.since[slot] = time.monotonic()
            self.executor.add_gang(slot)
            self.gangs[slot] = {"trial": None, "up": False, "closing": False, "idle_s": 0.0}
        return reason

    def _on_gangs(self) -> set[str]:
        return {gang["trial"] for gang in self.gangs.values() if gang["trial"]}

    def answer(self, key: str, place: int, *, stop: bool) -> None:
        """Passes the verdict on a report on."""
        due = self.placed.get(key, GO)
        self.executor.answer(key, place, STOP if stop else due)

    def ended(self, key: str) -> bool:
        """A trial has ended.  Returns whether it was only paused, so that it goes on later."""
        self.executor.forget(key)
        if self.bases is not None:
            self.bases.ended(key)
        for gang in self.gangs.values():
            if gang["trial"] == key:  # the next one need not wait for a tick
                gang["trial"], gang["idle_s"] = None, 0.0
                gang["closing"] |= self.executor.trials_per_run == 1
        return self.placed.pop(key, GO) == PAUSE

    @contextlib.contextmanager
    def fatal_errors(self) -> Iterator[None]:
        """Errors in the block end the study: Tune alone would take them for a trial's and go on."""
        try:
            yield
        except Exception as error:
            self.fatal = error
            raise

    def tick(self) -> None:
        """Once in TICK_S: commands, budgets, gangs.  Raises StudyStopped, StudyError, ClusterError."""
        if self.fatal is not None:
            raise self.fatal
        now = time.monotonic()
        if now - self._last_tick < TICK_S:
            return
        seconds = now - self._last_tick if self._last_tick else 0.0
        self._last_tick = now
        self._carry_out_commands()
        self._follow_gangs()
        self._write_ledger(seconds)
        reason = self.budget.exhausted() if self.mode == "run" else None
        if reason is not None:
            self._used_up = True
            self.set_mode("drain", reason)

    def reconsider(self) -> None:
        """After an edit: how many trials at a time, and whether a budget that was used up has grown."""
        self.max_gangs = self.capacity()
        if self.mode == "drain" and self._used_up and self.budget.look() is None:
            self._used_up = False
            self.set_mode("run", "goes on: its budget has grown")

    def set_mode(self, mode: str, why: str) -> None:
        """Changes what the study does from now on; pausing and checkpoint reach open trials."""
        if mode == self.mode:
            return
        self.mode, self.why = mode, why
        self.on_note(why)
        if mode in ("paused", "checkpoint"):
            self.admission.stop_waiting()
            for key in self.placed:
                self.placed[key] = PAUSE
                self.executor.wish(key, PAUSE)

    def cancel(self, number: int) -> bool:
        """Stops the runs of an open trial.  Returns whether gangs have any."""
        keys = [key for key in self.placed if trial_of(key) == number]
        for key in keys:
            self.cancelled.add(key)
            self.stop(key)
        return bool(keys)

    def stop(self, key: str) -> None:
        """Stops a run at its next report, if a gang has it."""
        if key in self.placed:
            self.placed[key] = STOP
            self.executor.wish(key, STOP)

    def _carry_out_commands(self) -> None:
        database, study = self.admission.database, self.admission.study
        for command in commands.pending(database, study):
            outcome = self._carry_out(command)
            commands.finish(database, command.id, outcome)
            if outcome == "killed":
                raise StudyStopped("stopped by command; its open trials are cancelled")

    def _carry_out(self, command: commands.Command) -> str:
        if command.kind == commands.PAUSE:
            if self.ends:
                return f"the study ends: {self.why}"
            self.set_mode("paused", "paused; running trials stop at their next checkpoint")
            return "paused"
        if command.kind == commands.RESUME:
            if self.mode == "paused":
                self.set_mode("run", "goes on")
            return "goes on"
        if command.kind == commands.CANCEL:
            number = int(command.body["number"])
            if self.cancel(number):
                return "stopping"
            return "cancelled" if self.on_cancel(number) else f"trial {number} is not running"
        if command.kind in self.handlers:
            return self.handlers[command.kind](command)
        how = command.body.get("how", "checkpoint")
        if how == "kill":
            return "killed"
        words = {
            "drain": "stopping; running trials are finished first",
            "checkpoint": "stopping; running trials go on from their next checkpoint later",
        }
        self.set_mode(how, words[how])
        return "stopping"

    def _follow_gangs(self) -> None:
        status = self.executor.status()
        self.queued = status["queued"]
        self.gangs = {n: g for n, g in status["gangs"].items() if n in self.admission.slots}
        hosted = set(self.executor.hosts)
        for slot in [s for s in self.admission.slots if s not in hosted]:
            self.admission.release(slot)
            self.gangs.pop(slot, None)
        for name, gang in self.gangs.items():
            if gang["up"] and name in self.since:
                del self.since[name]
                self.admission.placed(name)
        self._retire_idle()
        if self.mode == "run":
            self._yield_to_others()
        self._cover_queue()

    def _cover_queue(self) -> None:
        """Starts gangs for placed trials whose own has ended before it took them."""
        self._no_room = None
        while self._no_room is None and len(self.queued) > self._free_gangs():
            self._no_room = self.acquire()

    def _retire_idle(self) -> None:
        idle = [n for n, g in self.gangs.items() if g["up"] and not g["trial"] and not g["closing"]]
        wanted = self.mode == "run" and bool(self.queued)
        spare = [] if wanted else idle
        limit = IDLE_S if self.mode == "run" else 0.0
        for name in spare:
            if self.gangs[name]["idle_s"] >= limit:
                self.executor.retire(name)
                self.gangs[name]["closing"] = True

    def _yield_to_others(self) -> None:
        """Lets a gang go, after its trial, for a study that has none; one at a time, each in its turn."""
        if any(gang["closing"] for gang in self.gangs.values()):
            return
        long = [name for name, gang in self.gangs.items() if gang.get("up_s", 0.0) >= TURN_S]
        if long and self.admission.others_wait():
            self.executor.retire(long[0])
            self.gangs[long[0]]["closing"] = True

    def waiting_reasons(self) -> dict[str, str]:
        """Placed trials whose gang is not up yet, with the reason once it takes long, or has no room."""
        reasons: dict[str, str] = {}
        if self._no_room is not None:
            reasons[self.queued[-1]] = self._no_room
        for slot, started in self.since.items():
            if time.monotonic() - started > STUCK_S and self.queued:
                trouble = self.executor.trouble(slot)
                why = (
                    f"the last try failed: {trouble}"
                    if trouble
                    else "somebody else may have taken their place on the cluster"
                )
                count = self.executor.gang.workers
                told = f"its {count} worker(s) have not started for {STUCK_S:.0f} s ({slot}); {why}"
                reasons[self.queued[0]] = Reason(STARTING, told)
        return reasons

    def _write_ledger(self, seconds: float) -> None:
        busy = len(self._on_gangs())
        self._idle += seconds * max(0, len(self.admission.slots) - busy)
        self._wall += seconds
        if time.monotonic() - self._written >= WRITE_EVERY_S:
            self.flush()
            self.max_gangs = self.capacity()  # nodes come and go

    def close(self) -> None:
        """Writes what is left and gives all holds back."""
        self.flush()
        self.admission.release_all()

    def flush(self) -> None:
        """Writes what the ledger has not yet got."""
        self.ledger.add("idle", self._idle)
        self.ledger.add_wall(self._wall)
        self._idle = self._wall = 0.0
        self._written = time.monotonic()
