"""Writing the service's rows of studies.  Every change raises the row's revision."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ucd_ray.service.bodies import NewStudy
from ucd_ray.service.problems import Problem
from ucd_ray.service.specs import Built
from ucd_ray.service.states import QUEUED, queued
from ucd_ray.service.studies import StudyRow, read_row, row_of
from ucd_ray.service.tables import study_table
from ucd_ray.tune import tables as library
from ucd_ray.tune.database import Database
from ucd_ray.tune.registration import facts

JSON_COLUMNS = ("spec", "labels", "conditions")
LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"


def new_id() -> str:
    """A fresh id of a study: 60 random bits in letters that are not mistaken for one another."""
    return "".join(secrets.choice(LETTERS) for _ in range(12))


def insert_new(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> bool:
    """Inserts a row.  Returns whether it is there now and was not before."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).values(**row).on_conflict_do_nothing()
    # Not by its row count, which an insert does not have on every server.
    return connection.execute(statement.returning(sa.literal(1))).first() is not None


def insert_study(
    connection: sa.Connection,
    study_id: str,
    owner: str,
    built: Built,
    asked: NewStudy,
    *,
    sources: Sequence[str] = (),
) -> bool:
    """Inserts a study, for the library as well.  Returns False if its external id is taken.

    sources: names in the library of the studies that it learns from
    """
    now, spec = time.time(), built.spec
    row = {
        "id": study_id,
        "owner": owner,
        "name": spec.name,
        "title": built.title,
        "external_id": asked.external_id,
        "spec": json.dumps(built.shown),
        "workers": spec.workers,
        "cpus": spec.cpus_per_worker,
        "gpus": spec.gpus_per_worker,
        "parallelism": asked.parallelism or spec.max_concurrent,
        "priority": asked.priority,
        "labels": json.dumps(asked.labels),
        "shared": asked.shared,
        "state": QUEUED,
        "conditions": json.dumps(queued()),
        "attempt": 0,
        "failures": 0,
        "created": now,
        "updated": now,
        "revision": 1,
    }
    if not insert_new(connection, study_table, row):
        return False
    about = json.dumps(facts(spec, spec.base_recipe(), sources=sources))
    stored = {"name": spec.name, "spec": spec.model_dump_json(), "created": now, "about": about}
    connection.execute(library.study_table.insert(), stored)
    return True


def change(
    connection: sa.Connection,
    study_id: str,
    *,
    states: Collection[str] = (),
    revision: int | None = None,
    **values: Any,
) -> bool:
    """Changes a row that is in one of `states` and at `revision`.  Returns whether it was."""
    where = study_table.c.id == study_id
    if states:
        where &= study_table.c.state.in_(states)
    if revision is not None:
        where &= study_table.c.revision == revision
    stored = {k: json.dumps(v) if k in JSON_COLUMNS else v for k, v in values.items()}
    update = study_table.update().where(where)
    update = update.values(**stored, updated=time.time(), revision=study_table.c.revision + 1)
    return connection.execute(update).rowcount == 1


def update(
    database: Database,
    study_id: str,
    decide: Callable[[StudyRow], dict[str, Any]],
    *,
    touch: bool = False,
) -> StudyRow:
    """Changes a row to what `decide` says of its present content, in one transaction.

    touch: raises its revision in any case, for a change elsewhere
    Raises Problem (404) if it is gone, and what `decide` raises.
    """

    def work(connection: sa.Connection) -> StudyRow | Problem:
        query = sa.select(study_table).where(study_table.c.id == study_id).with_for_update()
        found = connection.execute(query).first()
        if found is None:
            return Problem(404, "NO_STUDY", f"there is no study '{study_id}'")
        before = row_of(found)
        try:
            values = decide(before)
        except Problem as problem:
            return problem
        if values or touch:
            change(connection, study_id, **values)
        after = read_row(connection, study_id)
        assert after is not None
        return after

    result = database.write(work)
    if isinstance(result, Problem):
        raise result
    return result
