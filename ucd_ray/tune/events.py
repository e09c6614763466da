"""The log of a study: every line that its driver said, in the database, for whoever looks later."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from ucd_ray.errors import StudyError
from ucd_ray.tune.database import Database
from ucd_ray.tune.event_data import WORKER
from ucd_ray.tune.tables import event_table, study_table

FLUSH_S = 1.0  # between writes
KEPT = 10_000  # lines that wait for a database that is away; older ones are lost
CLOSE_S = 5.0  # for the last lines
STUDY_KIND = "study"  # of lines that no event of a run caused
LONGEST = 20  # characters of a kind


class EventLog:
    """Takes the lines of one study and writes them in the background: a log never holds a study up."""

    def __init__(self, database: Database, study: str) -> None:
        self.database, self.study = database, study
        self._lines: deque[dict[str, Any]] = deque()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def add(
        self,
        text: str,
        *,
        kind: str = STUDY_KIND,
        number: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """One line, of a trial or of the study; data: what it says, for programs."""
        self._lines.append(_row(self.study, text, kind, number, data))

    def close(self) -> None:
        """Writes what is left, if the database answers soon."""
        self._ends.set()
        self._thread.join(CLOSE_S)

    def _write(self) -> None:
        while not self._ends.wait(FLUSH_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        rows = [self._lines.popleft() for _ in range(len(self._lines))]
        if not rows:
            return
        try:
            self.database.write(lambda connection: _insert(connection, rows))
        except StudyError:  # tried again with the next lines
            self._lines.extendleft(reversed(rows[-KEPT:]))


def tell(
    database: Database,
    study: str,
    text: str,
    *,
    kind: str = STUDY_KIND,
    number: int | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """One line at once, from who does not drive the study."""
    row = _row(study, text, kind, number, data)
    database.write(lambda connection: _insert(connection, [row]))


def _row(
    study: str, text: str, kind: str, number: int | None, data: Mapping[str, Any] | None
) -> dict[str, Any]:
    content = None if data is None else json.dumps(data).replace("\\u0000", "")
    row = {"study": study, "number": number, "time": time.time(), "kind": kind[:LONGEST]}
    return {**row, "text": text.replace("\0", ""), "data": content}


def _insert(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds lines of one study.

    Its writers take turns, so that ids become visible in their order: who reads on above the last id
    that it saw misses none.
    """
    of_study = study_table.c.name == rows[0]["study"]
    lock = sa.select(study_table.c.name).where(of_study).with_for_update(key_share=True)
    connection.execute(lock)
    connection.execute(event_table.insert(), list(rows))


def events(
    database: Database,
    study: str,
    *,
    number: int | None = None,
    worker: int | None = None,
    after: int = 0,
    last: int | None = None,
    first: int | None = None,
) -> list[sa.Row[Any]]:
    """Lines of the log with ids above `after`; `last`, `first`: only so many.

    number: of one trial instead of all; worker: what the workers of that rank said
    """
    where = (event_table.c.study == study) & (event_table.c.id > after)
    if number is not None:
        where &= event_table.c.number == number
    if worker is not None:  # the data are text, as `event_data` and `_row` write it
        where &= (event_table.c.kind == WORKER) & event_table.c.data.contains(f'"rank": {worker},')
    if first is not None:
        query = sa.select(event_table).where(where).order_by(event_table.c.id).limit(first)
        return database.read(lambda connection: list(connection.execute(query)))
    query = sa.select(event_table).where(where).order_by(event_table.c.id.desc()).limit(last)
    return database.read(lambda connection: list(connection.execute(query)))[::-1]


def last_lines(database: Database, study: str, *kinds: str) -> dict[int | None, sa.Row[Any]]:
    """The newest line of every trial, and of the study as a whole under None; of `kinds` only."""
    newest = (
        sa.select(sa.func.max(event_table.c.id))
        .where(event_table.c.study == study, event_table.c.kind.in_(kinds))
        .group_by(event_table.c.number)
    )
    query = sa.select(event_table).where(event_table.c.id.in_(newest))
    rows = database.read(lambda connection: list(connection.execute(query)))
    return {row.number: row for row in rows}
