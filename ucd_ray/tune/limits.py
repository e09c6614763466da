"""Limits on results that come later: what finished trials measured beside what was asked for then."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import sqlalchemy as sa

from ucd_ray.tune.database import Database
from ucd_ray.tune.goals import Goals, measured_with
from ucd_ray.tune.objectives import RESULTS
from ucd_ray.tune.results import stored_trials
from ucd_ray.tune.tables import metric_table, step_table

Measured = dict[str, float]


def complete_results(database: Database, study: str, goals: Goals) -> None:
    """Stores with every complete trial the metrics that goals name, as far as they were measured.

    May be repeated: what a trial has measured does not change.
    """
    wanted = set(goals.metrics)
    lacking = [
        trial
        for trial in stored_trials(database, study)
        if trial.state.name == "COMPLETE" and wanted - trial.user_attrs.get(RESULTS, {}).keys()
    ]
    if not lacking:
        return
    measured = _measured(database, study)
    found: dict[int, dict[str, Any]] = {}
    for trial in lacking:
        objectives = dict(zip(goals.objectives, trial.values, strict=True))
        known = {**measured.get(trial.number, {}), **objectives}
        kept = {
            name: known[name] for name in goals.metrics if not math.isnan(known.get(name, math.nan))
        }
        found[trial._trial_id] = {RESULTS: {**trial.user_attrs.get(RESULTS, {}), **kept}}
    database.optuna_storage().amend(found)


def _measured(database: Database, study: str) -> dict[int, Measured]:
    """All metrics of the runs of a study by trial, from the tables of steps."""
    m, s = metric_table.c, step_table.c
    means = sa.select(m.number, m.step, m.metric, m.value).where(
        m.study == study, m.replicate == 0, m.images == "select", m.value.is_not(None)
    )
    steps = (
        sa.select(s.number, s.step, s.seconds)
        .where(s.study == study, s.replicate == 0)
        .order_by(s.number, s.step)
    )
    of_step: dict[tuple[int, int], Measured] = defaultdict(dict)
    for number, step, metric, value in database.read(lambda c: c.execute(means).all()):
        of_step[number, step][metric] = value
    found: dict[int, Measured] = defaultdict(dict)
    for number, step, seconds in database.read(lambda c: c.execute(steps).all()):
        report = {"step": step, "seconds": seconds, "select": {"means": of_step[number, step]}}
        found[number] = measured_with(found[number], report)
    return found
