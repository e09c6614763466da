"""The command line.  Every command parses, calls one function of the library and shows its value."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ucd_ray.cli.doctor import doctor
from ucd_ray.cli.edit import study_app
from ucd_ray.cli.networks import evaluate, export, predict, study_best
from ucd_ray.cli.remote import Left, choose_server, refuse, server
from ucd_ray.cli.report import report
from ucd_ray.cli.results import results
from ucd_ray.cli.serve import serve, token_app
from ucd_ray.cli.shared import (
    Address,
    Base,
    BaseClasses,
    ClassOrders,
    Constraint,
    CpusPerWorker,
    Data,
    Deterministic,
    ExecutorName,
    GpusPerWorker,
    KeepBest,
    MaxConcurrent,
    MaxGpuHours,
    MaxHours,
    Methods,
    OomRetries,
    Patience,
    Preset,
    Racing,
    SameFailures,
    Scenario,
    Seed,
    Seeds,
    SelectOn,
    Set,
    Setting,
    Space,
    SplitLists,
    Tensorboard,
    Terminator,
    TrialsPerRun,
    Triple,
    Weights,
    Workers,
    check_table_format,
    console,
    objective_settings,
    one_of,
    read_values,
    run_values,
    say,
    show_trials,
    study_settings,
)
from ucd_ray.cli.train import train
from ucd_ray.errors import ConfigError, UcdRayError

app = typer.Typer(
    name="ucd-ray",
    help="Hyperparameter studies for incremental semantic segmentation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Prepare data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")
study_app.command("best")(study_best)
cache_app = typer.Typer(help="Look at the step cache and make room in it.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
app.command()(results)
app.command()(train)
for use in (evaluate, predict, export):
    app.command()(use)
app.command()(report)
app.command()(serve)
app.command()(doctor)
app.add_typer(token_app, name="token")


@app.callback()
def root(
    context: typer.Context,
    server: Annotated[
        str | None,
        typer.Option(
            envvar="UCD_RAY_SERVER",
            help="URL of a service that carries out tune, results and study; its token: UCD_RAY_TOKEN, "
            "or a file of mode 0600, UCD_RAY_TOKEN_FILE.",
        ),
    ] = None,
) -> None:
    """Hyperparameter studies for incremental semantic segmentation."""
    choose_server(server, context.invoked_subcommand)


INTERRUPTED = 130  # what typer exits with after Ctrl-C


def main(refused: int = 2) -> None:
    """Entry point: errors a user can mend are one message and exit code 2.

    refused: exit code of those that no second try mends: a wrong value, data set or weight file
    """
    try:
        app()
    except UcdRayError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        sys.exit(refused if isinstance(error, ValueError) else 2)
    except SystemExit as end:
        if end.code == INTERRUPTED and not isinstance(end, Left):
            Console(stderr=True).print("stopped; the same command goes on where it stopped")
        raise


@app.command()
def tune(
    scenario: Scenario = None,
    preset: Preset = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all; may be raised later.")] = None,
    method: Methods = None,
    space: Space = None,
    name: Annotated[
        str | None, typer.Option(help="Study; default: scenario-setting-method.")
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option("--from", help="Study whose fitting trials the sampler is given; repeatable."),
    ] = None,
    data: Data = None,
    weights: Weights = None,
    weights_mean: Triple = None,
    weights_std: Triple = None,
    base: Base = None,
    base_classes: BaseClasses = None,
    setting: Setting = None,
    select_on: SelectOn = None,
    split_lists: SplitLists = None,
    seed: Seed = None,
    values: Set = None,
    workers: Workers = 1,
    cpus_per_worker: CpusPerWorker = None,
    gpus_per_worker: GpusPerWorker = None,
    max_concurrent: MaxConcurrent = None,
    sampler: Annotated[str, typer.Option(help="Who proposes params.")] = "tpe",
    pruner: Annotated[
        str | None,
        typer.Option(help="Who stops weak trials; default: median, none with several objectives."),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(help="What trials should have most of: miou_all (default); may be repeated."),
    ] = None,
    prune_on: Annotated[
        str | None, typer.Option(help="What the pruner compares, if not the objective.")
    ] = None,
    constraint: Constraint = None,
    seeds: Seeds = None,
    class_orders: ClassOrders = None,
    racing: Racing = None,
    max_hours: MaxHours = None,
    max_gpu_hours: MaxGpuHours = None,
    patience: Patience = None,
    terminator: Terminator = None,
    executor: ExecutorName = None,
    trials_per_run: TrialsPerRun = None,
    oom_retries: OomRetries = None,
    keep_best: KeepBest = None,
    same_failures: SameFailures = None,
    deterministic: Deterministic = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show plan and cost, start nothing.")
    ] = False,
    tensorboard: Tensorboard = None,
    address: Address = None,
    output: Annotated[str, typer.Option("--format", help="Of the final table.")] = "table",
) -> None:
    """Search the params of a scenario; goes on where an earlier run of the same study stopped."""
    check_table_format(output)
    from ucd_ray.tune.presets import space_asked
    from ucd_ray.tune.registration import with_edits
    from ucd_ray.tune.space import build_spec
    from ucd_ray.tune.study import run_study

    found, row = space_asked(
        scenario,
        space,
        preset,
        method=method,
        setting=setting,
        generated=data == "generated",
    )
    overrides = run_values(
        values,
        data=data,
        weights=weights,
        weights_mean=weights_mean,
        weights_std=weights_std,
        base=base,
        base_classes=base_classes,
        setting=setting,
        select_on=select_on,
        split_lists=split_lists,
        seed=seed,
        deterministic=deterministic,
    )
    spec = build_spec(
        found,
        name=name,
        method=method,
        overrides=overrides,
        workers=workers,
        sampler=sampler,
        **objective_settings(objective, prune_on, pruner),
        constraints=tuple(constraint or ()),
        seed=seed or 0,
        **study_settings(
            trials=trials,
            seeds=seeds,
            class_orders=class_orders,
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
        ),
    )
    for line in row.lines(spec.trial_recipe(spec.first_params)) if row else ():
        say(line)
    if server() is not None:
        from ucd_ray.cli.remote import tune as remote

        refuse(tune, {"address": address})
        return remote.tune(
            spec, sources=sources or [], dry_run=dry_run, tensorboard=tensorboard, output=output
        )
    spec, sources = with_edits(spec), sources or []
    if dry_run:
        from ucd_ray.tune.plan import plan_view, study_plan

        plan = study_plan(spec, sources=sources, address=address, console=console)
        console.print(plan_view(plan))
        return
    table = run_study(
        spec, sources=sources, address=address, console=console, tensorboard=tensorboard
    )
    show_trials(table, spec.name, output)


@app.command()
def scenarios() -> None:
    """List the scenarios with their steps."""
    from ucd_ray.scenarios import KNOWN_SCENARIOS, parse_scenario
    from ucd_ray.tune.space import known_spaces

    table = Table(title="Scenarios", caption="any <dataset>-<A>-<B> that fits works as well")
    for column in ("scenario", "steps", "classes per step", "background scored", "search space"):
        table.add_column(column)
    spaces = known_spaces()
    for name in KNOWN_SCENARIOS:
        scenario = parse_scenario(name)
        sizes = [len(step) for step in scenario.steps]
        shown = f"{sizes[0]} + {len(sizes) - 1} x {sizes[1]}" if len(sizes) > 1 else str(sizes[0])
        own = "own" if name in spaces else "default"
        scored = "yes" if scenario.background else "no"
        table.add_row(name, str(len(sizes)), shown, scored, own)
    console.print(table)


@app.command()
def presets() -> None:
    """List the presets: published rows with what they should give."""
    from ucd_ray.tune.presets import presets_table

    console.print(presets_table())


@app.command()
def config(
    scenario: Annotated[str | None, typer.Argument(help="Such as voc-15-1.")] = None,
    method: Methods = None,
    space: Space = None,
    explain: Annotated[bool, typer.Option("--explain", help="With meaning and range.")] = False,
    values: Set = None,
    schema: Annotated[
        str | None, typer.Option(help="JSON Schema of what is sent or stored: study, or space.")
    ] = None,
) -> None:
    """Show every value of a scenario's recipe, and what is searched; or the schema of a study's spec."""
    from ucd_ray.tune.explain import config_table
    from ucd_ray.tune.schema import SCHEMAS, schema_of
    from ucd_ray.tune.space import build_spec, space_of

    if schema is not None:
        one_of("schema", schema, tuple(SCHEMAS))
        return console.print_json(data=schema_of(schema))
    if scenario is None:
        raise ConfigError("give a scenario, such as `ucd-ray config voc-15-1`, or --schema study")
    found = space_of(scenario, space, generated=False)
    spec = build_spec(found, method=method, overrides=read_values(values))
    console.print(config_table(spec, explain=explain))


@data_app.command("prepare")
def data_prepare(
    dataset: Annotated[str, typer.Argument(help="voc, ade, cityscapes, msrc, shapes or folder.")],
    source: Annotated[str, typer.Argument(help="Directory of the data set, or 'generated'.")],
    out: Annotated[Path, typer.Argument(help="Directory to write; must not exist.")],
) -> None:
    """Turn a data set into Arrow files."""
    from ucd_ray.tune.prepare import prepare_data

    prepared = prepare_data(dataset, source, out, console)
    console.print(
        f"{out}: {prepared.train.num_rows} train, {prepared.val.num_rows} val images, "
        f"{len(prepared.classes) - 1} classes, fingerprint {prepared.fingerprint[:16]}",
        highlight=False,
        soft_wrap=True,
    )


@cache_app.command("list")
def cache_list() -> None:
    """List the stored steps, the least recently used first."""
    from ucd_ray.tune.cache import list_table, open_steps

    console.print(list_table(open_steps()))


@cache_app.command("verify")
def cache_verify(
    delete: Annotated[bool, typer.Option("--delete", help="Remove what is damaged.")] = False,
) -> None:
    """Read every entry and list the damaged ones; exit code 1 if there are any."""
    from ucd_ray.tune.cache import open_steps, verify

    if verify(open_steps(), console, delete=delete):
        raise typer.Exit(1)


@cache_app.command("prune")
def cache_prune(
    limit: Annotated[
        str | None, typer.Option(help="Size to keep, such as 10GB; default: UCD_RAY_CACHE_LIMIT.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(help="Remove what was not used for so long, such as 30d.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
) -> None:
    """Remove the steps used least recently, never one in use, and what broken writes left."""
    from ucd_ray.tune.cache import open_steps, prune

    prune(open_steps(), console, limit=limit, older_than=older_than, dry_run=dry_run)
