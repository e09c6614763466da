"""GPU hours by owner and day, counted from the ledgers of their studies."""

from __future__ import annotations

import datetime

import sqlalchemy as sa

from ucd_ray.service.rows import insert_new
from ucd_ray.service.studies import StudyRow
from ucd_ray.service.tables import meter_table, usage_table
from ucd_ray.tune.database import Database
from ucd_ray.tune.ledger import held, totals


def today() -> str:
    """The day, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")


def count(database: Database, row: StudyRow) -> None:
    """Adds to today what a study has used since it was counted last."""
    used = held(totals(database, row.name)).gpu
    mine = meter_table.c.study == row.id
    read = sa.select(meter_table.c.gpu_seconds).where(mine)
    if used == (database.read(lambda c: c.execute(read).scalar()) or 0.0):
        return

    def work(connection: sa.Connection) -> None:
        insert_new(connection, meter_table, {"study": row.id, "gpu_seconds": 0.0})
        before = connection.execute(read.with_for_update()).scalar_one()
        if used <= before:
            return
        connection.execute(meter_table.update().where(mine).values(gpu_seconds=used))
        key = {"owner": row.owner, "day": today()}
        insert_new(connection, usage_table, {**key, "gpu_seconds": 0.0})
        where = sa.and_(*(usage_table.c[name] == value for name, value in key.items()))
        more = usage_table.c.gpu_seconds + (used - before)
        connection.execute(usage_table.update().where(where).values(gpu_seconds=more))

    database.write(work)


def gpu_hours_today(database: Database) -> dict[str, float]:
    """By owner."""
    query = sa.select(usage_table.c.owner, usage_table.c.gpu_seconds)
    rows = database.read(lambda c: c.execute(query.where(usage_table.c.day == today())).all())
    return {owner: seconds / 3600 for owner, seconds in rows}
