"""Commands for a study's driver, from any other process: a table that the driver reads.

A command is written once, carried out by the driver, and answered with an outcome.  Without a driver the
command takes effect at the next start (pause, resume) or at once (stop: there is nothing to stop).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ucd_ray.tune.database import Database, is_driven
from ucd_ray.tune.tables import command_table, study_table

PAUSE, RESUME, STOP, CANCEL = "pause", "resume", "stop", "cancel"
EDIT, ENQUEUE = "edit", "enqueue"
REFUSED = "refused: "  # what an outcome begins with that changed nothing
DRIVER_ENDED = "its driver had ended"  # the outcome of what a driver finds at its start
HOWS = ("drain", "checkpoint", "kill")  # of stop


@dataclass(frozen=True)
class Command:
    """One command; body: `how` of stop, `number` of cancel, `params` of enqueue, the edit."""

    id: int
    kind: str
    body: dict[str, Any]


def give(database: Database, study: str, kind: str, **body: Any) -> int:
    """Writes a command for the driver of a study.  Returns its id.  Raises StudyError."""
    database.stored_spec(study)
    row = {"study": study, "kind": kind, "body": json.dumps(body), "created": time.time()}
    with database.errors(), database.engine.begin() as connection:
        key = connection.execute(command_table.insert(), row).inserted_primary_key
    assert key is not None
    return int(key[0])


def pending(database: Database, study: str) -> list[Command]:
    """Commands that nobody has carried out, oldest first."""
    where = (command_table.c.study == study) & command_table.c.done.is_(None)
    query = sa.select(command_table).where(where).order_by(command_table.c.id)
    rows = database.read(lambda connection: connection.execute(query).all())
    return [Command(row.id, row.kind, json.loads(row.body)) for row in rows]


def finish(database: Database, command: int, outcome: str) -> None:
    """Marks a command as carried out."""
    values = {"done": time.time(), "outcome": outcome}
    where = (command_table.c.id == command) & command_table.c.done.is_(None)
    database.write(
        lambda connection: connection.execute(command_table.update().where(where).values(**values))
    )


def outcome(database: Database, command: int) -> str | None:
    """What became of a command; None: nobody has carried it out yet."""
    query = sa.select(command_table.c.outcome).where(command_table.c.id == command)
    row = database.read(lambda connection: connection.execute(query).first())
    return row.outcome if row else None


def settle(database: Database, study: str) -> None:
    """For a driver that starts: what an earlier one left is not meant for it, and only marked as over.

    Pause and resume keep their effect: see `is_paused`.
    """
    where = (command_table.c.study == study) & command_table.c.done.is_(None)
    values = {"done": time.time(), "outcome": DRIVER_ENDED}
    database.write(
        lambda connection: connection.execute(command_table.update().where(where).values(**values))
    )


def is_paused(database: Database, study: str) -> bool:
    """Whether the last of all pause and resume commands is a pause."""
    where = (command_table.c.study == study) & command_table.c.kind.in_((PAUSE, RESUME))
    query = sa.select(command_table.c.kind).where(where).order_by(command_table.c.id.desc())
    row = database.read(lambda connection: connection.execute(query.limit(1)).first())
    return row is not None and row.kind == PAUSE


def is_stopping(database: Database, study: str, since: float) -> bool:
    """Whether a stop was given since a time, when the study's driver started."""
    where = (command_table.c.study == study) & (command_table.c.kind == STOP)
    query = sa.select(command_table.c.id).where(where & (command_table.c.created >= since))
    return database.read(lambda connection: connection.execute(query.limit(1)).first()) is not None


def driven(database: Database, study: str) -> bool:
    """Whether a living process drives a study."""
    query = sa.select(study_table.c.driver, study_table.c.heartbeat)
    row = database.read(
        lambda connection: connection.execute(query.where(study_table.c.name == study)).first()
    )
    return row is not None and is_driven(row.driver, row.heartbeat)
