"""Charts and reports of studies that are after several numbers, or have limits on results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.tune.test_bridge import open_book, spec_of
from tests.tune.test_objectives import SCALAR, measure
from ucd_ray.drawing.chart import Bars, Line, Parallel, Plane, Points, Surface
from ucd_ray.errors import ConfigError
from ucd_ray.tune.best import measured_trial
from ucd_ray.tune.charts import CHARTS, NotDrawn, Source, chart_of, drawings
from ucd_ray.tune.charts.words import measure_of
from ucd_ray.tune.report import write_plots, write_report

# miou_old (more is better), forgetting (less), what the scalar measured after both epochs.
RESULTS = ((30.0, 9.0, 20.0), (20.0, 1.0, 21.0), (25.0, 4.0, 22.0), (19.0, 5.0, 23.0))
ABOUT: dict[str, Any] = {
    **{"scenario": "shapes-8-2", "setting": "overlapped", "method": "mib+ucd", "steps": 2},
    **{"select_on": "holdout", "objective": "miou_old, forgetting"},
}


def source_of(folder: Path, **values: Any) -> Source:
    """A study after old mIoU and forgetting: four complete trials, of which three beat each other."""
    book = open_book(folder, spec_of(**{**SCALAR, **values}))
    book.database.save_spec("study", book.spec.model_dump_json(), ABOUT)
    for old, forgetting, scalar in RESULTS:
        measure(book, old, forgetting, curve=(scalar - 5, scalar))
    measure(book, 99.0, 0.0, curve=(1.0,))  # the pruner stops it
    return Source(book.database, "study")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return source_of(tmp_path)


def marks(source: Source, name: str, kind: type, objective: str | None = None) -> list[Any]:
    panel = chart_of(source, name, objective).panels[0]
    assert isinstance(panel, Plane)
    return [mark for mark in panel.marks if isinstance(mark, kind)]


def test_a_chart_of_one_objective_is_there_for_each(source: Source) -> None:
    both = ("miou_old", "forgetting")
    several = ("history", "importances", "parallel", "slice", "contour")
    alone = [name for name in CHARTS if name not in several]
    names = [f"{name}-{metric}" for name in several for metric in both]
    assert list(drawings(source)) == [*names, *alone]
    assert list(drawings(source, ["slice", "pareto"])) == [*names[6:8], "pareto"]
    assert list(drawings(source, objective="forgetting"))[:2] == [names[1], names[3]]
    with pytest.raises(ConfigError, match="no objective 'forgeting'; did you mean 'forgetting'"):
        drawings(source, objective="forgeting")


def test_history_follows_the_direction_of_its_objective(source: Source) -> None:
    for index, objective in enumerate(("miou_old", "forgetting")):
        chart = chart_of(source, "history", objective)
        (complete,) = (
            m for m in marks(source, "history", Points, objective) if m.name == "complete"
        )
        assert list(complete.y) == [row[index] for row in RESULTS]
        (best,) = marks(source, "history", Line, objective)
        assert best.y[-1] == (30.0, 1.0)[index]
        assert chart.name == f"history-{objective}"
    assert chart.title.endswith(": forgetting")
    assert isinstance(chart.panels[0], Plane)
    assert chart.panels[0].y.title == "forgetting [points]"


def test_of_trials_that_are_equal_in_one_objective_the_best_is_that_of_the_pareto_set(
    tmp_path: Path,
) -> None:
    book = open_book(tmp_path, spec_of(**SCALAR))
    book.database.save_spec("study", book.spec.model_dump_json(), ABOUT)
    for forgetting in (9.0, 1.0, 5.0):
        measure(book, 30.0, forgetting)
    source = Source(book.database, "study")
    assert [o.number for o in source.ranked()] == [1, 2, 0]
    assert [source.best] == source.front
    assert source.best.number == measured_trial(book.database, "study").number


def test_values_of_the_scalar_are_not_shown_as_an_objective(source: Source) -> None:
    for objective in ("miou_old", "forgetting"):
        names = [m.name for m in marks(source, "history", Points, objective)]
        assert "stopped early" not in names
    old = source_of(
        Path(str(source.database.engine.url.database)).parent / "old", prune_on="miou_old"
    )
    (stopped,) = (m for m in marks(old, "history", Points) if m.name == "stopped early")
    assert (list(stopped.x), list(stopped.y)) == ([4], [1.0])


def test_slice_contour_and_parallel_show_the_chosen_objective(source: Source) -> None:
    values = [row[1] for row in RESULTS]
    points = marks(source, "slice", Points, "forgetting")
    assert list(points[0].y) == values
    assert points[1].name == "best: trial 1"
    panel = chart_of(source, "parallel", "forgetting").panels[0]
    assert isinstance(panel, Parallel)
    assert panel.axes[-1].title == "forgetting [points]"
    assert sorted(panel.values) == sorted(values)
    contour = chart_of(source, "contour", "forgetting")
    assert contour.scale is not None
    assert (contour.scale.label, contour.scale.unit) == ("forgetting", "points")
    assert marks(source, "contour", Points, "forgetting")[1].name == "best of them: trial 1"
    assert len(marks(source, "contour", Surface, "forgetting")) <= 1


def test_each_objective_has_its_own_importances(source: Source) -> None:
    (old,) = marks(source, "importances", Bars)
    (forgetting,) = marks(source, "importances", Bars, "forgetting")
    assert sum(old.values) == pytest.approx(100)
    assert sum(forgetting.values) == pytest.approx(100)
    assert list(old.values) != list(forgetting.values)


def test_intermediate_values_are_those_of_the_scalar(source: Source) -> None:
    lines = {line.name: line for line in marks(source, "intermediate", Line)}
    assert set(lines) == {"complete", "stopped early", "Pareto set"}
    assert [y for y in lines["complete"].y if not math.isnan(y)] == [18.0, 23.0]
    assert [y for y in lines["stopped early"].y if not math.isnan(y)] == [1.0]
    told = [y for y in lines["Pareto set"].y if not math.isnan(y)]
    assert told == [15.0, 20.0, 16.0, 21.0, 17.0, 22.0]
    chart = chart_of(source, "intermediate")
    assert isinstance(chart.panels[0], Plane)
    assert chart.panels[0].y.title == "mIoU of all classes [%]"


def test_the_pareto_chart_has_the_objectives_and_their_set(source: Source) -> None:
    points = {p.name: p for p in marks(source, "pareto", Points)}
    assert sorted(zip(points["not beaten"].x, points["not beaten"].y, strict=True)) == [
        *((20.0, 1.0), (25.0, 4.0), (30.0, 9.0)),
    ]
    assert list(points["beaten by another"].x) == [19.0]
    three = source_of(
        Path(str(source.database.engine.url.database)).parent / "three",
        objectives=["miou_old", "forgetting", "seconds"],
    )
    chart = chart_of(three, "pareto")
    assert [(p.x.unit, p.y.unit) for p in chart.panels if isinstance(p, Plane)] == [
        *(("%", "points"), ("%", "s"), ("points", "s")),
    ]


def test_what_breaks_a_limit_is_marked_and_never_the_best(tmp_path: Path) -> None:
    source = source_of(tmp_path, constraints=["forgetting <= 6"])
    assert [o.number for o in source.complete if not o.keeps_limits] == [0]
    assert [o.number for o in source.front] == [2, 1]
    assert source.best.number == 2
    for name in ("history", "pareto"):
        (out,) = (m for m in marks(source, name, Points) if m.name == "breaks a limit")
        assert out.symbol == "cross"
        assert 30.0 in {*out.x, *out.y}
    (best,) = marks(source, "history", Line)
    assert max(best.y) == 25.0
    none = source_of(tmp_path / "none", constraints=["forgetting <= 0.5"])
    with pytest.raises(NotDrawn, match=r"has no complete trial that keeps forgetting <= 0\.5"):
        chart_of(none, "slice")
    assert chart_of(none, "pareto").panels


def test_a_report_has_the_charts_of_each_objective(source: Source, tmp_path: Path) -> None:
    done = write_report(source, tmp_path / "report.html")
    assert {"slice-miou_old", "slice-forgetting", "pareto", "intermediate"} <= set(done.written)
    text = (tmp_path / "report.html").read_text()
    assert "3 trials are in the Pareto set" in text
    assert 'id="slice-forgetting"' in text
    assert "importance for forgetting [%]" in text
    assert "maximises miou_old, minimises forgetting" in text


def test_charts_of_a_chosen_objective_are_written_alone(source: Source, tmp_path: Path) -> None:
    done = write_plots(source, tmp_path / "plots", ["slice"], "forgetting")
    assert done.written == ["slice-forgetting"]
    assert (tmp_path / "plots/slice-forgetting.png").exists()


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("miou_all", "mIoU of all classes [%]"),
        ("miou_base_bg", "mIoU of the classes of step 0 and background [%]"),
        ("step1_miou_new", "mIoU of new classes after step 1 [%]"),
        ("drop", "mIoU that the classes of step 0 lost [points]"),
        ("forgetting", "forgetting [points]"),
        ("seconds", "training time [s]"),
        ("step1_seconds", "training time of step 1 [s]"),
    ],
)
def test_every_metric_has_words_and_a_unit(metric: str, title: str) -> None:
    found = measure_of(metric)
    assert f"{found.label} [{found.unit}]" == title
