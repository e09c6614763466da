"""Bad input to what answers questions about a study: one sentence, exit code 2, nothing changed."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.tune.finished import spec_of
from ucd_ray.cli import main
from ucd_ray.data.prepare import Prepared
from ucd_ray.published import rows as published
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.database import Database
from ucd_ray.tune.places import places


@pytest.fixture
def home(
    finished_home: Path, tmp_path: Path, shapes: Prepared, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A home with the finished study `tiny`, `empty` before its first trial, `open` in its first."""
    home = tmp_path / "home"
    shutil.copytree(finished_home, home)
    monkeypatch.setenv("UCD_RAY_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    database = Database(places().database)
    about = database.about("tiny")
    others = {"sequential": {"recipe": {**spec_of(shapes.path).recipe, "setting": "sequential"}}}
    for name, values in {"empty": {}, "open": {}, **others}.items():
        spec = spec_of(shapes.path, name=name, **values)
        database.save_spec(
            name, spec.model_dump_json(), {**about, "setting": spec.base_recipe().setting}
        )
        book = TrialBook(spec, database)
        if name == "open":
            book.next_trial()
    return home


def content(home: Path) -> list[str]:
    """What is stored: the rows of the database, and which files there are."""
    with contextlib.closing(sqlite3.connect(home / "studies.db")) as connection:
        rows = list(connection.iterdump())
    files = (path for path in home.parent.rglob("*") if path.is_file())
    return [*rows, *sorted(str(p) for p in files if p.suffix not in (".db-wal", ".db-shm"))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("results tiny --view trails", "unknown view 'trails'; did you mean 'trials'"),
        ("results tiny --filter miuo_all>3", "there is no column 'miuo_all'"),
        ("results tiny --filter state=FAILED", "no row of view 'trials' of study 'tiny' matches"),
        ("results tiny --order-by -valeu", "there is no column 'valeu'; did you mean 'value'"),
        ("results tiny --plots x --chart scatter", "unknown chart 'scatter'"),
        ("results tiny --plots x --objective miuo_all", "study 'tiny' has no objective 'miuo_all'"),
        ("results empty --view paper", "study 'empty' has no complete trial"),
        ("results empty --plots x", "study 'empty' has no finished trial to report (1 open)"),
        ("results nosuch", "no study 'nosuch'"),
        ("results --published voc-99-1", "voc-99-1"),
        ("report empty", "study 'empty' has no finished trial to report (1 open)"),
        ("report open", "study 'open' has no finished trial to report (1 open)"),
        ("report tiny --out .", "cannot write '.': Is a directory"),
        ("study best empty", "study 'empty' has no complete trial yet"),
        ("study best tiny --trial 9", "study 'tiny' has no trial 9"),
        ("study best tiny --replicate 1", "have no replicate 1, but 0 alone"),
        ("study best tiny --replicate one", "--replicate 'one' must be a number"),
        ("study best tiny --replicate all", "--replicate all writes a file for each"),
        ("study best tiny --export no/x.yaml", "cannot write 'no/x.yaml'"),
        ("study compare tiny empty", "study 'empty' has no complete trial to compare"),
        ("study compare tiny sequential", "they differ in setting"),
        ("study compare tiny tiny", "compared with itself"),
        ("study edit tiny", "nothing to edit: give --search"),
        ("study edit tiny --search kd.wieght=1..3", "did you mean 'kd.weight'"),
        ("study edit tiny --search kd.weight=9..3", "kd.weight"),
        ("study edit tiny --constraint dorp<=2", "unknown metric 'dorp'; did you mean 'drop'"),
        ("study edit tiny --remove-constraint drop<=2", "is no constraint of study 'tiny'"),
        ("study edit open --search kd.weight=50..60", "trial 0 runs with kd.weight=10"),
        ("study edit empty --fix kd.weight=5", "study 'empty' would search nothing"),
        (
            "tune --scenario shapes-8-2 --data {data} --from sequential --name new",
            "its setting is sequential, that of study 'new' is overlapped",
        ),
        ("tune --scenario shapes-8-2 --data {data} --from nosuch --name new", "no study 'nosuch'"),
        (
            "tune --scenario shapes-8-2 --data {data} --objective miuo_all --name new",
            "unknown objective 'miuo_all'; did you mean 'miou_all'",
        ),
        (
            "tune --scenario shapes-8-2 --data {data} --from tiny --name new --class-orders 2",
            "its number of class orders is 1, that of study 'new' is 2",
        ),
        (
            "tune --scenario shapes-8-2 --data {data} --name new --seeds 2 --constraint drop<=2",
            "need one objective that is maximised, without limits on results",
        ),
    ],
)
def test_one_sentence_and_nothing_changed(
    home: Path,
    shapes: Prepared,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    before = content(home)
    assert failed(monkeypatch, capfd, arguments.format(data=shapes.path), message)
    assert content(home) == before


def failed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str, message: str
) -> bool:
    monkeypatch.setattr("sys.argv", ["ucd-ray", *line.split()])
    with pytest.raises(SystemExit) as end:
        main()
    said = capfd.readouterr()
    assert end.value.code == 2, said
    assert said.err.count("error:") == 1
    assert message in said.err
    assert said.out == ""
    return True


@pytest.mark.parametrize("damage", ["source,table\n", "\xff", ""])
def test_damaged_published_rows_are_named(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(damage.encode("latin-1"))
    monkeypatch.setattr(published, "ROWS", path)
    published.published_rows.cache_clear()
    try:
        assert failed(monkeypatch, capfd, "results tiny --view paper", f"published rows '{path}'")
        assert failed(
            monkeypatch, capfd, "results --published voc-15-1", f"published rows '{path}'"
        )
    finally:
        published.published_rows.cache_clear()
