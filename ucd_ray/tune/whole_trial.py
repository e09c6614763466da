"""One whole trial in two statements, where `Rows.load` reads many in six."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial

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


def _parts() -> sa.CompoundSelect[Any]:
    """All rows of a trial but its own, as table, place, key, number and text."""

    def part(table: sa.Table, key: Any, number: Any, text: Any) -> sa.Select[Any]:
        place = next(iter(table.primary_key.columns))
        name = sa.literal(table.name, sa.Text)
        columns = (sa.cast(key, sa.Text), number, sa.cast(text, sa.Text))
        return sa.select(name, place, *columns).where(table.c.trial_id == sa.bindparam("id"))

    none = sa.cast(sa.null(), sa.Float)
    curve = INTERMEDIATE.c
    return sa.union_all(
        part(VALUES, VALUES.c.objective, VALUES.c.value, VALUES.c.value_type),
        part(PARAMS, PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json),
        part(USER_ATTRS, USER_ATTRS.c.key, none, USER_ATTRS.c.value_json),
        part(SYSTEM_ATTRS, SYSTEM_ATTRS.c.key, none, SYSTEM_ATTRS.c.value_json),
        part(INTERMEDIATE, curve.step, curve.intermediate_value, curve.intermediate_value_type),
    )


def _of_number() -> sa.Select[Any]:
    """The row of a trial.

    Numbers have no index, but are given in the order of ids, which have one: number n has an id of at
    least the study's first plus n, and mostly that.
    """
    own = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == sa.bindparam("study"))
    of_study = TRIALS.c.study_id == own.scalar_subquery()
    first = sa.select(sa.func.min(TRIALS.c.trial_id)).where(of_study).scalar_subquery()
    number = sa.bindparam("number", type_=sa.BigInteger)
    where = (of_study, TRIALS.c.trial_id >= first + number, TRIALS.c.number == number)
    return sa.select(TRIALS).where(*where).order_by(TRIALS.c.trial_id).limit(1)


ALL_PARTS, OF_NUMBER = _parts(), _of_number()


def row_of_number(connection: sa.Connection, study: str, number: int) -> sa.Row[Any] | None:
    """The row of trial `number` of a study; None if there is none.  Optuna's tables must be there."""
    return connection.execute(OF_NUMBER, {"study": study, "number": number}).first()


def whole_trial(connection: sa.Connection, row: sa.Row[Any]) -> FrozenTrial:
    """The trial of such a row."""
    rows = connection.execute(ALL_PARTS, {"id": row.trial_id}).all()
    found: dict[str, list[SimpleNamespace]] = defaultdict(list)
    for table, _, key, number, text in sorted(rows, key=lambda r: r[1]):
        found[table].append(PARTS[table](key, number, text))
    return trial_of(row, *(found[table] for table in PARTS))
