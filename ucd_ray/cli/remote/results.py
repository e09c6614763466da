"""`ucd-ray --server URL results`: tables of a service's studies, in every form."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucd_ray.cli.remote import connected
from ucd_ray.cli.shared import check_table_format, console, show
from ucd_ray.errors import ConfigError

if TYPE_CHECKING:
    from ucd_ray.client import Client, StudyView


def results(
    study: str | None,
    view: str,
    published: str | None,
    filters: list[str] | None,
    order_by: list[str] | None,
    columns: str | None,
    limit: int | None,
    best: int | None,
    background: str | None,
    all_rows: bool,
    output: str,
    out: Path | None,
    picture: Path | None,
    plots: Path | None,
    charts: list[str] | None,
    objective: str | None,
    finetune: bool,
) -> None:
    """A table of a study, its charts beside it, or published rows, as `ucd-ray results` has them."""
    from ucd_ray.tune.screen import BEST_FIRST, ROWS

    check_table_format(output)
    if (study is None) == (published is None):
        raise ConfigError("give either the name of a study or --published SCENARIO")
    if plots is None and (charts or objective is not None):
        raise ConfigError("--chart and --objective choose charts of --plots DIR; give a directory")
    if finetune and plots is None and picture is None:
        raise ConfigError("--finetune is for the charts of --plots DIR or --picture FILE")
    on_screen = output == "table"
    form = "arrow-stream" if on_screen else output
    chosen: dict[str, Any] = {"filter": filters, "columns": columns}
    chosen["order_by"] = order_by or (
        [*BEST_FIRST] if on_screen and study and view == "trials" else None
    )
    chosen["limit"] = limit or (ROWS + 1 if on_screen else None)
    chosen |= {"best": best, "background": background, "all_rows": all_rows or None}
    with connected() as service:
        if study is None:
            assert published is not None
            if plots is not None or picture is not None:
                raise ConfigError(
                    "--plots and --picture draw charts of a study, not of published rows"
                )
            if any(value for name, value in chosen.items() if name != "limit") or limit:
                raise ConfigError("with --server, --published has all rows: use --format csv")
            title, pieces = f"published: {published}", service.published(published, form=form)
        else:
            title = f"study {study}" + (f": {view}" if view != "trials" else "")
            found = service.find(study)
            pieces = service.pieces(found.id, view, form=form, **chosen)
            if picture is not None or plots is not None:
                _write_charts(service, found, picture, plots, charts, objective, finetune)
        if on_screen:
            show(_rows(pieces), title, output, out, limit=limit)
            if study is not None and view == "trials" and out is None:
                for line in service.standing(found.id):
                    console.print(line, highlight=False, soft_wrap=True)
        else:
            _write(pieces, out)


def _write_charts(
    service: Client,
    study: StudyView,
    picture: Path | None,
    plots: Path | None,
    names: list[str] | None,
    objective: str | None,
    finetune: bool,
) -> None:
    from ucd_ray.cli.remote import charts

    charts.check(study, picture, names, objective)
    if finetune:
        from ucd_ray.cli.remote.finetune import train_finetuned

        train_finetuned(service, study)
    if picture is not None:
        charts.write_picture(service, study, picture)
    if plots is not None:
        charts.write_charts(service, study, plots, names, objective)


def _rows(pieces: Iterator[bytes]) -> Any:
    import pyarrow as pa

    return pa.ipc.open_stream(pa.BufferReader(b"".join(pieces)))


def _write(pieces: Iterator[bytes], out: Path | None) -> None:
    from ucd_ray.tune.formats import replaced

    with replaced(out) if out else contextlib.nullcontext(sys.stdout.buffer) as sink:
        for piece in pieces:
            sink.write(piece)
        sink.flush()
