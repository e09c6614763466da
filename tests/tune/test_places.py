from __future__ import annotations

from pathlib import Path

import pytest

from ucd_ray.errors import StudyError
from ucd_ray.tune.places import places


def test_everything_is_below_home_by_default(own_home: Path) -> None:
    found = places()
    assert found.home == own_home
    assert own_home.is_dir()
    assert list(own_home.iterdir()) == []
    assert found.database == f"sqlite:///{own_home}/studies.db"
    assert (found.steps, found.runs) == (f"{own_home}/steps", f"{own_home}/runs")
    assert found.data == own_home / "data"


def test_database_and_storage_may_be_elsewhere(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_DATABASE", "postgresql://host/db")
    monkeypatch.setenv("UCD_RAY_STORAGE", "s3://bucket/prefix")
    found = places()
    assert found.database == "postgresql://host/db"
    assert (found.steps, found.runs) == ("s3://bucket/prefix/steps", "s3://bucket/prefix/runs")
    assert found.data == own_home / "data"


def test_without_a_variable_home_is_in_the_users_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("UCD_RAY_HOME", "")
    assert places().home == tmp_path / ".ucd-ray"


def test_a_home_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UCD_RAY_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(StudyError, match=r"cannot write to '.*file/home'.*set UCD_RAY_HOME"):
        places()


def test_a_relative_storage_is_made_absolute(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_STORAGE", "out")
    assert places().steps == f"{Path.cwd()}/out/steps"


def test_the_query_of_a_storage_url_stays_at_its_end(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_STORAGE", "s3://bucket/prefix?scheme=http&region=x")
    assert places().runs == "s3://bucket/prefix/runs?scheme=http&region=x"
