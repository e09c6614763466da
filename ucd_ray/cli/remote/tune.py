"""`ucd-ray --server URL tune`: starts a study on a service and follows it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ucd_ray.cli.remote import Left, connected, server
from ucd_ray.cli.shared import console, say, show_trials
from ucd_ray.errors import RequestRefused, ServiceError, StudyError
from ucd_ray.service.states import CANCELLED, DELETED, ENDED, FAILED
from ucd_ray.tune.spec import StudySpec

if TYPE_CHECKING:
    from ucd_ray.client import Client, PlanView, StudyState, StudyView

LEFT = 130  # exit code after Ctrl-C


def tune(spec: StudySpec, *, sources: Sequence[str], dry_run: bool, output: str) -> None:
    """Starts the study, or finds it again, follows it to its end and shows its table.

    sources: names or ids of studies that it learns from
    Raises StudyError if it fails, ConfigError, ServiceError.
    """
    # Under this id the same command finds its study again.
    asked: dict[str, Any] = {"spec": spec.model_dump(mode="json"), "external_id": spec.name}
    with connected() as service:
        asked["warm_start"] = [service.find(source).id for source in sources]
        if dry_run:
            del asked["external_id"]
            console.print(plan_table(spec.name, service.plan(asked)))
            return
        try:
            study = service.create(asked)
        except RequestRefused as refused:
            if refused.code != "EXTERNAL_ID_TAKEN":
                raise
            hint = "`ucd-ray study edit` changes it, another --name starts a second one"
            raise StudyError(f"{refused}; {hint}") from None
        say(f"study {study.name} is {study.id} on {server()}")
        if not follow(service, study, trials=spec.trials):
            return
        show_trials(service.table(study.id), study.name, output)


def follow(service: Client, study: StudyView, *, trials: int, to: Console = console) -> bool:
    """Prints what happens in a study until it has ended.  Returns whether it has results.

    to: where it is printed
    Raises StudyError if it has failed; Left after Ctrl-C.
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
    try:
        with bar:
            end = _followed(service, study, bar, trials)
    except KeyboardInterrupt:
        known = f"ucd-ray --server {server()} study"
        same = f"the same command or `{known} logs {study.id} --follow` follows it,"
        say(f"the study goes on; {same}", to)
        say(f"`{known} stop {study.id}` ends it", to)
        raise Left(LEFT) from None
    if end.state == FAILED:
        raise StudyError(f"study '{study.name}' has failed: {why(end) or 'its log says why'}")
    if end.state in (CANCELLED, DELETED):
        say(f"study {study.name} is {end.state}", to)
    return end.state != DELETED


def _followed(service: Client, study: StudyView, bar: Progress, trials: int) -> StudyState:
    from ucd_ray.client import StudyState

    task = bar.add_task(study.state, total=trials)
    after = 0
    for event in service.events(study.id):
        if isinstance(event, StudyState):
            reason = why(event)
            shown = event.state + (f": {reason}" if reason else "")
            if bar.tasks[task].description != shown:
                bar.update(task, description=shown)
                _line(bar, f"{event.state.lower()}: {reason}" if reason else event.state.lower())
            if event.state in (*ENDED, DELETED):
                for last in service.events(study.id, after=after, follow=False):
                    if not isinstance(last, StudyState):
                        _line(bar, last.text)
                return event
        else:
            after = event.id
            _line(bar, event.text)
            if event.kind == "finished":
                bar.advance(task)
    raise ServiceError("the stream of events has ended before the study")


def _line(bar: Progress, text: str) -> None:
    bar.console.print(text, highlight=False, soft_wrap=True, markup=False)


def why(state: StudyState | StudyView) -> str:
    """The sentences of conditions that keep a study from going on."""
    return "; ".join(c.message for c in state.conditions if _hinders(c.type, c.status))


def _hinders(kind: str, status: bool) -> bool:
    return status if kind in ("Degraded", "BudgetExhausted") else not status


def plan_table(name: str, plan: PlanView) -> Table:
    """What a study would do and cost."""
    table = Table(title=f"plan of {name}", show_header=False)
    low, high = plan.hours
    gang = plan.gang
    rows: dict[str, Any] = {
        "trials": plan.trials,
        "replicates": plan.replicates,
        "workers": f"{gang['workers']:g} x {gang['cpus']:g} CPUs, {gang['gpus']:g} GPUs",
        "base steps": plan.base_steps,
        f"{plan.unit} hours": f"{low:.2g} to {high:.2g}",
        "searched": ", ".join(plan.searched),
        **({"warm start": "; ".join(plan.warm_start)} if plan.warm_start else {}),
    }
    for what, value in rows.items():
        table.add_row(what, str(value))
    return table


def stamp(seconds: float | None) -> str:
    """A time of this machine's zone."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
