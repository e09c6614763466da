"""`ucd-ray study`: look at studies, go on with them, and command those that another process runs."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Annotated

import typer

from ucd_ray.cli.remote import here_only, over_http
from ucd_ray.cli.shared import (
    Address,
    CpusPerWorker,
    ExecutorName,
    GpusPerWorker,
    KeepBest,
    MaxConcurrent,
    MaxGpuHours,
    MaxHours,
    OomRetries,
    Patience,
    Racing,
    SameFailures,
    Tensorboard,
    Terminator,
    TrialsPerRun,
    console,
    one_of,
    show_trials,
    study_settings,
)
from ucd_ray.errors import ConfigError

if TYPE_CHECKING:
    from ucd_ray.tune.database import Database
    from ucd_ray.tune.manage import Outcome

study_app = typer.Typer(
    help="Look at studies, go on with them, pause, stop and delete them.", no_args_is_help=True
)

FOLLOW_S = 0.5  # between looks at a log
NOT_YET = 1  # exit code of a command that the driver has not carried out

Name = Annotated[str, typer.Argument(help="Name of the study.")]
Wait = Annotated[float, typer.Option(help="Seconds to wait for the study's driver.", min=0)]


@study_app.command("list")
@over_http("studies:study_list")
def study_list() -> None:
    """List all studies."""
    from ucd_ray.tune.explain import studies_table

    console.print(studies_table(database()))


@study_app.command("run")
@here_only(
    "`study resume` goes on with a study, `study edit` changes it, and the same `tune` follows it"
)
def study_run(
    name: Annotated[str, typer.Argument(help="Name of a study that was started before.")],
    trials: Annotated[int | None, typer.Option(help="Trials in all.", min=1)] = None,
    racing: Racing = None,
    cpus_per_worker: CpusPerWorker = None,
    gpus_per_worker: GpusPerWorker = None,
    max_concurrent: MaxConcurrent = None,
    max_hours: MaxHours = None,
    max_gpu_hours: MaxGpuHours = None,
    patience: Patience = None,
    terminator: Terminator = None,
    executor: ExecutorName = None,
    trials_per_run: TrialsPerRun = None,
    oom_retries: OomRetries = None,
    keep_best: KeepBest = None,
    same_failures: SameFailures = None,
    tensorboard: Tensorboard = None,
    address: Address = None,
) -> None:
    """Go on with a study under its stored spec; what is given here replaces what is stored."""
    from ucd_ray.tune.registration import stored_spec
    from ucd_ray.tune.spec import changed
    from ucd_ray.tune.study import run_study

    settings = study_settings(
        trials=trials,
        racing=racing,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        max_concurrent=max_concurrent,
        max_hours=max_hours,
        max_gpu_hours=max_gpu_hours,
        patience=patience,
        terminator=terminator,
        executor=executor,
        trials_per_run=trials_per_run,
        oom_retries=oom_retries,
        keep_best=keep_best,
        same_failures=same_failures,
    )
    spec = changed(stored_spec(name), settings)
    table = run_study(spec, address=address, console=console, tensorboard=tensorboard)
    show_trials(table, name, "table")


@study_app.command("show")
@over_http("studies:study_show")
def study_show(
    name: Name,
    output: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> None:
    """Show where a study stands: who runs it, budgets, open trials, what it cost, disk."""
    from ucd_ray.tune.explain import overview_view
    from ucd_ray.tune.overview import overview
    from ucd_ray.tune.places import places

    one_of("format", output, ("table", "json"))
    found = overview(database(), name, places())
    if output == "json":
        console.print_json(data=found.content())
    else:
        console.print(overview_view(found))


@study_app.command("compare")
@over_http("studies:study_compare")
def study_compare(
    first: Annotated[str, typer.Argument(help="Name of a study.")],
    second: Annotated[str, typer.Argument(help="Name of another one.")],
    output: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> None:
    """Compare the best trials of two studies: how far apart, how sure, and what else differs."""
    from ucd_ray.tune.comparison import compare_studies, comparison_view

    one_of("format", output, ("table", "json"))
    found = compare_studies(database(), first, second)
    if output == "json":
        console.print_json(data=found.content())
    else:
        console.print(comparison_view(found))


@study_app.command("logs")
@over_http("studies:study_logs")
def study_logs(
    name: Name,
    trial: Annotated[int | None, typer.Option(help="Of this trial only.")] = None,
    worker: Annotated[
        int | None, typer.Option(help="Only what the workers of this rank said.", min=0)
    ] = None,
    last: Annotated[int | None, typer.Option(help="Only so many of the newest.", min=1)] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the study's driver ends.")
    ] = False,
) -> None:
    """Print what the driver of a study and its workers said, with the time."""
    from ucd_ray.tune.commands import driven
    from ucd_ray.tune.events import events

    store = database()
    store.stored_spec(name)
    after = 0
    while True:
        runs = follow and driven(store, name)  # before the look: its last lines are not missed
        for row in events(store, name, number=trial, worker=worker, after=after, last=last):
            stamp = datetime.datetime.fromtimestamp(row.time).strftime("%Y-%m-%d %H:%M:%S")
            console.print(f"{stamp}  {row.text}", highlight=False, soft_wrap=True, markup=False)
            after = row.id
        if not runs:
            return
        last = None
        time.sleep(FOLLOW_S)


@study_app.command("pause")
@over_http("studies:study_pause")
def study_pause(name: Name, wait: Wait = 60.0) -> None:
    """Start no new trials, stop running ones at their next checkpoint, let the workers go."""
    from ucd_ray.tune.manage import pause

    tell(pause(database(), name, wait_s=wait))


@study_app.command("resume")
@over_http("studies:study_resume")
def study_resume(name: Name, wait: Wait = 60.0) -> None:
    """Go on with a paused study."""
    from ucd_ray.tune.manage import resume

    tell(resume(database(), name, wait_s=wait))


@study_app.command("stop")
@over_http("studies:study_stop")
def study_stop(
    name: Name,
    drain: Annotated[
        bool, typer.Option("--drain", help="Finish the running trials first.")
    ] = False,
    checkpoint: Annotated[
        bool,
        typer.Option("--checkpoint", help="At their next checkpoint; they go on later (default)."),
    ] = False,
    kill: Annotated[
        bool, typer.Option("--kill", help="At once; open trials are cancelled.")
    ] = False,
    wait: Wait = 60.0,
) -> None:
    """End the process that runs a study."""
    from ucd_ray.tune.manage import stop

    hows = {"drain": drain, "checkpoint": checkpoint, "kill": kill}
    chosen = [how for how, given in hows.items() if given]
    if len(chosen) > 1:
        raise ConfigError(f"--{' and --'.join(chosen)}: give one of them")
    tell(stop(database(), name, how=chosen[0] if chosen else "checkpoint", wait_s=wait))


@study_app.command("cancel")
@over_http("studies:study_cancel")
def study_cancel(
    name: Name,
    number: Annotated[int, typer.Argument(help="Number of the trial.")],
    wait: Wait = 60.0,
) -> None:
    """End one open trial; the study goes on."""
    from ucd_ray.tune.manage import cancel

    tell(cancel(database(), name, number, wait_s=wait))


@study_app.command("delete")
@over_http("studies:study_delete")
def study_delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a study with its trials, results and checkpoints; the step cache stays."""
    from ucd_ray.store import Store
    from ucd_ray.tune.manage import delete, driver_of
    from ucd_ray.tune.places import places

    store = database()
    if not yes and store.spec(name) is not None and driver_of(store, name) is None:
        typer.confirm(f"delete study '{name}' with all its trials and results?", abort=True)
    tell(delete(store, name, Store(places().runs)))


@study_app.command("clone")
@over_http("studies:study_clone")
def study_clone(
    name: Name,
    to: Annotated[
        str | None, typer.Option("--name", help="Of the copy; default: the same.")
    ] = None,
) -> None:
    """Start a copy of a study of a service (--server URL) from its first trial."""
    raise ConfigError(
        f"only a service clones: `ucd-ray --server URL study clone {name}`; here start "
        "`ucd-ray tune` with another --name"
    )


def database() -> Database:
    """The database of studies."""
    from ucd_ray.tune.database import Database
    from ucd_ray.tune.places import places

    return Database(places().database)


def tell(outcome: Outcome) -> None:
    """Prints what came of a command; exit code 1 if the driver has not carried it out."""
    console.print(outcome.text, highlight=False, soft_wrap=True, markup=False)
    if not outcome.done:
        raise typer.Exit(NOT_YET)
