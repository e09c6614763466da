"""Whether anything that the tables of a study show has changed: a short text that then differs.

Made from few rows, however many trials there are.  Finished trials never change, so of them only the
count matters; a trial's state only ever goes forward, so the counts of all, begun and finished ones
tell every change of state.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState

from ucd_ray.tune.database import Database, is_driven
from ucd_ray.tune.tables import revision_table, step_table, study_table, taken_table
from ucd_ray.tune.trial_rows import INTERMEDIATE, STUDIES, TRIALS, USER_ATTRS

AT_ONCE = 2000  # rows in memory
OPEN = (TrialState.WAITING, TrialState.RUNNING)


@dataclass
class Settled:
    """What is known of the trials that have ended before the first open one: `count` up to id `last`."""

    last: int = -1
    count: int = 0


class StudyVersion:
    """The version of one study; asked again, it reads only what is new."""

    def __init__(self, database: Database, study: str) -> None:
        self.database, self.study = database, study
        self._settled: dict[int, Settled] = {}  # by Optuna's id of the study, and of its replicates

    def read(self) -> str:
        """The version now.  Raises StudyError if there is no such study."""
        found = self.database.read(self._read)
        if found is None:
            self.database.stored_spec(self.study)  # raises, and names the nearest
        return hashlib.sha256(json.dumps(found, default=str).encode()).hexdigest()[:20]

    def _read(self, connection: sa.Connection) -> list[Any] | None:
        row = connection.execute(
            sa.select(study_table).where(study_table.c.name == self.study)
        ).first()
        if row is None:
            return None
        driven = is_driven(row.driver, row.heartbeat)
        return [
            row.created,
            row.spec,
            row.about,
            driven,
            *self._counts(connection),
            self._trials(connection),
        ]

    def _counts(self, connection: sa.Connection) -> list[int]:
        return [
            connection.execute(
                sa.select(sa.func.count()).select_from(table).where(table.c.study == self.study)
            ).scalar_one()
            for table in (revision_table, taken_table)
        ]

    def _trials(self, connection: sa.Connection) -> list[Any]:
        """Counts of states, and what is known of the open trials; of the replicates too."""
        own = STUDIES.c.study_name
        named = (own == self.study) | own.startswith(f"{self.study}/r", autoescape=True)
        query = sa.select(STUDIES.c.study_id).where(named).order_by(STUDIES.c.study_id)
        ids = connection.execute(query).scalars().all()
        return [self._of(connection, study_id) for study_id in ids]

    def _of(self, connection: sa.Connection, study_id: int) -> list[Any]:
        settled = self._settled.setdefault(study_id, Settled())
        query = (
            sa.select(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state)
            .where(TRIALS.c.study_id == study_id, TRIALS.c.trial_id > settled.last)
            .order_by(TRIALS.c.trial_id)
        )
        rows = connection.execute(query, execution_options={"yield_per": AT_ONCE})
        counts = [settled.count, 0, 0]  # finished, running, queued
        ended = True  # as long as all up to here have
        opened = []
        for row in rows:
            open_ = row.state in OPEN
            counts[0 if not open_ else 1 + OPEN[::-1].index(row.state)] += 1
            ended &= not open_
            if ended:
                settled.last, settled.count = row.trial_id, settled.count + 1
            if row.state == TrialState.RUNNING:
                opened.append(row)
        return [*counts, self._open(connection, opened)]

    def _open(self, connection: sa.Connection, rows: list[sa.Row[Any]]) -> list[Any]:
        """Attributes, values and steps of trials that run; what has ended does not change."""
        if not rows:
            return []
        ids, numbers = [row.trial_id for row in rows], [row.number for row in rows]
        attributes = sa.select(USER_ATTRS.c.trial_id, USER_ATTRS.c.key, USER_ATTRS.c.value_json)
        values = sa.select(sa.func.count()).where(INTERMEDIATE.c.trial_id.in_(ids))
        steps = sa.select(sa.func.count(), sa.func.sum(step_table.c.seconds)).where(
            step_table.c.study == self.study, step_table.c.number.in_(numbers)
        )
        named = attributes.where(USER_ATTRS.c.trial_id.in_(ids)).order_by(
            *attributes.selected_columns
        )
        return [
            [tuple(row) for row in connection.execute(query)] for query in (named, values, steps)
        ]
