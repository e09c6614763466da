"""Following a study of a service: its lines, a bar of its trials, curves for TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ucd_ray.cli.remote import Left, server
from ucd_ray.cli.shared import console, say
from ucd_ray.errors import ServiceError, StudyError
from ucd_ray.service.states import CANCELLED, DELETED, ENDED, FAILED
from ucd_ray.tune.curves import Curves

if TYPE_CHECKING:
    from ucd_ray.client import Client, Line, StudyState, StudyView

LEFT = 130  # exit code after Ctrl-C


def follow(
    service: Client,
    study: StudyView,
    *,
    trials: int,
    curves: Curves | None = None,
    to: Console = console,
) -> bool:
    """Tells what happens in a study, from its first event until it has ended.

    Returns whether it has results.  Raises StudyError if it has failed; Left after Ctrl-C.
    curves: written meanwhile, and closed
    to: where it is told
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=to,
        disable=not to.is_terminal,
        transient=True,
    )
    if curves is not None:
        curves.replay(study.id)
        curves.on_failure = lambda line: say(line, to)
    try:
        with bar:
            end = _Followed(bar, curves).to_its_end(service, study, trials)
    except KeyboardInterrupt:
        known = f"ucd-ray --server {server()} study"
        same = f"the same command or `{known} logs {study.id} --follow` follows it,"
        say(f"the study goes on; {same}", to)
        say(f"`{known} stop {study.id}` ends it", to)
        raise Left(LEFT) from None
    finally:
        if curves is not None:
            curves.close()
    if end.state == FAILED:
        raise StudyError(f"study '{study.name}' has failed: {why(end) or 'its log says why'}")
    if end.state in (CANCELLED, DELETED):
        say(f"study {study.name} is {end.state}", to)
    return end.state != DELETED


@dataclass
class _Followed:
    """Who hears of a study."""

    bar: Progress
    curves: Curves | None

    def to_its_end(self, service: Client, study: StudyView, trials: int) -> StudyState:
        from ucd_ray.client import StudyState

        task = self.bar.add_task(study.state, total=trials)
        after = 0
        for event in service.events(study.id):
            if isinstance(event, StudyState):
                reason = why(event)
                shown = event.state + (f": {reason}" if reason else "")
                if self.bar.tasks[task].description != shown:
                    self.bar.update(task, description=shown)
                    state = event.state.lower()
                    self._print(f"{state}: {reason}" if reason else state)
                if event.state in (*ENDED, DELETED):
                    for last in service.events(study.id, after=after, follow=False):
                        if not isinstance(last, StudyState):
                            self._hear(last)
                    return event
            else:
                after = event.id
                self._hear(event)
                if event.kind == "finished":
                    self.bar.advance(task)
        raise ServiceError("the stream of events has ended before the study")

    def _hear(self, line: Line) -> None:
        self._print(line.text)
        if self.curves is not None and line.data is not None:
            self.curves.event(line.kind, line.data, at=line.time)

    def _print(self, text: str) -> None:
        self.bar.console.print(text, highlight=False, soft_wrap=True, markup=False)


def why(state: StudyState | StudyView) -> str:
    """The sentences of conditions that keep a study from going on."""
    return "; ".join(c.message for c in state.conditions if _hinders(c.type, c.status))


def _hinders(kind: str, status: bool) -> bool:
    return status if kind in ("Degraded", "BudgetExhausted") else not status
