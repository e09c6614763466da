"""How many trials of a database are in which state, for all of its studies together."""

from __future__ import annotations

import json
from collections import Counter

import sqlalchemy as sa
from optuna.trial import TrialState

from ucd_ray.tune.chunks import state_and_reason
from ucd_ray.tune.database import is_driven
from ucd_ray.tune.tables import study_table
from ucd_ray.tune.trial_rows import STUDIES, TRIALS, USER_ATTRS


def trials_by_state(connection: sa.Connection) -> dict[str, int]:
    """Trials by state, as lists of trials show it, without the runs of replicates beside them."""
    state, name = TRIALS.c.state, STUDIES.c.study_name
    fails, runs = state == TrialState.FAIL, state == TrialState.RUNNING
    code, waiting, of = USER_ATTRS.alias(), USER_ATTRS.alias(), study_table.c
    alike = (state, code.c.value_json, waiting.c.value_json, of.driver, of.heartbeat)
    query = (
        sa.select(*alike, sa.func.count())
        .join_from(TRIALS, STUDIES, STUDIES.c.study_id == TRIALS.c.study_id)
        .outerjoin(code, fails & _is(code, "code"))
        .outerjoin(waiting, runs & _is(waiting, "waiting"))
        .outerjoin(study_table, runs & (of.name == name))
        .where(name.not_like("%/%"))
        .group_by(*alike)
    )
    found: Counter[str] = Counter()
    for kind, ended, waits, driver, heartbeat, count in connection.execute(query):
        known = {"code": json.loads(ended or "null"), "waiting": json.loads(waits or "null")}
        driven = is_driven(driver, heartbeat)
        found[state_and_reason(kind.name, known, driven=driven)[0]] += count
    return dict(found)


def _is(attribute: sa.Alias, key: str) -> sa.ColumnElement[bool]:
    return (attribute.c.trial_id == TRIALS.c.trial_id) & (attribute.c.key == key)
