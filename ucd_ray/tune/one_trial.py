"""One trial of a study: how it went, and what was measured after each of its steps.

Reads the rows of this trial alone, however many the study has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from ucd_ray.errors import StudyError
from ucd_ray.tune.chunks import optuna_id, state_and_reason
from ucd_ray.tune.database import Database, is_driven
from ucd_ray.tune.goals import Goals, goals_of
from ucd_ray.tune.outcomes import read_trials
from ucd_ray.tune.revisions import REVISION
from ucd_ray.tune.tables import class_table, metric_table, step_table, study_table
from ucd_ray.tune.trial_rows import TRIALS
from ucd_ray.tune.whole_trial import id_of_number, whole_trial

IMAGES = ("select", "val")
KEY = ("replicate", "step")
OF_STUDY: sa.Select[Any] = sa.select(
    study_table.c.name, study_table.c.spec, study_table.c.driver, study_table.c.heartbeat
).where(study_table.c.name == sa.bindparam("of"))


def trial_id(database: Database, study: str, number: int) -> int | None:
    """Optuna's id of a trial; None if there is no such trial."""
    database.optuna_storage()  # makes Optuna's tables, if they are not there yet
    return database.read(lambda connection: id_of_number(connection, study, number))


def stored_trial(database: Database, study: str, number: int) -> FrozenTrial:
    """Trial `number` as Optuna has it.  Raises StudyError if there is none."""
    found = trial_id(database, study, number)
    if found is None:
        database.stored_spec(study)  # raises if there is no such study
        of_study = TRIALS.c.study_id == optuna_id(database, study)
        count = sa.select(sa.func.count()).where(of_study)
        there = database.read(lambda connection: connection.execute(count).scalar_one())
        which = f"it has trials 0 to {there - 1}" if there else "it has no trials yet"
        raise StudyError(f"study '{study}' has no trial {number}; {which}")
    return read_trials(database, [found])[0]


def trial_content(database: Database, study: str, number: int) -> dict[str, Any]:
    """A trial as plain values: state, params, values, times, reason.  Raises StudyError."""
    database.optuna_storage()

    def work(connection: sa.Connection) -> dict[str, Any] | None:
        of_study = read_study(connection, study)
        return None if of_study is None else read_content(connection, of_study, number)

    if (found := database.read(work)) is None:
        stored_trial(database, study, number)  # raises, and says which there are
        raise StudyError(f"trial {number} of study '{study}' has just appeared; ask again")
    return found


def read_study(connection: sa.Connection, study: str) -> sa.Row[Any] | None:
    """Of a study what its trials need: name, spec, driver and its heartbeat; None if there is none."""
    return connection.execute(OF_STUDY, {"of": study}).first()


def read_content(
    connection: sa.Connection, study: sa.Row[Any], number: int
) -> dict[str, Any] | None:
    """A trial as plain values, in one statement; None if there is no such trial."""
    trial = whole_trial(connection, study.name, number)
    if trial is None:
        return None
    driven = is_driven(study.driver, study.heartbeat)
    return content_of(trial, _goals(study.spec), driven=driven)


@lru_cache(maxsize=1000)
def _goals(spec: str) -> Goals:
    return goals_of(json.loads(spec))


def content_of(trial: FrozenTrial, goals: Goals, *, driven: bool) -> dict[str, Any]:
    """The same of a trial that was read; driven: its study has a driver."""
    attributes = trial.user_attrs
    state, code, reason = state_and_reason(trial.state.name, attributes, driven=driven)
    values = trial.values if trial.state == TrialState.COMPLETE else None
    return {
        "number": trial.number,
        "state": state,
        "code": code,
        "reason": reason,
        "value": None if values is None else _finite(values[0]),
        "values": None
        if values is None
        else dict(zip(goals.objectives, map(_finite, values), strict=True)),
        "params": dict(trial.params) or dict(trial.system_attrs.get("fixed_params", {})),
        "intermediate_values": {str(k): _finite(v) for k, v in trial.intermediate_values.items()},
        "revision": attributes.get(REVISION, 0),
        "seconds": attributes.get("seconds"),
        "started": _seconds(trial.datetime_start),
        "ended": _seconds(trial.datetime_complete),
    }


def trial_steps(
    database: Database, study: str, number: int, step: int | None = None
) -> list[dict[str, Any]]:
    """What was measured after the steps of a trial, replicate after replicate; empty: nothing yet.

    step: only this one, with the IoU of every class
    """

    def rows(table: sa.Table, *order: str) -> Sequence[sa.Row[Any]]:
        mine = (table.c.study == study) & (table.c.number == number)
        if step is not None:
            mine &= table.c.step == step
        query = sa.select(table).where(mine).order_by(*(table.c[name] for name in order))
        return database.read(lambda connection: connection.execute(query).all())

    found: dict[tuple[int, int], dict[str, Any]] = {}
    for row in rows(step_table, *KEY):
        plain = {n: getattr(row, n) for n in (*KEY, "cached", "seconds", "images", "iterations")}
        found[row.replicate, row.step] = {**plain, **{images: {} for images in IMAGES}}
    for row in rows(metric_table, *KEY):
        found[row.replicate, row.step][row.images][row.metric] = row.value
    if step is None:
        return list(found.values())
    names = database.about(study).get("classes") or []
    for row in rows(class_table, *KEY, "class_id"):
        name = names[row.class_id] if row.class_id < len(names) else None
        measured = {"class_id": row.class_id, "class_name": name, "iou": row.iou}
        classes = found[row.replicate, row.step].setdefault("classes", {i: [] for i in IMAGES})
        classes[row.images].append({**measured, "forgetting": row.forgetting})
    return list(found.values())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _seconds(stamp: Any) -> float | None:
    """Local time, as Optuna shows it, in seconds since 1970."""
    return None if stamp is None else stamp.timestamp()
