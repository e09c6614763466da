"""The command line.  Every command parses, calls one function of the library and shows its value."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from ucd_ray.errors import ConfigError, UcdRayError

app = typer.Typer(
    name="ucd-ray",
    help="Hyperparameter studies for incremental semantic segmentation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Prepare data sets.", no_args_is_help=True)
study_app = typer.Typer(help="Look at studies and go on with them.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")
cache_app = typer.Typer(help="Look at the step cache and make room in it.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

INTERRUPTED = 130  # what typer exits with after Ctrl-C
WIDE = 200  # columns of a table that goes to a file or pipe
console = Console(width=None if sys.stdout.isatty() else WIDE)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A recipe value, KEY=VALUE; may be repeated.", metavar="KEY=VALUE"),
]
Data = Annotated[
    str | None, typer.Option(help="Directory of the data set, of a prepared one, or 'generated'.")
]
Weights = Annotated[
    str | None, typer.Option(help="File of pretrained backbone weights, or 'pretrained'.")
]
Base = Annotated[
    str | None,
    typer.Option(help="File of your own trained network: step 0, which is then not trained."),
]
BaseClasses = Annotated[
    str | None,
    typer.Option(help="Its class names in channel order, background first: one a line, or YAML."),
]
Setting = Annotated[str | None, typer.Option(help="sequential, disjoint or overlapped.")]
SelectOn = Annotated[
    str | None, typer.Option(help="holdout (default), or val as the papers do: no hold-out.")
]
Method = Annotated[str | None, typer.Option(help="Method, such as mib+ucd.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the run.")]
SplitLists = Annotated[
    str | None, typer.Option(help="Directory of published image lists, one file per step.")
]
Triple = Annotated[str | None, typer.Option(help="Three numbers, R,G,B, for pixels in 0..1.")]
Scenario = Annotated[str, typer.Option(help="Such as voc-15-1 or ade-100-50, or a YAML file.")]
Workers = Annotated[int, typer.Option(help="DDP training workers of one trial.", min=1)]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster; default: RAY_ADDRESS or a local head.")
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Same seed, same numbers on the same machine.")
]


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
    cpus_per_worker: float = 1.0,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="Default: 1 if there are GPUs.")
    ] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Trials at a time.")] = None,
    sampler: str = "tpe",
    pruner: str = "median",
    objective: str = "miou_all",
    deterministic: Deterministic = False,
    address: Address = None,
    output: Annotated[str, typer.Option("--format", help="Of the final table.")] = "table",
) -> None:
    """Search the params of a scenario; goes on where an earlier run of the same study stopped."""
    from ucd_ray.tune.results import FORMATS
    from ucd_ray.tune.space import build_spec, space_of
    from ucd_ray.tune.study import run_study

    _one_of("format", output, FORMATS)
    found = space_of(scenario, space, generated=data == "generated")
    overrides = _run_values(
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
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        max_concurrent=max_concurrent,
        sampler=sampler,
        pruner=pruner,
        objective=objective,
        seed=seed or 0,
        **({"trials": trials} if trials is not None else {}),
    )
    table = run_study(spec, address=address, console=console)
    _show(table, spec.name, output, None)


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

    overrides = _run_values(
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

    spec = build_spec(space_for(scenario), method=method, overrides=_overrides(values))
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

    _one_of("format", output, FORMATS)
    _show(trials_table(Database(places().database), study), study, output, out)
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


@study_app.command("list")
def study_list() -> None:
    """List all studies."""
    from ucd_ray.tune.database import Database
    from ucd_ray.tune.explain import studies_table
    from ucd_ray.tune.places import places

    console.print(studies_table(Database(places().database)))


@study_app.command("run")
def study_run(
    name: Annotated[str, typer.Argument(help="Name of a study that was started before.")],
    trials: Annotated[int | None, typer.Option(help="Trials in all.", min=1)] = None,
    address: Address = None,
) -> None:
    """Go on with a study under its stored spec."""
    from ucd_ray.tune.study import run_study, stored_spec

    spec = stored_spec(name)
    if trials is not None:
        spec = spec.model_validate({**spec.model_dump(), "trials": trials})
    _show(run_study(spec, address=address, console=console), name, "table", None)


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


def _show(table: Any, name: str, output: str, out: Path | None) -> None:
    from ucd_ray.tune.results import encode, render, write

    if output == "table":
        shown = render(table, f"study {name}")
        if out is None:
            console.print(shown)
            return
        text = io.StringIO()
        Console(width=WIDE, file=text).print(shown)
        write(text.getvalue().encode(), out)
        return
    content = encode(table, output)
    if out is not None:
        write(content, out)
    else:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


def _run_values(
    values: list[str] | None,
    *,
    data: str | None,
    weights: str | None,
    weights_mean: str | None,
    weights_std: str | None,
    base: str | None,
    base_classes: str | None,
    setting: str | None,
    select_on: str | None,
    split_lists: str | None,
    seed: int | None,
    deterministic: bool,
) -> dict[str, Any]:
    """Flat values of the options that every training command has, and of its --set options."""
    options = {
        "data.source": _path(data),
        "model.weights": _path(weights),
        "model.weights_mean": _triple("--weights-mean", weights_mean),
        "model.weights_std": _triple("--weights-std", weights_std),
        "model.base": _path(base),
        "model.base_classes": _path(base_classes),
        "setting": setting,
        "eval.select_on": select_on,
        "data.split_lists": _path(split_lists),
        "seed": seed,
        "compute.deterministic": deterministic or None,
    }
    given = {key: value for key, value in options.items() if value is not None}
    return _overrides(values, **given)


def _overrides(values: list[str] | None, **given: Any) -> dict[str, Any]:
    """Flat values of repeated --set options, and of the options that stand for a key."""
    merged = dict(given)
    for item in values or ():
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set '{item}' must be KEY=VALUE, such as ucd.temperature=0.1")
        merged[key.strip()] = parse_value(text)
    return merged


def parse_value(text: str) -> Any:
    """A value as YAML spells it; `1e-3` is a number too."""
    if "e" in text.lower():
        with contextlib.suppress(ValueError):
            return float(text)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: it looks like a date and is none
        return text


def _path(value: str | None) -> str | None:
    """An absolute path; `generated` and `pretrained` are words, not paths."""
    if value is None or value in ("generated", "pretrained"):
        return value
    return str(Path(value).expanduser().absolute())


def _triple(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3:
        raise ConfigError(f"{option} '{text}' must be three numbers such as 0.485,0.456,0.406")
    return numbers


def _one_of(what: str, value: str, choices: tuple[str, ...]) -> None:
    from ucd_ray.errors import did_you_mean

    if value not in choices:
        raise ConfigError(f"unknown {what} '{value}'; {did_you_mean(value, choices)}")


if __name__ == "__main__":
    main()
