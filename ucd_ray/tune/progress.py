"""What a person sees while a study runs: one line per epoch, and the state of the study below them."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ucd_ray.tune.curves import Curves
from ucd_ray.tune.event_data import event_data, shown_state
from ucd_ray.tune.events import STUDY_KIND, EventLog
from ucd_ray.tune.keys import trial_of
from ucd_ray.tune.spec import StudySpec

if TYPE_CHECKING:
    from ucd_ray.tune.objectives import Best


class Progress:
    """Follows the events of a study.  On a terminal the last lines are kept up to date.

    log: gets every line, for `ucd-ray study logs`
    curves: gets every event, for TensorBoard
    """

    def __init__(
        self,
        spec: StudySpec,
        console: Console,
        *,
        finished: Counter[str],
        best: Best | None = None,
        log: EventLog | None = None,
        curves: Curves | None = None,
    ) -> None:
        self.spec, self.console, self.log, self.curves = spec, console, log, curves
        if curves is not None:
            curves.on_failure = self.note
        # Kind and trial of what is said now, and the same for programs.
        self._of: tuple[str, int | None, dict[str, Any] | None] = (STUDY_KIND, None, None)
        self.states: Counter[str] = Counter()  # trials by our words
        for state, count in finished.items():
            self.states[shown_state(state)] += count
        self.best = best
        self.total = spec.trials
        self.running: dict[str, str] = {}
        self.waiting = ""
        self.cluster = ""
        self.started: dict[str, float] = {}
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=2)

    def __enter__(self) -> Self:
        self._record(f"driven by process {os.getpid()} on {socket.gethostname()}")
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live.is_started:
            self.live.stop()
        if self.curves is not None:
            self.curves.close()
        self._record(_ending(kind, error))
        if self.log is not None:
            self.log.close()

    def say(self, line: str) -> None:
        """Prints one line above the state."""
        self._record(line)
        self._print(line)

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _record(self, line: str) -> None:
        if self.log is not None:
            kind, number, data = self._of
            self.log.add(line, kind=kind, number=number, data=data)

    def note(self, line: str) -> None:
        """Says something about the study as a whole."""
        self.say(f"study {self.spec.name}: {line}")

    def wait_for(self, what: str) -> None:
        """Says what the study waits for now; empty: nothing."""
        if what and what != self.waiting:
            self._record(what)
            if not self.live.is_started:
                self._print(what)
        self.waiting = what

    def event(self, kind: str, who: str, report: dict[str, Any]) -> None:
        """One event of a run; `who` is `base step` or `trial 3`."""
        handler = getattr(self, f"_on_{kind}", None)
        data = event_data(kind, who, report)
        if handler is not None:
            self._of = kind, _number(who), data
            handler(who, report)
            self._of = STUDY_KIND, None, None
        if self.curves is not None:
            self.curves.event(kind, data)

    def _on_started(self, who: str, params: dict[str, Any]) -> None:
        self.running[who] = "waits for its workers"
        self.started[who] = time.monotonic()
        self.say(f"{who} created: {show_params(params)}")

    def _on_run(self, who: str, report: dict[str, Any]) -> None:
        self.running.pop(_trial(who), None)  # its runs are shown instead
        self.running[who] = "waits for its workers"
        self.started[who] = time.monotonic()
        self.say(f"{who} created: {report['label']}")

    def _on_measured(self, who: str, report: dict[str, Any]) -> None:
        self.running.pop(who, None)
        self.say(f"{who} {self._outcome(report)}")

    def _on_start(self, who: str, report: dict[str, Any]) -> None:
        seconds = time.monotonic() - self.started.get(who, time.monotonic())
        self.running[who] = "starts"
        first = report["first_step"]
        cached = f"; steps 0 to {first - 1} come from the step cache" if first else ""
        self.say(f"{who} has its workers after {seconds:.1f} s{cached}")
        if not first:
            for note in report["notes"]:
                self.say(f"  {note}")

    def _on_epoch(self, who: str, report: dict[str, Any]) -> None:
        line = epoch_line(report)
        self.running[who] = line
        self.say(f"{who} {line}")

    def _on_pass(self, who: str, report: dict[str, Any]) -> None:
        line = pass_line(report)
        self.running[who] = line
        self.say(f"{who} {line}")

    def _on_worker(self, who: str, report: dict[str, Any]) -> None:
        """Not for the terminal: all workers of all trials say when they begin and end."""
        self._record(f"{who} worker {report['rank']} on {report['node']}: {report['text']}")

    def _on_step(self, who: str, report: dict[str, Any]) -> None:
        means = report["select"]["means"]
        where = "from the step cache" if report["cached"] else f"{report['seconds']:.1f} s"
        shown = "  ".join(
            f"{name} {means[f'miou_{name}']:.1f}"
            for name in ("old", "new", "all")
            if means[f"miou_{name}"] == means[f"miou_{name}"]
        )
        self.say(f"{who} step {report['step']} done ({where}): mIoU {shown}")

    def _on_waiting(self, who: str, report: dict[str, Any]) -> None:
        reason = report["reason"]
        self.running[who] = f"WAITING: {reason}" if reason else "waits for its workers"
        if reason:
            self.say(f"{who} WAITING: {reason}")

    def _on_lost(self, who: str, report: dict[str, Any]) -> None:
        nodes = ", ".join(report["nodes"])
        self.say(f"{who} lost its workers on {nodes}; it goes on from its last checkpoint")

    def _on_smaller(self, who: str, report: dict[str, Any]) -> None:
        self.say(f"{who} ran out of memory; again with half the micro-batch: {report['reason']}")

    def _on_paused(self, who: str, report: dict[str, Any]) -> None:
        self.running.pop(who, None)
        self.say(f"{who} stopped at its checkpoint; it goes on later")

    def _on_finished(self, who: str, report: dict[str, Any]) -> None:
        self.running.pop(who, None)
        self.states[shown_state(report["state"], report)] += 1
        self.say(f"{who} {self._outcome(report)}")

    def _outcome(self, report: dict[str, Any]) -> str:
        state, shown = report["state"], report["reason"]
        if state == "COMPLETE":
            shown = self.spec.goals.said(report["values"])
            shown += "".join(f"; breaks '{limit}'" for limit in report["broken"])
        return f"{shown_state(state, report)}: {shown}"

    def _render(self) -> RenderableType:
        lines = [Text(f"{who}  {state}") for who, state in self.running.items()]
        counts = "  ".join(f"{state} {count}" for state, count in sorted(self.states.items()))
        best = f"best {self.best.text}" if self.best else "no result yet"
        done = sum(self.states.values())
        head = f"study {self.spec.name}: {done} of {self.total} trials  {counts}  {best}"
        wait = [Text(self.waiting, style="yellow")] if self.waiting else []
        return Group(Text(head, style="bold"), *lines, *wait)


def epoch_line(report: dict[str, Any]) -> str:
    """One epoch in one line: loss terms, speed, time left."""
    losses = "  ".join(f"{term} {value:.4f}" for term, value in report["losses"].items())
    value = "" if report["value"] is None else f"  value {report['value']:.2f}"
    return (
        f"step {report['step']} epoch {report['epoch']}/{report['epochs']}: {losses}{value}  "
        f"{report['images_per_s']:.1f} images/s  {report['seconds_left']:.0f} s left"
    )


def pass_line(report: dict[str, Any]) -> str:
    """A pass over images before a step, in one line."""
    return f"step {report['step']} begins with a pass over its images or the last step's: {report['name']}"


def show_params(params: dict[str, Any]) -> str:
    """Params as `key=value`, numbers short."""
    if not params:
        return "no searched params"
    return " ".join(f"{key}={short(value)}" for key, value in params.items())


def short(value: Any) -> str:
    """A value in few characters; null params mean all."""
    if value is None:
        return "all"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(who: str) -> int | None:
    """The number of `trial 3` and of its run `trial 3-r1`, None of the base step."""
    return trial_of(who.rpartition(" ")[2]) if who.startswith("trial ") else None


def _trial(who: str) -> str:
    """`trial 3`, of its run `trial 3-r1`."""
    return f"trial {_number(who)}"


def _ending(kind: type[BaseException] | None, error: BaseException | None) -> str:
    if kind is None:
        return "its driver ends"
    why = "interrupted" if kind is KeyboardInterrupt else str(error).strip() or kind.__name__
    return f"its driver ends: {why}"
