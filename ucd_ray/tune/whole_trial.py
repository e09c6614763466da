"""One whole trial in one statement, where `Rows.load` reads many in six."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from ucd_ray.tune.trial_rows import (
    INTERMEDIATE,
    PARAMS,
    STUDIES,
    SYSTEM_ATTRS,
    TRIALS,
    USER_ATTRS,
    VALUES,
    trial_of,
)

Part = Callable[[str, Any, Any], SimpleNamespace]
VALUE = models.TrialValueModel.TrialValueType
STEP_VALUE = models.TrialIntermediateValueModel.TrialIntermediateValueType
NO_NUMBER = sa.cast(sa.null(), sa.Float)
NO_TEXT = sa.cast(sa.null(), sa.Text)
NO_TIME = sa.cast(sa.null(), sa.DateTime)


def _attribute(key: str, _: None, text: str) -> SimpleNamespace:
    return SimpleNamespace(key=key, value_json=text)


# A row of each table from a key, a number and a text; in the order that `trial_of` has.
PARTS: dict[str, Part] = {
    VALUES.name: lambda key, number, text: SimpleNamespace(
        objective=int(key), value=number, value_type=VALUE[text]
    ),
    PARAMS.name: lambda key, number, text: SimpleNamespace(
        param_name=key, param_value=number, distribution_json=text
    ),
    USER_ATTRS.name: _attribute,
    SYSTEM_ATTRS.name: _attribute,
    INTERMEDIATE.name: lambda key, number, text: SimpleNamespace(
        step=int(key), intermediate_value=number, intermediate_value_type=STEP_VALUE[text]
    ),
}


def _of_number() -> sa.Select[Any]:
    """The row of a trial.

    Numbers have no index, but are given in the order of ids, which have one: number n has an id of at
    least the study's first plus n, and mostly that.
    """
    own = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == sa.bindparam("study"))
    of_study = TRIALS.c.study_id == own.scalar_subquery()
    first = sa.select(sa.func.min(TRIALS.c.trial_id)).where(of_study).scalar_subquery()
    number = sa.bindparam("of_number", type_=sa.BigInteger)
    where = (of_study, TRIALS.c.trial_id >= first + number, TRIALS.c.number == number)
    return sa.select(TRIALS).where(*where).order_by(TRIALS.c.trial_id).limit(1)


def _one_trial() -> sa.CompoundSelect[Any]:
    """The row of a trial and all its rows in other tables: table, place, key, number, text, times.

    The trial's own has its state as key, and alone has times.
    """
    trial = _of_number().cte("trial")

    def part(table: sa.Table, key: Any, number: Any, text: Any) -> sa.Select[Any]:
        place = next(iter(table.primary_key.columns))
        columns = (sa.cast(key, sa.Text), number, sa.cast(text, sa.Text), NO_TIME, NO_TIME)
        mine = table.c.trial_id == sa.select(trial.c.trial_id).scalar_subquery()
        return sa.select(sa.literal(table.name, sa.Text), place, *columns).where(mine)

    curve, times = INTERMEDIATE.c, (trial.c.datetime_start, trial.c.datetime_complete)
    name, state = sa.literal(TRIALS.name, sa.Text), sa.cast(trial.c.state, sa.Text)
    return sa.select(name, trial.c.trial_id, state, NO_NUMBER, NO_TEXT, *times).union_all(
        part(VALUES, VALUES.c.objective, VALUES.c.value, VALUES.c.value_type),
        part(PARAMS, PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json),
        part(USER_ATTRS, USER_ATTRS.c.key, NO_NUMBER, USER_ATTRS.c.value_json),
        part(SYSTEM_ATTRS, SYSTEM_ATTRS.c.key, NO_NUMBER, SYSTEM_ATTRS.c.value_json),
        part(INTERMEDIATE, curve.step, curve.intermediate_value, curve.intermediate_value_type),
    )


OF_NUMBER, ONE_TRIAL = _of_number(), _one_trial()


def id_of_number(connection: sa.Connection, study: str, number: int) -> int | None:
    """Optuna's id of trial `number` of a study; None: no such trial.  Its tables must be there."""
    row = connection.execute(OF_NUMBER, {"study": study, "of_number": number}).first()
    return None if row is None else int(row.trial_id)


def whole_trial(connection: sa.Connection, study: str, number: int) -> FrozenTrial | None:
    """Trial `number` of a study; None if there is no such trial.  Optuna's tables must be there."""
    rows = connection.execute(ONE_TRIAL, {"study": study, "of_number": number}).all()
    found: dict[str, list[SimpleNamespace]] = defaultdict(list)
    trial = None
    for table, place, key, value, text, start, end in sorted(rows, key=itemgetter(0, 1)):
        if table == TRIALS.name:
            trial = SimpleNamespace(
                trial_id=place,
                number=number,
                state=TrialState[key],
                datetime_start=start,
                datetime_complete=end,
            )
        else:
            found[table].append(PARTS[table](key, value, text))
    return None if trial is None else trial_of(trial, *(found[table] for table in PARTS))
