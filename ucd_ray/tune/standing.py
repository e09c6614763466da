"""Where a study stands: its best trials with their replicates, how sure they are, whether they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import TrialState

from ucd_ray.tune.chunks import optuna_id
from ucd_ray.tune.database import Database
from ucd_ray.tune.goals import Goals, goals_of
from ucd_ray.tune.objectives import RESULTS
from ucd_ray.tune.replicates import replicates_of
from ucd_ray.tune.statistics import Comparison, Spread, compare, spread
from ucd_ray.tune.trial_rows import (
    INTERMEDIATE,
    PARAMS,
    TRIALS,
    USER_ATTRS,
    VALUES,
    distribution_of,
)

Measured = Mapping[tuple[int, int], float]  # values by seed and class order


@dataclass(frozen=True)
class Standing:
    """A complete trial with what its replicates measured."""

    number: int
    value: float
    params: dict[str, Any]
    measured: Measured

    @property
    def name(self) -> str:
        """What sentences call it."""
        return f"trial {self.number}"

    @property
    def spread(self) -> Spread:
        """Its values in numbers."""
        return spread(list(self.measured.values()))


def best_trials(database: Database, study: str, count: int) -> list[Standing]:
    """The best complete trials of a study that break no limit on results, the best one first.

    With several objectives those with the best first one.  Raises StudyError without the study.
    """
    stored = database.stored_spec(study)
    keys = {r.number: (r.seed, r.order) for r in replicates_of(stored)}
    found, goals = optuna_id(database, study), goals_of(stored)
    return database.read(lambda connection: list(_best(connection, found, keys, goals, count)))


def count_complete(database: Database, study: str) -> int:
    """How many trials of a study are complete."""
    found = optuna_id(database, study)
    complete = (TRIALS.c.study_id == found) & (TRIALS.c.state == TrialState.COMPLETE)
    query = sa.select(sa.func.count()).where(complete)
    return database.read(lambda connection: int(connection.execute(query).scalar_one()))


def _best(
    connection: sa.Connection,
    study_id: int | None,
    keys: Mapping[int, tuple[int, int]],
    goals: Goals,
    count: int,
) -> Iterator[Standing]:
    value = VALUES.c.value
    query = (
        sa.select(TRIALS.c.trial_id, TRIALS.c.number, VALUES.c.value, VALUES.c.value_type)
        .join(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE)
        .where(VALUES.c.objective == 0)
        .order_by(value.desc() if goals.signs[0] > 0 else value, TRIALS.c.number)
        .limit(None if goals.limits else count)
    )
    rows = connection.execute(query).all()
    if goals.limits:
        broken = _broken(connection, study_id, goals)
        rows = [row for row in rows if row.trial_id not in broken][:count]
    for row in rows:
        mean = models.TrialValueModel.stored_repr_to_value(row.value, row.value_type)
        alone = {keys[0]: mean}
        measured = _measured(connection, row.trial_id, keys) if len(keys) > 1 else alone
        yield Standing(row.number, mean, _params(connection, row.trial_id), measured)


def _broken(connection: sa.Connection, study_id: int | None, goals: Goals) -> set[int]:
    """Ids of the trials that break a limit on results."""
    query = (
        sa.select(USER_ATTRS.c.trial_id, USER_ATTRS.c.value_json)
        .join(TRIALS, TRIALS.c.trial_id == USER_ATTRS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, USER_ATTRS.c.key == RESULTS)
    )
    return {i for i, text in connection.execute(query) if goals.broken(json.loads(text))}


def _measured(
    connection: sa.Connection, trial_id: int, keys: Mapping[int, tuple[int, int]]
) -> Measured:
    columns = (INTERMEDIATE.c.step, INTERMEDIATE.c.intermediate_value)
    query = sa.select(*columns).where(INTERMEDIATE.c.trial_id == trial_id)
    return {keys[step]: value for step, value in connection.execute(query.order_by("step"))}


def _params(connection: sa.Connection, trial_id: int) -> dict[str, Any]:
    columns = (PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json)
    query = sa.select(*columns).where(PARAMS.c.trial_id == trial_id).order_by("param_name")
    rows = connection.execute(query)
    return {name: distribution_of(text).to_external_repr(value) for name, value, text in rows}


def best_two(database: Database, study: str) -> list[str]:
    """How sure the best trial is, and whether it differs from the second, in sentences.

    Nothing for a study whose trials are measured once.  Raises StudyError without the study.
    """
    stored = database.stored_spec(study)
    if len(replicates_of(stored)) == 1:
        return []
    best = best_trials(database, study, 2)
    said = [f"best: {one.name}, {stored['objective']} {one.spread}" for one in best[:1]]
    if len(best) == 2:
        found = compare(best[0].measured, best[1].measured)
        said.append(sentence(found, best[0].name, best[1].name))
    return said


def sentence(found: Comparison | None, first: str, second: str) -> str:
    """The outcome of a comparison in words."""
    if found is None:
        return f"{first} and {second} cannot be told apart: that takes two replicates of each"
    return found.sentence(first, second)
