"""How the trials of a study ended, and some trials as a whole, straight from Optuna's tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial

from ucd_ray.tune.database import Database
from ucd_ray.tune.goals import Goals
from ucd_ray.tune.objectives import RESULTS
from ucd_ray.tune.trial_rows import STUDIES, TRIALS, USER_ATTRS, VALUES, Rows

AT_A_TIME = 500  # trials in one statement


@dataclass(frozen=True)
class Outcome:
    """How one trial ended."""

    id: int  # Optuna's
    number: int
    state: str  # Optuna's
    values: tuple[float, ...]  # a number per objective; of a pruned trial its last value
    keeps_limits: bool = True  # on results


def read_outcomes(database: Database, study: str, goals: Goals) -> list[Outcome]:
    """The outcomes of all trials of a study by number; none if no driver came so far."""
    named = _named(study)
    values = VALUES.c.trial_id == TRIALS.c.trial_id
    query = (
        sa.select(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state)
        .add_columns(VALUES.c.value, VALUES.c.value_type)
        .join_from(TRIALS, VALUES, values, isouter=True)
        .where(TRIALS.c.study_id == named)
        .order_by(TRIALS.c.number, VALUES.c.objective)
    )
    of_value = models.TrialValueModel.stored_repr_to_value
    found: dict[int, Outcome] = {}
    for trial_id, number, state, value, kind in database.read(lambda c: c.execute(query).all()):
        earlier = found[number].values if number in found else ()
        values_ = (*earlier, of_value(value, kind)) if kind is not None else earlier
        found[number] = Outcome(trial_id, number, state.name, values_)
    outcomes = list(found.values())
    return _limited(database, study, goals, outcomes) if goals.limits else outcomes


def _named(study: str) -> sa.ScalarSelect[int]:
    return sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == study).scalar_subquery()


def _limited(
    database: Database, study: str, goals: Goals, outcomes: list[Outcome]
) -> list[Outcome]:
    """The same, held against the limits on results."""
    found = read_attribute(database, study, RESULTS)
    broken = {trial_id for trial_id, results in found.items() if goals.broken(results)}
    return [replace(o, keeps_limits=o.id not in broken) for o in outcomes]


def read_attribute(database: Database, study: str, key: str) -> dict[int, Any]:
    """A user attribute of a study's trials, by their id (Optuna's)."""
    query = (
        sa.select(USER_ATTRS.c.trial_id, USER_ATTRS.c.value_json)
        .join(TRIALS, TRIALS.c.trial_id == USER_ATTRS.c.trial_id)
        .where(TRIALS.c.study_id == _named(study), USER_ATTRS.c.key == key)
    )
    rows = database.read(lambda connection: connection.execute(query).all())
    return {trial_id: json.loads(text) for trial_id, text in rows}


def read_trials(database: Database, ids: Sequence[int]) -> list[FrozenTrial]:
    """The trials of one study with these ids (Optuna's), by number."""
    rows = Rows(database.engine.dialect.name)
    found: list[FrozenTrial] = []
    for start in range(0, len(ids), AT_A_TIME):
        found += database.read(partial(rows.some, ids=ids[start : start + AT_A_TIME]))
    return sorted(found, key=lambda trial: trial.number)
