"""`ucd-ray results`: the tables of a study, and published rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ucd_ray.cli.remote import over_http
from ucd_ray.cli.report import (
    ChartNames,
    Finetune,
    OneObjective,
    Picture,
    Plots,
    write_charts,
)
from ucd_ray.cli.shared import TABLE_FORMATS, check_table_format, console, show
from ucd_ray.errors import ConfigError


@over_http("results:results")
def results(
    study: Annotated[str | None, typer.Argument(help="Name of the study.")] = None,
    view: Annotated[
        str,
        typer.Option(
            help="trials; runs (a trial has one per replicate); steps (of each run); classes (by step); "
            "paper (the best trials beside published rows)."
        ),
    ] = "trials",
    published: Annotated[
        str | None,
        typer.Option(help="Show the published rows of a scenario instead.", metavar="SCENARIO"),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Only rows with COLUMN=VALUE, or !=, >, >=, <, <=; may be repeated.",
            metavar="COLUMN=VALUE",
        ),
    ] = None,
    order_by: Annotated[
        list[str] | None,
        typer.Option(help="Column; -COLUMN: largest first; may be repeated.", metavar="COLUMN"),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Only these columns.", metavar="COLUMN,COLUMN...")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Rows at most.", min=1)] = None,
    best: Annotated[
        int | None,
        typer.Option(
            help="Trials in the paper table; default: 3, or the Pareto set of several objectives.",
            min=1,
        ),
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(help="Whether means of the paper table count it: without (default) or with."),
    ] = None,
    all_rows: Annotated[
        bool,
        typer.Option(
            "--all-rows", help="Also published rows that the paper table refuses, and why."
        ),
    ] = False,
    output: Annotated[str, typer.Option("--format", help=", ".join(TABLE_FORMATS))] = "table",
    out: Annotated[Path | None, typer.Option(help="File to write; default: the terminal.")] = None,
    picture: Picture = None,
    plots: Plots = None,
    charts: ChartNames = None,
    objective: OneObjective = None,
    finetune: Finetune = False,
) -> None:
    """Show a table of a study: trials, steps, classes, or the table of a paper; or published rows."""
    check_table_format(output)
    if (study is None) == (published is None):
        raise ConfigError("give either the name of a study or --published SCENARIO")
    paper = {"best": best, "background": background, "all_rows": all_rows or None}
    options = {name: value for name, value in paper.items() if value is not None}
    if options and view != "paper":
        given = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise ConfigError(f"{given}: only --view paper has it, not '{view}'")
    from ucd_ray.tune.screen import BEST_FIRST, ROWS

    on_screen = output == "table"
    wanted: dict[str, Any] = {
        "filters": filters or (),
        "order_by": order_by or (BEST_FIRST if on_screen and study and view == "trials" else ()),
        "columns": [name.strip() for name in columns.split(",")] if columns else (),
        "limit": limit or (ROWS + 1 if on_screen else None),  # one more: the table says so
    }
    if study is None:
        assert published is not None
        show(_published(published, wanted), f"published: {published}", output, out, limit=limit)
        return
    rows = _rows(study, view, {**wanted, **options})
    write_charts(study, picture, plots, charts or [], objective=objective, finetune=finetune)
    show(
        rows, f"study {study}" + (f": {view}" if view != "trials" else ""), output, out, limit=limit
    )
    if on_screen and view == "trials" and out is None:
        from ucd_ray.tune.database import Database
        from ucd_ray.tune.places import places
        from ucd_ray.tune.standing import best_two

        for line in best_two(Database(places().database), study):
            console.print(line, highlight=False, soft_wrap=True)


def _rows(study: str, view: str, wanted: dict[str, Any]) -> Any:
    """Record batches of a view of a study."""
    from ucd_ray.tune.database import Database
    from ucd_ray.tune.places import places
    from ucd_ray.tune.results import read

    return read(Database(places().database), study, view, **wanted)


def _published(scenario: str, wanted: dict[str, Any]) -> Any:
    """Record batches of the published rows of a scenario."""
    from ucd_ray.tune.published_view import published_view
    from ucd_ray.tune.selection import first_batch, select

    found = first_batch(select(published_view(scenario), **wanted))
    if found is None:
        shown = " and ".join(f"'{text}'" for text in wanted["filters"])
        raise ConfigError(f"no published row of '{scenario}' matches {shown}")
    return found
