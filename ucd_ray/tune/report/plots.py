"""The charts of a study as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ucd_ray.drawing import drawn
from ucd_ray.drawing.chart import Chart
from ucd_ray.drawing.interactive import PLOTLY_JS, plotly_js
from ucd_ray.errors import ConfigError, StudyError, UcdRayError
from ucd_ray.tune.charts import Source, chart_of, drawings
from ucd_ray.tune.formats import replaced


@dataclass
class Written:
    """What was written: names of charts, why others were not drawn, bytes."""

    written: list[str] = field(default_factory=list)
    not_drawn: dict[str, str] = field(default_factory=dict)
    size: int = 0


def write_plots(
    source: Source, directory: Path, names: Sequence[str] = (), objective: str | None = None
) -> Written:
    """Writes charts as HTML and PNG, `plotly.min.js` beside them once.

    names: of charts; none: all; objective: of several, the one that charts of one are about; None: each
    Raises ConfigError for an unknown chart or objective or a directory that cannot be written,
    StudyError if no trial has finished, or if a chart that was asked for has nothing to show.
    """
    wanted = drawings(source, names, objective)
    check_finished(source)
    done = Written(size=make_directory(directory))
    for chart in made(wanted, done, strict=bool(names)):
        for form in ("html", "png"):
            done.size += save(drawn(chart, form), directory / f"{chart.name}.{form}")
    return done


def make_directory(directory: Path) -> int:
    """Makes a directory for charts, with `plotly.min.js`.  Returns its size.  Raises ConfigError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to '{directory}': {error.strerror}") from None
    return save(plotly_js().encode(), directory / PLOTLY_JS)


def write_picture(source: Source, path: Path) -> None:
    """Writes the best trial's predictions as PNG.  Raises ConfigError, StudyError."""
    save(drawn(chart_of(source, "predictions"), "png"), path)


def made(
    wanted: Mapping[str, Callable[[], Chart]], done: Written, *, strict: bool = False
) -> list[Chart]:
    """The charts that are wanted, noted in `done`.  strict: raises StudyError if one is empty"""
    found = []
    for name, make in wanted.items():
        try:
            found.append(make())
            done.written.append(name)
        except UcdRayError as error:
            if strict:
                raise
            done.not_drawn[name] = str(error)
    return found


def check_finished(source: Source) -> None:
    """Raises StudyError if no trial of the study has finished."""
    if any(outcome.state in ("COMPLETE", "PRUNED", "FAIL") for outcome in source.outcomes):
        return
    study, there = source.study, len(source.outcomes)
    raise StudyError(
        f"study '{study}' has no finished trial to report{f' ({there} open)' if there else ''}; "
        f"`ucd-ray study show {study}` tells where it stands"
    )


def check_place(path: Path) -> None:
    """Raises ConfigError if a file cannot be there: refused before a long report is made."""
    if path.is_dir():
        raise ConfigError(f"cannot write '{path}': Is a directory")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"cannot write '{path}': there is no directory '{path.parent}'")


def save(content: bytes, path: Path) -> int:
    """Writes a file as a whole.  Returns its size in bytes.  Raises ConfigError."""
    with replaced(path) as sink:
        return sink.write(content)
