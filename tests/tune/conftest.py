"""Studies that the tests of tables share."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tests.tune.test_bridge import open_book
from tests.tune.test_results import ABOUT, step
from ucd_ray.tune.database import Database
from ucd_ray.tune.places import places
from ucd_ray.tune.results import trials_table


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """A study with a complete, a failed and a running trial."""
    book = open_book(tmp_path)
    book.database.save_spec("study", book.spec.model_dump_json(), ABOUT)
    chosen = book.next_trial()
    assert chosen is not None
    for number in (0, 1):
        book.report(0, step(number, 40.0 + number))
    book.report(0, {"kind": "done", "value": 44.0})
    book.close(0)
    book.next_trial()
    book.report(1, {"kind": "failed", "code": "NAN", "reason": "loss term 'kd' became nan"})
    book.close(1)
    book.next_trial()
    return book.database


@pytest.fixture
def table(database: Database) -> pa.Table:
    return trials_table(database, "study")


@pytest.fixture
def finished(finished_home: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The database of the finished study; its home is this test's."""
    monkeypatch.setenv("UCD_RAY_HOME", str(finished_home))
    return Database(places().database)
