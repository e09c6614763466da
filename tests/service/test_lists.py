"""Lists of studies: whose are shown, and that a page costs a page, however many studies there are."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.service.rows import add_row
from tests.work import steps_of
from ucd_ray.service.auth import Viewer
from ucd_ray.service.database import open_database
from ucd_ray.service.paging import ORDERS, list_studies
from ucd_ray.service.tables import study_table
from ucd_ray.tune.database import Database

FEW, MANY = 600, 12_000
ANN, BOB = (Viewer(name, frozenset({"read"})) for name in ("ann", "bob"))
ROOT = Viewer("root", frozenset({"admin"}))


def listed(database: Database, viewer: Viewer, **given: Any) -> list[str]:
    """Ids of all pages."""
    asked = {"size": 3, "token": None, "filter_text": "", "order_by": "name", "deleted": False}
    found: list[str] = []
    while True:
        page = list_studies(database, viewer, **{**asked, **given})  # type: ignore[arg-type]
        found += [row.id for row in page.rows]
        if page.next is None:
            return found
        given["token"] = page.next


@pytest.mark.parametrize("order", [f"{name}{way}" for name in ORDERS for way in ("", " desc")])
def test_everybody_sees_their_own_and_shared_ones_once_and_in_order(
    any_url: str, order: str
) -> None:
    database = open_database(any_url)
    for number, (owner, shared) in enumerate(itertools.product(("ann", "bob"), (True, False) * 4)):
        about = {"name": f"s{number}", "title": f"t{number * 7 % 5}", "priority": number * 5 % 3}
        times = {"created": float(number % 4), "updated": float(number % 3)}
        add_row(database, f"id{number:02}", owner, shared=shared, **about, **times)
    rows = {row.id: row for row in listed_rows(database)}
    for viewer in (ANN, BOB, ROOT):
        seen = [i for i, r in rows.items() if r.shared or viewer.owner in (r.owner, "root")]
        column, _, way = order.partition(" ")
        key = ORDERS[column].name
        expected = sorted(seen, key=lambda i: (getattr(rows[i], key), i), reverse=way == "desc")
        assert listed(database, viewer, order_by=order) == expected


def listed_rows(database: Database) -> list[Any]:
    return database.read(lambda connection: list(connection.execute(sa.select(study_table))))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Database]:
    found = {}
    for size in (FEW, MANY):
        folder: Path = tmp_path_factory.mktemp("many")
        database = found[size] = open_database(f"sqlite:///{folder}/studies.db")
        add_row(database, "first", "ann", shared=True)
        with database.engine.begin() as connection:
            (first,) = connection.execute(sa.select(study_table)).mappings()
            rows = [
                {**first, "id": f"id{n}", "name": f"s{n}", "title": f"t{n * 7 % 1001}"}
                | {"owner": "ann" if n % 20 else "bob", "shared": n % 7 == 0}
                | {"created": float(n), "updated": n * 11 % 1009.0, "priority": n % 5}
                for n in range(size)
            ]
            connection.execute(study_table.insert(), rows)
    return found


@pytest.mark.parametrize("order", [f"{name}{way}" for name in ORDERS for way in ("", " desc")])
@pytest.mark.parametrize("viewer", [ANN, BOB, ROOT], ids=["most", "few", "all"])
@pytest.mark.parametrize("chosen", ["", 'state="RUNNING"'])
def test_a_page_of_many_studies_is_no_more_work_than_one_of_few(
    many: dict[int, Database], order: str, viewer: Viewer, chosen: str
) -> None:
    work = {}
    for size, database in many.items():
        asked = {"size": 50, "token": None, "deleted": False, "order_by": order}
        page = partial(list_studies, database, viewer, filter_text=chosen, **asked)  # type: ignore[arg-type]
        found, work[size] = steps_of(database, page)
        assert len(found.rows) == 50
    assert work[MANY] < 2 * work[FEW]
