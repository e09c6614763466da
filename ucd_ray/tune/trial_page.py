"""The trials of a study page by page, filtered and ordered by the database.

A page begins after the last trial of the page before, not at an offset: trials that come meanwhile shift
nothing, and the thousandth page costs what the first one costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.tune import commands
from ucd_ray.tune.chunks import optuna_id
from ucd_ray.tune.database import Database
from ucd_ray.tune.goals import goals_of
from ucd_ray.tune.one_trial import content_of
from ucd_ray.tune.outcomes import read_trials
from ucd_ray.tune.trial_filter import WITH_VALUE
from ucd_ray.tune.trial_rows import TRIALS, VALUES

ORDERS = ("number", "value")
FEW = 5000  # trials that are sorted in no time


@dataclass(frozen=True)
class Place:
    """Where a page ended: Optuna's id of its last trial, and the value if it is ordered by that."""

    id: int
    value: float | None = None


@dataclass(frozen=True)
class Page:
    """Some trials as plain values, and where they end; None: no more follow."""

    trials: list[dict[str, Any]]
    end: Place | None


def trial_page(
    database: Database,
    study: str,
    *,
    where: Sequence[sa.ColumnElement[bool]] = (),
    order_by: str = "number",
    descending: bool = False,
    after: Place | None = None,
    size: int = 50,
) -> Page:
    """The next `size` trials.  Raises ConfigError, StudyError.

    where: conditions that hold, see `TrialFilter`
    order_by: number or value; trials without a value come last
    """
    if order_by not in ORDERS:
        raise ConfigError(f"order_by '{order_by}': unknown; {did_you_mean(order_by, ORDERS)}")
    goals = goals_of(database.stored_spec(study))
    study_id = optuna_id(database, study)
    asked = Asked(study_id, tuple(where), after, size + 1, falls=descending)
    found = database.read(asked.by_number if order_by == "number" else asked.by_value)
    ids = [row.trial_id for row in found[:size]]
    trials = {trial._trial_id: trial for trial in read_trials(database, ids)}
    driven = commands.driven(database, study)
    last = found[size - 1] if len(found) > size else None
    return Page(
        [content_of(trials[i], goals, driven=driven) for i in ids if i in trials],
        None if last is None else Place(last.trial_id, last.value),
    )


@dataclass(frozen=True)
class Asked:
    """The rows behind a place: Optuna's id of a trial and its value, in their order, at most `most`."""

    study_id: int | None
    where: tuple[sa.ColumnElement[bool], ...]
    after: Place | None
    most: int
    falls: bool

    def by_number(self, connection: sa.Connection) -> Sequence[sa.Row[Any]]:
        """Ids are in the order of numbers."""
        query = self._all()
        if self.after is not None:
            here = self.after.id
            query = query.where(
                TRIALS.c.trial_id < here if self.falls else TRIALS.c.trial_id > here
            )
        return connection.execute(query.order_by(self._turned(TRIALS.c.trial_id))).all()

    def by_value(self, connection: sa.Connection) -> Sequence[sa.Row[Any]]:
        """Those with a value first; then those without, by number."""
        found: list[sa.Row[Any]] = []
        after = self.after
        if after is None or after.value is not None:
            found += connection.execute(self._valued(*self._range(connection))).all()
            after = None
        if len(found) < self.most:
            rest = self._all().where(VALUES.c.value.is_(None)).limit(self.most - len(found))
            rest = rest if after is None else rest.where(TRIALS.c.trial_id > after.id)
            found += connection.execute(rest.order_by(TRIALS.c.trial_id)).all()
        return found

    def _all(self) -> sa.Select[Any]:
        query = sa.select(TRIALS.c.trial_id, VALUES.c.value).select_from(WITH_VALUE)
        return query.where(TRIALS.c.study_id == self.study_id, *self.where).limit(self.most)

    def _range(self, connection: sa.Connection) -> tuple[int, int]:
        """The study's first and last id."""
        ends = (sa.func.min(TRIALS.c.trial_id), sa.func.max(TRIALS.c.trial_id))
        of_study = TRIALS.c.study_id == self.study_id
        query = sa.select(*(sa.select(end).where(of_study).scalar_subquery() for end in ends))
        first, last = connection.execute(query).one()
        return first or 0, last or 0

    def _valued(self, first: int, last: int) -> sa.Select[Any]:
        """A study of few trials is sorted; else the values of all studies are gone through in order.

        For that, `+ 0` keeps the database from an index that would make it read and sort the whole study.
        """
        trial_id, value = VALUES.c.trial_id, VALUES.c.value
        walks = last - first > FEW
        within = (trial_id + 0 if walks else trial_id).between(first, last)
        own = (TRIALS.c.study_id + 0 if walks else TRIALS.c.study_id) == self.study_id
        query = (
            sa.select(TRIALS.c.trial_id, value)
            .join_from(VALUES, TRIALS, TRIALS.c.trial_id == trial_id)
            .where(VALUES.c.objective == 0, value.is_not(None), within)
            .where(own, TRIALS.c.state == TrialState.COMPLETE, *self.where)
        )
        if (after := self.after) is not None:
            # The first condition follows from the second, and is one that an index can begin at.
            here, there = (value <= after.value, value < after.value)
            if not self.falls:
                here, there = (value >= after.value, value > after.value)
            query = query.where(here, there | (trial_id > after.id))
        return query.order_by(self._turned(value), trial_id).limit(self.most)

    def _turned(self, column: Any) -> Any:
        return column.desc() if self.falls else column
