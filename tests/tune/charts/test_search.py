from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from tests.tune.charts.studies import make_study
from ucd_ray.drawing.chart import Bars, Parallel, Plane, Points, Surface
from ucd_ray.tune.charts import NotDrawn, Source, chart_of, search
from ucd_ray.tune.charts.params import importances, params_of
from ucd_ray.tune.database import Database


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(make_study(tmp_path), "study")


def known_study(folder: Path, trials: int = 40) -> Source:
    """value = 30 + 20 a; b and form do nothing."""
    database = make_study(folder, 0)
    random = np.random.default_rng(0)
    kinds = {
        "a": FloatDistribution(0, 1),
        "b": FloatDistribution(0.01, 1, log=True),
        "form": CategoricalDistribution(["standard", "authors"]),
    }
    study = optuna.load_study(study_name="study", storage=database.optuna_storage())
    for _ in range(trials):
        a = float(random.uniform())
        params = {"a": a, "b": float(10 ** random.uniform(-2, 0)), "form": "authors"}
        study.add_trial(create_trial(value=30 + 20 * a, params=params, distributions=kinds))
    return Source(Database(str(database.engine.url)), "study")


def test_the_param_that_decides_is_the_most_important(tmp_path: Path) -> None:
    found = importances(known_study(tmp_path))
    assert found[0].key == "a"
    assert found[0].share > 80
    assert sum(i.share for i in found) == pytest.approx(100)
    assert all(i.low <= i.high for i in found)
    (panel,) = chart_of(known_study(tmp_path / "again"), "importances").panels
    assert isinstance(panel, Plane)
    (bars,) = (m for m in panel.marks if isinstance(m, Bars))
    assert (panel.y.names[0], bars.values[0]) == ("a", found[0].share)


def test_importances_know_params_that_only_some_trials_have(source: Source) -> None:
    keys = {i.key for i in importances(source)}
    assert "ucd.weight" in keys
    assert keys == {p.key for p in params_of(source.valued)}
    assert (
        "With fewer than 50 trials this is a first guess." in chart_of(source, "importances").note
    )


def test_importances_need_trials(tmp_path: Path) -> None:
    source = Source(make_study(tmp_path, 3), "study")
    with pytest.raises(NotDrawn, match="importances need 4 complete trials; there are 3"):
        chart_of(source, "importances")
    assert chart_of(source, "slice").panels  # without an order of importance


def test_a_line_has_no_value_where_its_trial_has_no_such_param(source: Source) -> None:
    chart = chart_of(source, "parallel")
    (panel,) = chart.panels
    assert isinstance(panel, Parallel)
    place = [axis.label for axis in panel.axes].index("ucd.weight")
    having = [t for t in source.valued if "ucd.weight" in t.params]
    assert 0 < len(having) < len(source.valued)
    values = sorted(row[place] for row in panel.rows if not math.isnan(row[place]))
    assert values == sorted(t.params["ucd.weight"] for t in having)
    assert len(panel.rows) == len(source.valued)
    assert "Lines at 'not used' are trials without that param." in chart.note
    assert [row[-1] for row in panel.rows] == list(panel.values)


def test_choices_have_names_and_ranges_their_scale(source: Source) -> None:
    params = {p.key: p for p in params_of(source.valued)}
    assert params["ucd.max_old"].axis.names == ("256", "1024", "all")
    assert params["ucd.max_old"].axis.unit == "px"
    assert params["kd.weight"].axis.log
    assert (params["kd.weight"].axis.low, params["kd.weight"].axis.high) == (1, 200)
    assert params["optim.epochs_new"].axis.whole
    for trial in source.valued:
        choice = params["ucd.max_old"].choices[int(params["ucd.max_old"].place(trial))]
        assert choice == trial.params["ucd.max_old"]


def test_ranges_that_changed_are_drawn_at_their_widest(source: Source) -> None:
    wider = create_trial(
        value=1.0,
        params={"ucd.weight": 0.5, "ucd.max_old": 7},
        distributions={
            "ucd.weight": FloatDistribution(0.0, 1.0),
            "ucd.max_old": CategoricalDistribution([256, 7]),
        },
    )
    params = {p.key: p for p in params_of([*source.valued, wider])}
    assert (params["ucd.weight"].axis.low, params["ucd.weight"].axis.high) == (0.0, 1.0)
    assert params["ucd.max_old"].choices == (256, 1024, None, 7)


def test_a_slice_shows_the_trials_that_have_its_param(source: Source) -> None:
    panels = [p for p in chart_of(source, "slice").panels if isinstance(p, Plane)]
    by_key = {panel.x.label: panel for panel in panels}
    assert set(by_key) == {p.key for p in params_of(source.valued)}
    for key, panel in by_key.items():
        having = [t for t in source.valued if key in t.params]
        (marks,) = (m for m in panel.marks if isinstance(m, Points) and not m.name)
        assert list(marks.y) == [t.values[0] for t in having]
    assert len({(panel.y.low, panel.y.high) for panel in panels}) == 1


def test_the_contour_of_a_plane_is_that_plane(tmp_path: Path) -> None:
    chart = chart_of(known_study(tmp_path), "contour")
    (panel,) = chart.panels
    assert isinstance(panel, Plane)
    assert {panel.x.label, panel.y.label} >= {"a"}
    (surface,) = (m for m in panel.marks if isinstance(m, Surface))
    a_across = panel.x.label == "a"
    found = 0
    for row, y in zip(surface.values, surface.y, strict=True):
        for value, x in zip(row, surface.x, strict=True):
            if not math.isnan(value):
                assert value == pytest.approx(30 + 20 * (x if a_across else y), abs=0.01)
                found += 1
    assert found > 1000


def test_nothing_is_interpolated_between_choices(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ["ucd.max_old", "kd.weight"]
    monkeypatch.setattr(
        search,
        "most_important",
        lambda source, params, index: [p for key in order for p in params if p.key == key],
    )
    chart = chart_of(source, "contour")
    (panel,) = chart.panels
    assert isinstance(panel, Plane)
    assert [type(mark) for mark in panel.marks] == [Points, Points]
    assert "a param has no order" in chart.note


def test_the_best_trials_differ_in_colour_though_others_are_far_below(source: Source) -> None:
    scale = search.scale_of(source.objectives[0], [0.0, *range(90, 130)])
    assert scale.low > 80
    assert scale.high == 129
