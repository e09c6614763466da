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

EXECUTORS = {"warm-gangs": None, "run-per-trial": 1}  # trials_per_run
WHOLE = ("max_concurrent", "patience", "trials_per_run")


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


def show(table: Any, name: str, output: str, out: Path | None) -> None:
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


def run_values(
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


def one_of(what: str, value: str, choices: tuple[str, ...]) -> None:
    from ucd_ray.errors import did_you_mean

    if value not in choices:
        raise ConfigError(f"unknown {what} '{value}'; {did_you_mean(value, choices)}")
