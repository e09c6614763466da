from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from tests.tune.charts.studies import make_study
from ucd_ray.drawing.chart import Line, Plane, Points
from ucd_ray.tune.charts import NotDrawn, Source, chart_of
from ucd_ray.tune.charts import trials as trial_charts


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(make_study(tmp_path), "study")


def only(source: Source, name: str) -> Plane:
    (panel,) = chart_of(source, name).panels
    assert isinstance(panel, Plane)
    return panel


def points(plane: Plane, name: str) -> Points:
    (found,) = (m for m in plane.marks if isinstance(m, Points) and m.name == name)
    return found


def line(plane: Plane, name: str) -> Line:
    (found,) = (m for m in plane.marks if isinstance(m, Line) and m.name == name)
    return found


def test_the_history_has_every_value_and_the_best_until_then(source: Source) -> None:
    plane = only(source, "history")
    complete = [o for o in source.outcomes if o.state == "COMPLETE"]
    marks = points(plane, "complete")
    assert list(zip(marks.x, marks.y, strict=True)) == [(o.number, o.values[0]) for o in complete]
    best = line(plane, "best so far")
    for outcome in complete:
        until = max(o.values[0] for o in complete if o.number <= outcome.number)
        drawn = [y for x, y in zip(best.x, best.y, strict=True) if x <= outcome.number][-1]
        assert drawn == until
    assert best.x[-1] == source.outcomes[-1].number


def test_stopped_trials_stand_at_their_last_value_and_failed_ones_are_counted(
    source: Source,
) -> None:
    marks = points(only(source, "history"), "stopped early")
    pruned = [t for t in source.drawn if t.state.name == "PRUNED"]
    assert list(marks.x) == [t.number for t in pruned]
    assert list(marks.y) == [t.intermediate_values[3] for t in pruned]
    assert "4 trials failed and have no value." in chart_of(source, "history").note


def test_titles_say_study_setting_and_images(source: Source) -> None:
    chart = chart_of(source, "history")
    assert chart.subtitle == "study: shapes-8-2, overlapped, mib+ucd; on hold-out images"
    assert only(source, "history").y.title == "mIoU of all classes [%]"
    source.about["select_on"] = "val"
    assert "on val images, which the search saw" in chart_of(source, "history").subtitle


def test_intermediate_values_break_between_trials_and_the_best_is_named(source: Source) -> None:
    plane = only(source, "intermediate")
    best = line(plane, f"best: trial {source.best.number}")
    (trial,) = (t for t in source.drawn if t.number == source.best.number)
    assert list(best.y[:-1]) == [trial.intermediate_values[e] for e in range(1, 9)]
    lines = [m for m in plane.marks if isinstance(m, Line)]
    told = sum(len(t.intermediate_values) for t in source.drawn)
    assert sum(not math.isnan(y) for m in lines for y in m.y) == told
    breaks = sum(math.isnan(y) for m in lines for y in m.y)
    assert breaks == sum(bool(t.intermediate_values) for t in source.drawn)


def test_of_many_trials_the_best_and_some_others_are_drawn(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_charts, "LINES", 12)
    plane = only(source, "intermediate")
    lines = [m for m in plane.marks if isinstance(m, Line)]
    assert sum(math.isnan(y) for m in lines for y in m.y) == 12
    assert line(plane, f"best: trial {source.best.number}")
    assert "12 of 36 trials are drawn." in chart_of(source, "intermediate").note


def test_without_objectives_in_conflict_old_stands_against_new(source: Source) -> None:
    plane = only(source, "pareto")
    assert (plane.x.title, plane.y.title) == ("mIoU of old classes [%]", "mIoU of new classes [%]")
    found = source.means(("miou_old", "miou_new"), "select")
    pairs = {(found[n, 2, "miou_old"], found[n, 2, "miou_new"]) for n, _, _ in found}
    kept = points(plane, "not beaten")
    best = {a for a in pairs if not any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in pairs)}
    assert set(zip(kept.x, kept.y, strict=True)) == best
    beaten = points(plane, "beaten by another")
    assert set(zip(beaten.x, beaten.y, strict=True)) == pairs - best


def test_studies_without_complete_trials_say_so(tmp_path: Path) -> None:
    source = Source(make_study(tmp_path, 0), "study")
    for name, chart in itertools.product(("history", "slice"), [chart_of]):
        with pytest.raises(NotDrawn, match="study 'study' has no complete trial"):
            chart(source, name)
    with pytest.raises(NotDrawn, match="no trial has intermediate values"):
        chart_of(source, "intermediate")
