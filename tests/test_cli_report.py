from __future__ import annotations

from pathlib import Path

import pytest

from tests.tune.charts.studies import make_study
from ucd_ray.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["ucd-ray", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture
def home(own_home: Path) -> Path:
    own_home.mkdir(exist_ok=True)
    make_study(own_home, 8)
    return own_home


def test_a_report_is_written_where_it_is_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = home / "report.html"
    assert run(monkeypatch, "report", "study", "--out", str(path)) == 0
    assert path.stat().st_size > 4_000_000
    said = capfd.readouterr().err
    assert "wrote" in said and "with 10 charts" in said
    assert "not drawn: predictions:" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("results", "study", "--chart", "slice"), "--chart names charts of --plots DIR"),
        (("results", "study", "--finetune"), "--finetune is for the charts of"),
        (
            ("results", "study", "--objective", "miou_all"),
            "--objective chooses charts of --plots DIR",
        ),
        (
            ("results", "study", "--plots", "x", "--objective", "drop"),
            "study 'study' has no objective 'drop'",
        ),
        (("results", "study", "--plots", "x", "--chart", "pie"), "unknown chart 'pie'"),
        (("report", "stdy"), "did you mean 'study'"),
        (("report", "study", "--out", "no/where.html"), "there is no directory 'no'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(home)
    before = sorted(p.name for p in home.iterdir())
    assert run(monkeypatch, *arguments) == 2
    said = capfd.readouterr().err
    assert message in said
    assert said.count("error:") == 1
    after = {p.name for p in home.iterdir()} - {"studies.db-shm", "studies.db-wal"}
    assert after <= set(before)
