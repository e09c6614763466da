"""`ucd-ray report`, and the charts of `ucd-ray results`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ucd_ray.cli.remote import over_http
from ucd_ray.cli.shared import Address, say_beside
from ucd_ray.errors import ConfigError

if TYPE_CHECKING:
    from ucd_ray.tune.charts import Source

Picture = Annotated[
    Path | None, typer.Option(help="PNG with images, truth and the best trial's predictions.")
]
Plots = Annotated[
    Path | None, typer.Option(help="Directory to write charts to, each as HTML and PNG.")
]
ChartNames = Annotated[
    list[str] | None,
    typer.Option("--chart", help="Only this chart of --plots; may be repeated.", metavar="NAME"),
]
OneObjective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        help="Of several objectives, the one that charts of --plots are about; default: each.",
        metavar="METRIC",
    ),
]
Finetune = Annotated[
    bool,
    typer.Option("--finetune", help="Before, train the best trial's recipe without distillation."),
]


@over_http("report:report")
def report(
    study: Annotated[str, typer.Argument(help="Name of the study.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: STUDY.html in this directory.")
    ] = None,
    finetune: Finetune = False,
    address: Address = None,
) -> None:
    """Write one HTML file with the tables and charts of a study; it needs no network."""
    from ucd_ray.tune.report import check_place, write_report

    path = out or Path(f"{study}.html")
    check_place(path)
    source = _source(study)
    if finetune:
        _train_finetuned(source, address)
    done = write_report(source, path)
    say_beside(f"wrote {path} ({done.size / 1e6:.1f} MB) with {len(done.written)} charts")
    _say_missing(done.not_drawn)


def write_charts(
    study: str,
    picture: Path | None,
    plots: Path | None,
    names: list[str],
    *,
    objective: str | None,
    finetune: bool,
) -> None:
    """What `ucd-ray results` writes beside its table.  Raises ConfigError, StudyError."""
    if plots is None and (names or objective is not None):
        option = "--chart names" if names else "--objective chooses"
        raise ConfigError(f"{option} charts of --plots DIR; give a directory")
    if plots is None and picture is None:
        if finetune:
            raise ConfigError("--finetune is for the charts of --plots DIR or --picture FILE")
        return
    from ucd_ray.tune.charts import drawings
    from ucd_ray.tune.report import write_picture, write_plots

    source = _source(study)
    assert drawings(source, names, objective)  # raises before anything is trained
    if finetune:
        _train_finetuned(source, None)
    if picture is not None:
        write_picture(source, picture)
        say_beside(f"wrote {picture}")
    if plots is not None:
        done = write_plots(source, plots, names, objective)
        say_beside(f"wrote {len(done.written)} charts to {plots}")
        _say_missing(done.not_drawn)


def _source(study: str) -> Source:
    """The trials of a study, of which at least one has finished."""
    from ucd_ray.tune.charts import Source
    from ucd_ray.tune.database import Database
    from ucd_ray.tune.places import places
    from ucd_ray.tune.report import check_finished

    source = Source(Database(places().database), study)
    check_finished(source)
    return source


def _train_finetuned(source: Source, address: str | None) -> None:
    from ucd_ray.tune.charts.predictions import train_finetuned

    train_finetuned(source, address=address, console=Console(stderr=True))


def _say_missing(not_drawn: dict[str, str]) -> None:
    for name, why in not_drawn.items():
        say_beside(f"not drawn: {name}: {why}")
