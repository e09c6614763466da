"""The report of a study: one HTML file with everything inside."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ucd_ray.drawing.interactive import for_script, plotly_js
from ucd_ray.tune.charts import Source, drawings
from ucd_ray.tune.database import Database
from ucd_ray.tune.event_data import shown_state
from ucd_ray.tune.report.plots import Written, check_finished, check_place, made, save
from ucd_ray.tune.report.tables import headline, report_tables


def write_report(source: Source, path: Path) -> Written:
    """Writes the report of a study.

    Raises StudyError if no trial has finished, ConfigError if the file cannot be written.
    """
    check_finished(source)
    check_place(path)
    done = Written()
    done.size = save(_page(source, done), path)
    return done


def report_of(url: str, study: str) -> bytes:
    """The same of a study of the database at `url`.  Raises StudyError if no trial has finished."""
    source = Source(Database(url), study)
    check_finished(source)
    return _page(source, Written())


def _page(source: Source, done: Written) -> bytes:
    charts = [
        {"name": c.name, "title": c.title, "note": c.note, "figure": Markup(for_script(c))}
        for c in made(drawings(source), done)
    ]
    return _render(source, charts=charts, not_drawn=done.not_drawn)


def _render(source: Source, **content: Any) -> bytes:
    environment = Environment(
        loader=PackageLoader("ucd_ray.tune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    states = Counter(shown_state(o.state) for o in source.outcomes)
    text = environment.get_template("report.html.j2").render(
        study=source.study,
        about={key: source.about.get(key, "") for key in ("scenario", "setting", "method")},
        headline=headline(source),
        on_val=source.about.get("select_on") == "val",
        states=", ".join(f"{count:,} {state}" for state, count in states.most_common()),
        total=len(source.outcomes),
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
        tables=report_tables(source),
        plotly=Markup(plotly_js().replace("</script", "<\\/script")),
        **content,
    )
    return text.encode()
