"""The command line.  Every command parses, calls one function of the library and shows its value."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ucd_ray.cli.shared import (
    Address,
    Base,
    BaseClasses,
    CpusPerWorker,
    Data,
    Deterministic,
    ExecutorName,
    GpusPerWorker,
    KeepBest,
    MaxConcurrent,
    MaxGpuHours,
    MaxHours,
    Method,
    OomRetries,
    Patience,
    SameFailures,
    Scenario,
    Seed,
    SelectOn,
    Set,
    Setting,
    SplitLists,
    Terminator,
    TrialsPerRun,
    Triple,
    Weights,
    Workers,
    console,
    one_of,
    read_values,
    run_values,
    show,
    study_settings,
)
from ucd_ray.cli.study import study_app
from ucd_ray.errors import UcdRayError

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
cache_app = typer.Typer(help="Look at the step cache and make room in it.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

INTERRUPTED = 130  # what typer exits with after Ctrl-C


def main() -> None:
    """Entry point: errors a user can mend are one message and exit code 2."""
    try:
        app()
    except UcdRayError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            Console(stderr=True).print("stopped; the same command goes on where it stopped")
        raise


@app.command()
def tune(
    scenario: Scenario,
    trials: Annotated[int | None, typer.Option(help="Trials in all; may be raised later.")] = None,
    method: Method = None,
    space: Annotated[str | None, typer.Option(help="Search space: a name or a YAML file.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Study; default: scenario-setting-method.")
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
    pruner: Annotated[str, typer.Option(help="Who stops weak trials.")] = "median",
    objective: Annotated[str, typer.Option(help="What is maximised.")] = "miou_all",
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
    address: Address = None,
    output: Annotated[str, typer.Option("--format", help="Of the final table.")] = "table",
) -> None:
    """Search the params of a scenario; goes on where an earlier run of the same study stopped."""
    from ucd_ray.tune.results import FORMATS
    from ucd_ray.tune.space import build_spec, space_of
    from ucd_ray.tune.study import run_study

    one_of("format", output, FORMATS)
    found = space_of(scenario, space, generated=data == "generated")
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
        pruner=pruner,
        objective=objective,
        seed=seed or 0,
        **study_settings(
            trials=trials,
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
    if dry_run:
        from ucd_ray.tune.plan import plan_view, study_plan

        console.print(plan_view(study_plan(spec, address=address, console=console)))
        return
    table = run_study(spec, address=address, console=console)
    show(table, spec.name, output, None)


@app.command()
def train(
    scenario: Scenario,
    method: Method = None,
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
    deterministic: Deterministic = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, train nothing.")
    ] = False,
    address: Address = None,
) -> None:
    """Run one recipe over all its steps, without a study."""
    from ucd_ray.tune.run import plan_table, result_table, run
    from ucd_ray.tune.space import build_spec, space_of

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
    space = space_of(scenario, None, generated=data == "generated")
    spec = build_spec(space, method=method, overrides=overrides, workers=workers)
    recipe = spec.trial_recipe(spec.first)
    if dry_run:
        console.print(plan_table(recipe, workers=workers))
        return
    result = run(recipe, workers=workers, address=address, console=console)
    console.print(result_table(result))


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
def config(
    scenario: Annotated[str, typer.Argument(help="Such as voc-15-1.")],
    method: Method = None,
    explain: Annotated[bool, typer.Option("--explain", help="With meaning and range.")] = False,
    values: Set = None,
) -> None:
    """Show every value of a scenario's recipe, and what is searched."""
    from ucd_ray.tune.explain import config_table
    from ucd_ray.tune.space import build_spec, space_for

    spec = build_spec(space_for(scenario), method=method, overrides=read_values(values))
    console.print(config_table(spec, explain=explain))


@app.command()
def results(
    study: Annotated[str, typer.Argument(help="Name of the study.")],
    output: Annotated[
        str, typer.Option("--format", help="table, csv, json, parquet, arrow.")
    ] = "table",
    out: Annotated[Path | None, typer.Option(help="File to write; default: the terminal.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="PNG with images, truth and the best trial's predictions.")
    ] = None,
) -> None:
    """Show the table of trials of a study."""
    from ucd_ray.tune.database import Database
    from ucd_ray.tune.places import places
    from ucd_ray.tune.results import FORMATS, trials_table

    one_of("format", output, FORMATS)
    show(trials_table(Database(places().database), study), study, output, out)
    if picture is not None:
        from ucd_ray.tune.picture import draw_best

        draw_best(study, picture)
        console.print(f"wrote {picture}", highlight=False)


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
