"""Pages of studies by key: what is created meanwhile neither repeats nor hides a row."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ucd_ray.errors import did_you_mean
from ucd_ray.service.auth import Viewer
from ucd_ray.service.filters import Field, invalid, parse_filter
from ucd_ray.service.problems import Problem
from ucd_ray.service.states import DELETED, STATES
from ucd_ray.service.studies import StudyRow, row_of
from ucd_ray.service.tables import study_table
from ucd_ray.tune.database import Database

LARGEST = 200
ORDERS = {
    "create_time": study_table.c.created,
    "update_time": study_table.c.updated,
    "priority": study_table.c.priority,
    "name": study_table.c.title,
}


@dataclass(frozen=True)
class Page:
    """One page, and the token of the next; None: it is the last."""

    rows: list[StudyRow]
    next: str | None


def list_studies(
    database: Database,
    viewer: Viewer,
    *,
    size: int,
    token: str | None,
    filter_text: str,
    order_by: str,
    deleted: bool,
) -> Page:
    """The studies that someone may see.  Raises Problem (422)."""
    column, descending = _order(order_by)
    where = []
    if not deleted:
        where.append(study_table.c.state != DELETED)
    if filter_text.strip():
        where.append(parse_filter(filter_text, _fields(database.is_sqlite)))
    asked = hashlib.sha256(json.dumps([filter_text, order_by, deleted]).encode()).hexdigest()[:12]
    if token:
        where.append(_after(column, descending, _decoded(token, asked)))
    size = min(size, LARGEST)

    def ordered(rows: sa.FromClause) -> sa.Select[Any]:
        keys = (rows.c[column.name], rows.c.id)
        return sa.select(rows).order_by(*(key.desc() if descending else key for key in keys))

    # Each part is read in the order of an index and no further than a page, however many there are.
    whole = ordered(study_table).where(*where).limit(size + 1)
    parts = [whole.where(*own).subquery() for own in _visible(viewer)]
    query = ordered(sa.union_all(*map(sa.select, parts)).subquery())
    seen = database.read(lambda connection: connection.execute(query).all())
    found = list({row.id: row for row in seen}.values())[: size + 1]  # one's own may be shared too
    rows = [row_of(row) for row in found[:size]]
    more = len(found) > size
    last = found[size - 1]._mapping if more else None
    return Page(rows, None if last is None else _encoded(last[column.name], last["id"], asked))


def _visible(viewer: Viewer) -> list[list[sa.ColumnElement[bool]]]:
    """What holds for the studies that someone may see, in parts that each have an index."""
    if viewer.may("admin"):
        return [[]]
    return [[study_table.c.owner == viewer.owner], [study_table.c.shared]]


def _order(text: str) -> tuple[sa.Column[Any], bool]:
    name, _, direction = text.strip().partition(" ")
    if name not in ORDERS or direction.strip() not in ("", "asc", "desc"):
        hint = did_you_mean(name, ORDERS)
        told = f"order_by ({text!r}) must be a field, and asc or desc; {hint}"
        raise Problem(
            422, "INVALID", told, [{"pointer": "#query/order_by", "code": "ORDER", "detail": told}]
        )
    return ORDERS[name], direction.strip() == "desc"


def _after(
    column: sa.Column[Any], descending: bool, key: tuple[Any, str]
) -> sa.ColumnElement[bool]:
    here, there = sa.tuple_(column, study_table.c.id), sa.tuple_(*map(sa.literal, key))
    return here < there if descending else here > there


def _encoded(value: Any, study_id: str, asked: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([value, study_id, asked]).encode()).decode()


def _decoded(token: str, asked: str) -> tuple[Any, str]:
    told = "page_token is not of this list: send the filter and the order that it came with"
    problem = Problem(
        422,
        "INVALID",
        told,
        [{"pointer": "#query/page_token", "code": "PAGE_TOKEN", "detail": told}],
    )
    try:
        value, study_id, for_what = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, TypeError):
        raise problem from None
    if (
        for_what != asked
        or not isinstance(study_id, str)
        or not isinstance(value, str | int | float)
    ):
        raise problem
    return value, study_id


def _fields(is_sqlite: bool) -> Mapping[str, Field]:
    columns = study_table.c

    def state(_: str, value: str) -> sa.ColumnElement[bool]:
        if value not in STATES:
            raise invalid(f"'{value}' is no state; {did_you_mean(value, STATES)}")
        # Not as an index of states has it: all of a state would be read, and then put in order.
        return columns.state + "" == value

    def priority(_: str, value: str) -> sa.ColumnElement[bool]:
        if not value.lstrip("-").isdigit() or len(value) > 4:
            raise invalid(f"priority ({value!r}) must be a whole number of at most 3 digits")
        return columns.priority == int(value)

    def label(name: str, value: str) -> sa.ColumnElement[bool]:
        kind = sa.type_coerce if is_sqlite else sa.cast
        return kind(columns.labels, sa.JSON)[name.removeprefix("labels.")].as_string() == value

    return {
        "state": state,
        "name": lambda _, value: columns.title == value,
        "owner": lambda _, value: columns.owner == value,
        "external_id": lambda _, value: columns.external_id == value,
        "priority": priority,
        "labels.": label,
    }
