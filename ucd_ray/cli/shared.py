"""What the commands share: options, how their values are read, how tables are shown."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from ucd_ray.cli.remote import server
from ucd_ray.errors import ConfigError

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
Methods = Annotated[
    str | None,
    typer.Option(help="Method, such as mib+ucd; several with commas: the method is searched too."),
]
Space = Annotated[str | None, typer.Option(help="Search space: a name, or a YAML or JSON file.")]
Constraint = Annotated[
    list[str] | None,
    typer.Option(
        help="What params must fulfil, such as 'optim.lr_new <= optim.lr_base', or results, such as "
        "'drop <= 2'; may be repeated."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of the run.")]
SplitLists = Annotated[
    str | None, typer.Option(help="Directory of published image lists, one file per step.")
]
Triple = Annotated[str | None, typer.Option(help="Three numbers, R,G,B, for pixels in 0..1.")]
Scenario = Annotated[
    str | None, typer.Option(help="Such as voc-15-1 or ade-100-50, or a YAML file.")
]
Preset = Annotated[
    str | None,
    typer.Option(help="A published row, such as voc-15-1/mib+ucd; `ucd-ray presets` lists them."),
]
Workers = Annotated[int, typer.Option(help="DDP training workers of one trial.", min=1)]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster; default: RAY_ADDRESS or a local head.")
]
Tensorboard = Annotated[
    Path | None,
    typer.Option(help="Directory for TensorBoard: curves of every run in one below it."),
]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="Same seed, same numbers on the same machine.")
]

Seeds = Annotated[
    int | None, typer.Option(help="Seeds that each trial is measured under; default: 1.", min=1)
]
ClassOrders = Annotated[
    int | None, typer.Option(help="Class orders, each under all seeds; default: 1.", min=1)
]
Racing = Annotated[
    str | None,
    typer.Option(help="p below which a weak trial is spared its last runs, or none; default: 0.3."),
]
MaxConcurrent = Annotated[
    str | None, typer.Option(help="Trials at a time; default (none): as many as fit.")
]
CpusPerWorker = Annotated[float | None, typer.Option(help="CPUs of one worker; default: 1.")]
GpusPerWorker = Annotated[
    str | None, typer.Option(help="GPUs of one worker; default (none): 1 if there are GPUs.")
]
MaxHours = Annotated[
    str | None, typer.Option(help="Hours of wall time after which no more trials start, or none.")
]
MaxGpuHours = Annotated[
    str | None, typer.Option(help="GPU hours after which no more trials start, or none.")
]
Patience = Annotated[
    str | None, typer.Option(help="Trials without a better one that end the study, or none.")
]
Terminator = Annotated[
    bool | None,
    typer.Option("--terminator/--no-terminator", help="Let Optuna's terminator end the study."),
]
ExecutorName = Annotated[
    str | None,
    typer.Option(
        help="warm-gangs (default: workers take trial after trial) or run-per-trial (new ones for each)."
    ),
]
TrialsPerRun = Annotated[
    str | None, typer.Option(help="Trials after which a gang's workers are started anew, or none.")
]
OomRetries = Annotated[
    int | None,
    typer.Option(help="Tries with half the micro-batch when memory runs out; default: 0."),
]
KeepBest = Annotated[
    int | None, typer.Option(help="Best trials whose networks are kept; default: 1.")
]
SameFailures = Annotated[
    int | None, typer.Option(help="Trials failing alike that stop the study; default: 3.")
]

TABLE_FORMATS = (
    *("table", "markdown", "latex", "csv", "json", "parquet", "arrow", "arrow-stream"),
)
EXECUTORS = {"warm-gangs": None, "run-per-trial": 1}  # trials_per_run
WHOLE = ("max_concurrent", "patience", "trials_per_run")


def objective_settings(
    objectives: list[str] | None, prune_on: str | None, pruner: str | None
) -> dict[str, Any]:
    """Fields of a StudySpec from what is optimised; nothing prunes by itself where nothing can."""
    from ucd_ray.tune.names import EPOCHLY

    given = objectives or []
    found: dict[str, Any] = {"prune_on": prune_on}
    if given:
        found |= {"objectives": tuple(given)} if len(given) > 1 else {"objective": given[0]}
    blind = len(given) > 1 or any(name not in EPOCHLY for name in given)
    if pruner is not None or (blind and prune_on is None):
        found["pruner"] = pruner or "none"
    return found


def study_settings(*, executor: str | None, **given: Any) -> dict[str, Any]:
    """Fields of a StudySpec from the options that set them; those not given are left out.

    `none` takes a limit away.  Raises ConfigError.
    """
    settings = {
        name: _limit(name, value) if isinstance(value, str) else value
        for name, value in given.items()
        if value is not None
    }
    if executor is not None:
        one_of("executor", executor, tuple(EXECUTORS))
        if executor == "run-per-trial" and settings.get("trials_per_run", 1) != 1:
            raise ConfigError(
                f"--executor run-per-trial has 1 trial per run, --trials-per-run is "
                f"{given['trials_per_run']}; leave one out"
            )
        settings.setdefault("trials_per_run", EXECUTORS[executor])
    return settings


def _limit(name: str, text: str) -> float | int | None:
    """A number of an option that also takes `none`."""
    if text.lower() == "none":
        return None
    with contextlib.suppress(ValueError):
        return int(text) if name in WHOLE else float(text)
    kind = "a whole number" if name in WHOLE else "a number"
    raise ConfigError(f"--{name.replace('_', '-')} ('{text}') must be {kind}, or none")


def check_table_format(output: str) -> None:
    """Raises ConfigError unless `output` is a format that tables can be shown in."""
    one_of("format", output, TABLE_FORMATS)


def show_trials(table: Any, name: str, output: str) -> None:
    """Shows the trials of a study that has just run, on a terminal the best first."""
    from ucd_ray.tune.screen import BEST_FIRST
    from ucd_ray.tune.selection import select

    order = BEST_FIRST if output == "table" else ()
    show(select(table.to_reader(), order_by=order), f"study {name}", output, None)


def show(rows: Any, title: str, output: str, out: Path | None, *, limit: int | None = None) -> None:
    """Shows record batches on the terminal, or writes them to a file, in one of `TABLE_FORMATS`.

    limit: rows of a table for people; None: as many as it has by itself
    """
    from ucd_ray.tune.formats import replaced, write
    from ucd_ray.tune.screen import ROWS, render

    if output != "table":
        with replaced(out) if out else contextlib.nullcontext(sys.stdout.buffer) as sink:
            write(rows, output, sink)
            sink.flush()
        return
    show_text(render(rows, title, limit=limit or ROWS), out)


def show_text(shown: Any, out: Path | None) -> None:
    """Shows what rich can render on the terminal, or writes it to a file."""
    from ucd_ray.tune.formats import replaced

    if out is None:
        console.print(shown)
        return
    text = io.StringIO()
    Console(width=WIDE, file=text).print(shown)
    with replaced(out) as sink:
        sink.write(text.getvalue().encode())


def run_values(
    values: list[str] | None = None,
    *,
    data: str | None = None,
    weights: str | None = None,
    weights_mean: str | None = None,
    weights_std: str | None = None,
    base: str | None = None,
    base_classes: str | None = None,
    setting: str | None = None,
    select_on: str | None = None,
    split_lists: str | None = None,
    seed: int | None = None,
    deterministic: bool = False,
) -> dict[str, Any]:
    """Flat values of the options that every training command has, and of its --set options."""
    options = {
        "data.source": absolute(data),
        "model.weights": absolute(weights),
        "model.weights_mean": _triple("--weights-mean", weights_mean),
        "model.weights_std": _triple("--weights-std", weights_std),
        "model.base": absolute(base),
        "model.base_classes": absolute(base_classes),
        "setting": setting,
        "eval.select_on": select_on,
        "data.split_lists": absolute(split_lists),
        "seed": seed,
        "compute.deterministic": deterministic or None,
    }
    given = {key: value for key, value in options.items() if value is not None}
    return read_values(values, **given)


def read_values(values: list[str] | None, **given: Any) -> dict[str, Any]:
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


def absolute(value: str | None) -> str | None:
    """An absolute path; `generated` and `pretrained` are words, not paths, and a service has names."""
    if value is None or value in ("generated", "pretrained") or server() is not None:
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


def say(line: str, to: Console = console) -> None:
    """Prints a line as it is."""
    to.print(line, highlight=False, soft_wrap=True, markup=False)


def say_beside(line: str) -> None:
    """The same beside a table, which may go to a pipe."""
    say(line, Console(stderr=True))


def one_of(what: str, value: str, choices: tuple[str, ...]) -> None:
    from ucd_ray.errors import did_you_mean

    if value not in choices:
        raise ConfigError(f"unknown {what} '{value}'; {did_you_mean(value, choices)}")
