from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from tests.tune.charts.studies import make_study
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.tune.charts import Source
from ucd_ray.tune.report import write_plots, write_report

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    database = make_study(tmp_path, 12)
    study = optuna.load_study(study_name="study", storage=database.optuna_storage())
    attributes = {"code": "USER_ERROR", "reason": EVIL}
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=attributes))
    return Source(database, "study")


def test_a_report_holds_tables_and_charts_and_asks_for_nothing(
    source: Source, tmp_path: Path
) -> None:
    done = write_report(source, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "history" in done.written
    assert set(done.not_drawn) == {"predictions"}  # nothing was trained
    assert done.not_drawn["predictions"] in text.replace("&#39;", "'")
    assert len(re.findall(r"plotly\.js v\d", text)) == 1
    assert text.count("Plotly.newPlot(") >= len(done.written)
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", text) == []
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    for title in ("Best trials", "Params", "What was measured on what", "Trials without a value"):
        assert f">{title}</h2>" in text
    assert EVIL not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert f"trial {source.best.number}, mIoU of all classes" in text


def test_plots_are_pages_and_pictures_with_one_script(source: Source, tmp_path: Path) -> None:
    done = write_plots(source, tmp_path / "plots", ["history", "classes"])
    assert done.written == ["history", "classes"]
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == [
        *("classes.html", "classes.png", "history.html", "history.png", "plotly.min.js"),
    ]
    assert (tmp_path / "plots/history.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_written_or_drawn_is_refused(source: Source, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write to '.*file': File exists"):
        write_plots(source, tmp_path / "file")
    with pytest.raises(ConfigError, match="unknown chart 'slcie'; did you mean 'slice'"):
        write_plots(source, tmp_path / "plots", ["slcie"])
    assert not (tmp_path / "plots").exists()
    with pytest.raises(ConfigError, match="there is no directory"):
        write_report(source, tmp_path / "nowhere/report.html")
    with pytest.raises(ConfigError, match="Is a directory"):
        write_report(source, tmp_path)


def test_a_study_without_a_finished_trial_has_no_report(tmp_path: Path) -> None:
    database = make_study(tmp_path, 0)
    study = optuna.load_study(study_name="study", storage=database.optuna_storage())
    study.enqueue_trial({"kd.weight": 3.0})
    with pytest.raises(StudyError, match=r"'study' has no finished trial to report \(1 open\)"):
        write_report(Source(database, "study"), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
