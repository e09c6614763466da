from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from tests.tune.charts.studies import make_study
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.tune.charts import CHARTS, Source, chart_of
from ucd_ray.tune.charts import source as module
from ucd_ray.tune.charts.source import thinned


def test_outcomes_and_trials_are_those_that_optuna_reads(tmp_path: Path) -> None:
    database = make_study(tmp_path)
    source = Source(database, "study")
    study = optuna.load_study(study_name="study", storage=database.optuna_storage())
    expected = study.get_trials()
    assert [(o.number, o.state, o.values) for o in source.outcomes] == [
        (t.number, t.state.name, tuple(t.values or ())) for t in expected
    ]
    assert source.drawn == [t for t in expected if t.state.name in ("COMPLETE", "PRUNED")]
    assert source.best.number == study.best_trial.number
    assert source.left_out == ""


def test_of_a_large_study_the_best_trials_and_others_evenly_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRAWN", 20)
    monkeypatch.setattr(module, "BEST", 5)
    source = Source(make_study(tmp_path, 60), "study")
    numbers = {t.number for t in source.drawn}
    assert {o.number for o in source.ranked()[:5]} <= numbers
    assert 15 <= len(numbers) <= 20
    assert len(source.even) == 15
    assert {0, 59} <= source.even
    assert f"{len(numbers)} of 54 trials are drawn: the best 5, and others" in source.left_out
    assert source.left_out in chart_of(source, "history").note


def test_another_study_in_the_database_is_left_alone(tmp_path: Path) -> None:
    make_study(tmp_path, 10, name="other", seed=1)
    source = Source(make_study(tmp_path, 20), "study")
    assert len(source.outcomes) == 20
    assert {t.number for t in source.drawn} <= set(range(20))


def test_means_are_taken_over_replicates(tmp_path: Path) -> None:
    database = make_study(tmp_path, 2, confusion=False)
    before = Source(database, "study").means(("miou_all",), "val")[0, 2, "miou_all"]
    measured = {"means": {"miou_all": before + 10}, "iou": {}, "forgetting": {}}
    report = {"step": 2, "cached": False, "seconds": 1.0, "images": 1, "iterations": 1}
    report |= {"entries": [], "select": measured, "val": {**measured, "iou": {"0": 1.0}}}
    report["select"] = report["val"]
    database.add_step("study", 0, report, replicate=1)
    after = Source(database, "study").means(("miou_all",), "val")[0, 2, "miou_all"]
    assert after == pytest.approx(before + 5)


def test_thinned_keeps_both_ends_and_the_order() -> None:
    assert thinned(range(5), 9) == [0, 1, 2, 3, 4]
    found = thinned(range(1000), 7)
    assert (found[0], found[-1], len(set(found))) == (0, 999, 7)
    assert found == sorted(found)


def test_a_study_or_chart_that_is_not_there_is_refused(tmp_path: Path) -> None:
    database = make_study(tmp_path, 1)
    with pytest.raises(StudyError, match="no study 'stdy' in"):
        Source(database, "stdy")
    with pytest.raises(ConfigError, match="unknown chart 'histroy'; did you mean 'history'"):
        chart_of(Source(database, "study"), "histroy")
    assert len(CHARTS) == 11
