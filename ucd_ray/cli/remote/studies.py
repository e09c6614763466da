"""The commands of `ucd-ray --server URL study`."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from ucd_ray.cli.remote import connected
from ucd_ray.cli.remote.follow import why
from ucd_ray.cli.remote.tune import stamp
from ucd_ray.cli.shared import console, one_of, parse_value, read_values, say, study_settings
from ucd_ray.errors import ConfigError, RequestRefused
from ucd_ray.service.states import PAUSING, STOPPING
from ucd_ray.tune.event_data import ENDED, is_by

if TYPE_CHECKING:
    from ucd_ray.client import Client, Done, Line, StudyView

NOT_YET = 1  # exit code of a command that the driver has not carried out
AGAIN_S = 0.5  # between two looks at a study that is about to pause or stop
CHANGING = (PAUSING, STOPPING)


def study_list() -> None:
    """All studies that this user may see."""
    table = Table()
    for column in ("id", "study", "owner", "state", "why", "created"):
        table.add_column(column, overflow="fold")
    with connected() as service:
        for study in service.studies():
            row = (study.id, study.name, study.owner, study.state, why(study))
            table.add_row(*row, stamp(study.create_time))
    console.print(table)


def study_show(name: str, output: str) -> None:
    """Where a study stands."""
    one_of("format", output, ("table", "json"))
    with connected() as service:
        study = service.find(name)
        if output == "json":
            return console.print_json(study.model_dump_json())
        states: Counter[str] = Counter()
        with contextlib.suppress(RequestRefused):  # 409: it has not started
            states.update(trial.state for trial in service.trials(study.id))
    console.print(study_table(study, states))


def study_table(study: StudyView, states: dict[str, int]) -> Table:
    """One study.  states: how many trials are in each"""
    table = Table(title=f"study {study.name}", show_header=False)
    rows: dict[str, Any] = {
        "id": study.id,
        "owner": study.owner,
        "state": study.state,
        "trials": ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
        "trials at a time": study.share or study.parallelism,
        "priority": study.priority,
        "labels": ", ".join(f"{name}={text}" for name, text in study.labels.items()),
        "created": stamp(study.create_time),
        "started": stamp(study.start_time),
        "ended": stamp(study.end_time),
        "Ray job": study.job and (study.job.dashboard or study.job.submission_id),
    }
    for what, value in rows.items():
        if value not in (None, ""):
            table.add_row(what, str(value))
    for condition in study.conditions:
        told = f"{condition.reason}: {condition.message}"
        table.add_row(f"{condition.type} {'yes' if condition.status else 'no'}", told)
    return table


def study_logs(
    name: str, trial: int | None, worker: int | None, last: int | None, follow: bool
) -> None:
    """What the driver and its workers said; with `follow` until Ctrl-C."""
    from ucd_ray.client import StudyState

    with connected() as service:
        study, after = service.find(name).id, 0
        kept: deque[Line] = deque(maxlen=last)
        for event in service.events(study, number=trial, follow=False):
            if not isinstance(event, StudyState):
                after = event.id
                if is_by(event.kind, event.data, worker):
                    kept.append(event)
        for line in kept:
            _print(line)
        for event in service.events(study, after=after, number=trial) if follow else ():
            if not isinstance(event, StudyState) and is_by(event.kind, event.data, worker):
                _print(event)


def _print(line: Line) -> None:
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.time))
    say(f"{shown}  {line.text}")


def study_compare(first: str, second: str, output: str) -> None:
    """The best trials of two studies."""
    from ucd_ray.tune.comparison import Compared, comparison_view

    one_of("format", output, ("table", "json"))
    with connected() as service:
        found = service.comparison(service.find(first).id, service.find(second).id)
    if output == "json":
        console.print_json(data=found)
    else:
        console.print(comparison_view(Compared.of(found)))


def study_pause(name: str, wait: float) -> None:
    """Running trials stop at their next checkpoint."""
    with connected() as service:
        _told(service, service.pause(service.find(name).id), wait)


def study_resume(name: str, wait: float) -> None:
    """A paused, stopped or failed study goes on."""
    with connected() as service:
        _told(service, service.resume(service.find(name).id), wait)


def study_stop(name: str, drain: bool, checkpoint: bool, kill: bool, wait: float) -> None:
    """Ends a study."""
    hows = {"drain": drain, "checkpoint": checkpoint, "kill": kill}
    chosen = [how for how, given in hows.items() if given]
    if len(chosen) > 1:
        raise ConfigError(f"--{' and --'.join(chosen)}: give one of them")
    with connected() as service:
        how: Any = chosen[0] if chosen else "checkpoint"
        _told(service, service.stop(service.find(name).id, how), wait)


def study_delete(name: str, yes: bool) -> None:
    """Hides a study; its results go after some weeks."""
    with connected() as service:
        study = service.find(name)
        if not yes:
            typer.confirm(f"delete study '{name}' with all its trials and results?", abort=True)
        gone = service.delete(study.id)
    until = stamp(gone.purge_time)
    say(f"study '{study.name}' ({study.id}) is deleted; its results go on {until}")


def study_clone(name: str, to: str | None) -> None:
    """Starts a copy of a study."""
    with connected() as service:
        copy = service.clone(service.find(name).id, {"name": to} if to else {})
    say(f"study '{copy.name}' is {copy.id}, {copy.state}")


def study_cancel(name: str, number: int, wait: float) -> None:
    """Ends one open trial."""
    deadline = time.monotonic() + wait
    with connected() as service:
        study = service.find(name)
        outcome = service.stop_trial(study.id, number)
        while not outcome.done and time.monotonic() < deadline:
            time.sleep(AGAIN_S)
            trial = service.trial(study.id, number)
            if trial.state in ENDED:
                say(f"trial {number} of study '{study.name}' is {trial.state}")
                return
    _done(outcome)


def study_enqueue(name: str, values: list[str] | None) -> None:
    """Queues a trial."""
    params = read_values(values)
    if not params:
        raise ConfigError("nothing to queue: give params as --set KEY=VALUE")
    with connected() as service:
        _done(service.queue_trial(service.find(name).id, params))


def study_best(name: str, trial: int | None, export: Path | None, output: str) -> None:
    """The recipe of the best trial."""
    from ucd_ray.tune.formats import replaced

    one_of("format", output, ("table", "json"))
    with connected() as service:
        study = service.find(name).id
        form = "json" if output == "json" and export is None else "yaml"
        text = service.best(study, trial=trial, form=form)
    if export is None:
        return typer.echo(text.rstrip("\n"))
    with replaced(export) as sink:
        sink.write(text.encode())
    say(f"wrote {export}; `ucd-ray train --recipe {export}` trains it again")


def study_edit(
    name: str,
    search: list[str] | None,
    add_choice: list[str] | None,
    remove_choice: list[str] | None,
    fix: list[str] | None,
    trials: int | None,
    max_concurrent: str | None,
    max_hours: str | None,
    max_gpu_hours: str | None,
    patience: str | None,
) -> None:
    """Changes ranges, budgets or parallelism."""
    from ucd_ray.cli.edit import pairs, read_range

    ranges = {key: read_range(key, text) for key, text in pairs("--search", search)}
    space: dict[str, Any] = {
        "search": {k: r.model_dump(mode="json", exclude_unset=True) for k, r in ranges.items()},
        "fix": {key: parse_value(text) for key, text in pairs("--fix", fix)},
        "add": [[key, parse_value(text)] for key, text in pairs("--add-choice", add_choice)],
        "remove": [[k, parse_value(text)] for k, text in pairs("--remove-choice", remove_choice)],
    }
    space = {part: content for part, content in space.items() if content}
    fields: dict[str, Any] = study_settings(
        executor=None,
        trials=trials,
        max_concurrent=max_concurrent,
        max_hours=max_hours,
        max_gpu_hours=max_gpu_hours,
        patience=patience,
    )
    if "max_concurrent" in fields:
        fields["parallelism"] = fields.pop("max_concurrent")
    if space:
        fields["space"] = space
    if not fields:
        raise ConfigError("nothing to edit: give --search, --add-choice, --fix or a budget")
    with connected() as service:
        study, done = service.change(service.find(name).id, **fields)
    say(f"study '{study.name}' is changed" if done else "noted; its driver carries it out")
    if not done:
        raise typer.Exit(NOT_YET)


def _told(service: Client, study: StudyView, wait: float) -> None:
    """Says what becomes of a study, at most `wait` seconds later."""
    deadline = time.monotonic() + wait
    while study.state in CHANGING and time.monotonic() < deadline:
        time.sleep(AGAIN_S)
        study = service.study(study.id)
    reason = why(study)
    say(f"study '{study.name}' ({study.id}) is {study.state}" + (f": {reason}" if reason else ""))
    if study.state in CHANGING:
        raise typer.Exit(NOT_YET)


def _done(outcome: Done) -> None:
    say(outcome.detail)
    if not outcome.done:
        raise typer.Exit(NOT_YET)
