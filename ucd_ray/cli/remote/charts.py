"""`ucd-ray --server URL results --plots`: the charts that a service draws, written here."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ucd_ray.cli.shared import say_beside
from ucd_ray.drawing.interactive import page_of
from ucd_ray.errors import RequestRefused, StudyError
from ucd_ray.tune.charts import CHARTS, OF_AN_OBJECTIVE, check_chart
from ucd_ray.tune.goals import goals_of
from ucd_ray.tune.report import check_place, make_directory, save

if TYPE_CHECKING:
    from ucd_ray.client import Client, StudyView

EMPTY = "NOTHING_TO_DRAW"  # code of the refusal


def check(
    study: StudyView, picture: Path | None, names: list[str] | None, objective: str | None
) -> None:
    """Raises ConfigError for an unknown chart or objective, or a file that cannot be written."""
    for name in names or ():
        check_chart(name)
    if objective is not None and study.spec:
        goals_of(study.spec).place_of(objective, study=study.name)
    if picture is not None:
        check_place(picture)


def write_charts(
    service: Client,
    study: StudyView,
    plots: Path,
    names: list[str] | None,
    objective: str | None,
) -> None:
    """Writes charts as HTML and PNG, `plotly.min.js` beside them, named as `ucd-ray results` does.

    Raises ConfigError for a directory that cannot be written, StudyError if a chart that was asked for has
    nothing to show.
    """
    chosen = [(name, of) for name in names or CHARTS for of in _objectives(study, name)]
    written = 0
    make_directory(plots)
    for name, each in chosen:
        if objective is not None and each not in (None, objective):
            continue
        try:
            _write(service, study, plots, name, each if objective is None else objective)
        except RequestRefused as refused:
            if refused.code != EMPTY:
                raise
            if names:
                raise StudyError(f"chart '{name}': {refused}") from None
            say_beside(f"not drawn: {name}: {refused}")
        else:
            written += 1
    say_beside(f"wrote {written} charts to {plots}")


def _objectives(study: StudyView, name: str) -> list[str | None]:
    """What a chart is drawn for: each of several objectives, or once."""
    several = (study.spec or {}).get("objectives") or ()
    return [*several] if len(several) > 1 and name in OF_AN_OBJECTIVE else [None]


def _write(
    service: Client, study: StudyView, plots: Path, name: str, objective: str | None
) -> None:
    wanted = objective if name in OF_AN_OBJECTIVE else None
    text = service.plot(study.id, name, form="json", objective=wanted).decode()
    layout = json.loads(text)["layout"]
    called = layout["meta"]["name"]
    page = page_of(text, title=html.unescape(layout["title"]["text"]), note=layout["meta"]["note"])
    save(page.encode(), plots / f"{called}.html")
    png = service.plot(study.id, name, form="png", objective=wanted)
    save(png, plots / f"{called}.png")


def write_picture(service: Client, study: StudyView, picture: Path) -> None:
    """Writes the best trial's predictions as PNG.  Raises ConfigError, RequestRefused."""
    save(service.plot(study.id, "predictions", form="png"), picture)
    say_beside(f"wrote {picture}")
