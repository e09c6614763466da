"""Trials that a study took over from others: rows of their own, which only its sampler and pruner see.

They have no number in the study, count against no budget, and can be none of its results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from ucd_ray.tune.database import Database
from ucd_ray.tune.tables import taken_table


@dataclass(frozen=True)
class Taken:
    """One trial of another study.

    params: its values under the keys that were searched when it was taken over
    attributes: user attributes, the revision of the study that took it among them
    """

    source: str
    number: int  # there
    state: str  # COMPLETE or PRUNED
    values: list[float] | None
    params: dict[str, Any]
    curve: dict[int, float]  # intermediate values by rung
    attributes: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)  # how far it broke limits on results


def add_taken(database: Database, study: str, trials: Sequence[Taken]) -> None:
    """Stores trials that a study takes over, all or none; those it has already stay."""

    def work(connection: sa.Connection) -> None:
        of_study = taken_table.c.study == study
        query = sa.select(taken_table.c.source, taken_table.c.number).where(of_study)
        known = {(row.source, row.number) for row in connection.execute(query)}
        rows = [_row(study, trial) for trial in trials if (trial.source, trial.number) not in known]
        if rows:
            connection.execute(taken_table.insert(), rows)

    database.write(work)


def _row(study: str, trial: Taken) -> dict[str, Any]:
    content = asdict(trial)
    key = {"study": study, "source": content.pop("source"), "number": content.pop("number")}
    return {**key, "trial": json.dumps(content)}


def taken(database: Database, study: str) -> list[Taken]:
    """What a study took over, by source and number."""
    query = (
        sa.select(taken_table)
        .where(taken_table.c.study == study)
        .order_by(taken_table.c.source, taken_table.c.number)
    )
    rows = database.read(lambda connection: connection.execute(query).all())
    return [_taken(row) for row in rows]


def _taken(row: sa.Row[Any]) -> Taken:
    content = json.loads(row.trial)
    content["curve"] = {int(rung): value for rung, value in content["curve"].items()}
    return Taken(source=row.source, number=row.number, **content)


def taken_trials(database: Database, study: str) -> list[FrozenTrial]:
    """The same as Optuna's trials, older than all of the study's own."""
    found = taken(database, study)
    return [_frozen(trial, i, len(found)) for i, trial in enumerate(found)]


def _frozen(trial: Taken, i: int, count: int) -> FrozenTrial:
    # Optuna sorts by number and begins to look above -1; the study's own begin at 0.
    number: Any = -1 + (i + 1) / (count + 1)
    return FrozenTrial(
        number=number,
        trial_id=-1 - i,  # of no row
        state=TrialState[trial.state],
        value=None,
        values=trial.values,
        datetime_start=None,
        datetime_complete=None,
        params=trial.params,
        distributions={},
        user_attrs=trial.attributes,
        system_attrs=trial.notes,
        intermediate_values=trial.curve,
    )
