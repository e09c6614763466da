"""Charts and reports of studies whose trials are measured several times."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.tune.test_bridge import epoch
from tests.tune.test_replicate_book import measure, open_runs, take
from ucd_ray.drawing.chart import Line, Plane, Points
from ucd_ray.tune.charts import Source, chart_of
from ucd_ray.tune.report import write_report

ABOUT: dict[str, Any] = {
    **{"scenario": "shapes-8-2", "setting": "overlapped", "method": "mib+ucd", "steps": 2},
    **{"select_on": "holdout", "objective": "miou_all", "direction": "maximize"},
}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Three complete trials of three replicates each, and one that racing dropped after two."""
    book = open_runs(tmp_path)
    book.trials.database.save_spec("study", book.trials.spec.model_dump_json(), ABOUT)
    for values in ((50.0, 51.0, 52.0), (53.0, 54.0, 55.0), (52.0, 55.5, 53.0)):
        measure(book, *values)
    run = take(book)
    assert not book.report(run, epoch(1, 5.0))
    book.report(run, {"kind": "done", "value": 10.0})
    book.close(run)
    run = take(book)
    book.report(run, {"kind": "done", "value": 12.0})
    book.close(run)
    return Source(book.trials.database, "study")


def marks(source: Source, name: str, kind: type) -> dict[str, Any]:
    panel = chart_of(source, name).panels[0]
    assert isinstance(panel, Plane)
    return {mark.name: mark for mark in panel.marks if isinstance(mark, kind)}


def test_history_has_means_and_a_mark_for_each_replicate(source: Source) -> None:
    points = marks(source, "history", Points)
    assert list(points["complete"].y) == [51.0, 54.0, 53.5]
    each = points["each replicate"]
    assert list(zip(each.x, each.y, strict=True)) == [
        *((0, 50.0), (0, 51.0), (0, 52.0), (1, 53.0), (1, 54.0), (1, 55.0)),
        *((2, 52.0), (2, 55.5), (2, 53.0)),
    ]
    dropped = points["stopped early"]
    assert (list(dropped.x), list(dropped.y)) == ([3], [11.0]), "the mean of what was finished"
    note = chart_of(source, "history").note
    assert "dropped early, at the mean of their finished replicates" in note


def test_slices_show_each_replicate_at_its_params(source: Source) -> None:
    points = marks(source, "slice", Points)
    of_means = dict(zip(points[""].y, points[""].x, strict=True))
    each = points["each replicate"]
    there = {y for x, y in zip(each.x, each.y, strict=True) if x == of_means[54.0]}
    assert there >= {53.0, 54.0, 55.0}
    assert len(each.y) == 9


def test_a_curve_is_one_run(source: Source) -> None:
    lines = marks(source, "intermediate", Line)
    (line,) = lines.values()
    assert [y for y in line.y if not math.isnan(y)] == [5.0]
    assert line.texts[0] == "trial 3-r0, epoch 1: 5.00"


def test_a_report_says_how_sure_the_best_is(source: Source, tmp_path: Path) -> None:
    write_report(source, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "each trial over 3 replicates, their mean counts" in text
    assert "trial 1 and trial 2 are not distinguishable" in text
