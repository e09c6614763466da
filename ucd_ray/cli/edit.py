"""`ucd-ray study edit` and `study enqueue`: another search space, other budgets, trials of one's own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ucd_ray.cli.remote import over_http
from ucd_ray.cli.shared import (
    MaxConcurrent,
    MaxGpuHours,
    MaxHours,
    Patience,
    Set,
    parse_value,
    read_values,
    study_settings,
)
from ucd_ray.cli.study import Name, Wait, database, study_app, tell
from ucd_ray.errors import ConfigError

__all__ = ["study_app"]  # with these commands

RANGE = "LOW..HIGH[,log][,int][,step=S], or [A, B, C]"


@study_app.command("edit")
@over_http("studies:study_edit")
def study_edit(
    name: Name,
    search: Annotated[
        list[str] | None,
        typer.Option(help=f"{RANGE}; may be repeated.", metavar="KEY=RANGE"),
    ] = None,
    add_choice: Annotated[
        list[str] | None, typer.Option(help="One more choice.", metavar="KEY=VALUE")
    ] = None,
    remove_choice: Annotated[
        list[str] | None, typer.Option(help="One choice less.", metavar="KEY=VALUE")
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(help="Search a key no more: it has this value.", metavar="KEY=VALUE"),
    ] = None,
    constraint: Annotated[
        list[str] | None,
        typer.Option(
            help="What params or results must fulfil from now on, such as 'drop <= 2'; replaces one on "
            "the same keys or metrics; may be repeated."
        ),
    ] = None,
    remove_constraint: Annotated[
        list[str] | None, typer.Option(help="A constraint that goes, as it was given.")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Ranges of a search space: a name or a YAML file.")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all.", min=1)] = None,
    max_concurrent: MaxConcurrent = None,
    max_hours: MaxHours = None,
    max_gpu_hours: MaxGpuHours = None,
    patience: Patience = None,
    wait: Wait = 60.0,
) -> None:
    """Change what a study searches, its budgets or its parallelism, also while it runs."""
    from ucd_ray.tune.editing import edit
    from ucd_ray.tune.edits import Edit, edit_to
    from ucd_ray.tune.space import load_search_space
    from ucd_ray.tune.spec import parsed

    ranges = {key: read_range(key, text) for key, text in pairs("--search", search)}
    fixed = {key: parse_value(text) for key, text in pairs("--fix", fix)}
    wanted = Edit(
        hold=tuple(constraint or ()),
        lift=tuple(remove_constraint or ()),
        search=ranges,
        fix=fixed,
        add=tuple((key, parse_value(text)) for key, text in pairs("--add-choice", add_choice)),
        remove=tuple(
            (key, parse_value(text)) for key, text in pairs("--remove-choice", remove_choice)
        ),
        settings=study_settings(
            executor=None,
            trials=trials,
            max_concurrent=max_concurrent,
            max_hours=max_hours,
            max_gpu_hours=max_gpu_hours,
            patience=patience,
        ),
    )
    store = database()
    if space is not None:
        whole = edit_to(load_search_space(space), parsed(store.stored_spec(name)))
        merged: dict[str, Any] = {
            "search": {**whole.search, **ranges},
            "fix": {**whole.fix, **fixed},
        }
        merged["constraints"] = whole.constraints
        wanted = wanted.model_copy(update=merged)
    if wanted == Edit():
        raise ConfigError(
            "nothing to edit: give --search, --add-choice, --remove-choice, --fix, --constraint, "
            "--remove-constraint, --space or a budget"
        )
    tell(edit(store, name, wanted, wait_s=wait))


@study_app.command("enqueue")
@over_http("studies:study_enqueue")
def study_enqueue(name: Name, values: Set = None, wait: Wait = 60.0) -> None:
    """Queue a trial with these params, also outside of their ranges; the sampler adds the others."""
    from ucd_ray.tune.editing import enqueue

    params = read_values(values)
    if not params:
        raise ConfigError("nothing to queue: give params as --set KEY=VALUE")
    tell(enqueue(database(), name, params, wait_s=wait))


def pairs(option: str, texts: Sequence[str] | None) -> list[tuple[str, str]]:
    """KEY=VALUE options.  Raises ConfigError."""
    found = []
    for text in texts or ():
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals and value):
            raise ConfigError(f"{option} '{text}' must be KEY=VALUE, such as kd.weight=1..300,log")
        found.append((key, value))
    return found


def read_range(key: str, text: str) -> Any:
    """The parameter that `1..300,log`, `1..9,int,step=2` or `[256, 512, null]` describes."""
    from pydantic import ValidationError

    from ucd_ray.recipe import describe
    from ucd_ray.tune.parameter import Parameter

    try:
        return Parameter.model_validate(_fields(key, text))
    except ValidationError as error:
        raise ConfigError(f"--search {key}={text}: {describe(error)}") from None


def _fields(key: str, text: str) -> dict[str, Any]:
    choices = parse_value(text)
    if isinstance(choices, list):
        return {"choices": choices}
    ends, *flags = (part.strip() for part in text.split(","))
    low, dots, high = ends.partition("..")
    fields: dict[str, Any] = {"low": low, "high": high}
    known = dots == ".."
    for flag in flags:
        option, equals, value = flag.partition("=")
        own = {"log": ("log", True), "int": ("type", "int"), "step=": ("step", value)}
        known &= option + equals in own
        fields |= dict([own.get(option + equals, ("", ""))])
    with contextlib.suppress(ValueError):
        numbers = {k: float(v) for k, v in fields.items() if k in ("low", "high", "step")}
        if known:
            return {**fields, **numbers}
    raise ConfigError(f"--search {key}={text}: a range is {RANGE}")
