"""Trials as rows of Optuna's tables: the statements of `ucd_ray.tune.storage`, made once.

The tables are Optuna's (version 5 stores times as UTC); `tests/tune/test_storage.py` reads with
Optuna's own storage what this writes, and the other way round.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages._rdb import models  # the only place where the tables are described
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite

Write = tuple[sa.Executable, dict[str, Any]]

STUDIES = models.StudyModel.__table__
TRIALS = models.TrialModel.__table__
PARAMS = models.TrialParamModel.__table__
VALUES = models.TrialValueModel.__table__
INTERMEDIATE = models.TrialIntermediateValueModel.__table__
USER_ATTRS = models.TrialUserAttributeModel.__table__
SYSTEM_ATTRS = models.TrialSystemAttributeModel.__table__

distribution_of = lru_cache(maxsize=1000)(json_to_distribution)
text_of = lru_cache(maxsize=1000)(distribution_to_json)


def utc(stamp: datetime | None) -> datetime | None:
    """Local time, as Optuna shows it, in UTC, as its tables hold it."""
    return None if stamp is None else stamp.astimezone(UTC).replace(tzinfo=None)


def local(stamp: datetime | None) -> datetime | None:
    """The other way round."""
    return None if stamp is None else stamp.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


class Rows:
    """Reads and writes trials on one dialect."""

    def __init__(self, dialect: str) -> None:
        insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect]
        self.has_sequences = dialect == "postgresql"

        def upsert(table: sa.Table, *key: str) -> sa.Executable:
            statement = insert(table)
            names = [c.name for c in table.columns if not c.primary_key and c.name not in key]
            return statement.on_conflict_do_update(
                index_elements=key, set_={name: statement.excluded[name] for name in names}
            )

        self._param = upsert(PARAMS, "trial_id", "param_name")
        self._value = upsert(VALUES, "trial_id", "objective")
        self._intermediate = upsert(INTERMEDIATE, "trial_id", "step")
        self._user_attr = upsert(USER_ATTRS, "trial_id", "key")
        self._system_attr = upsert(SYSTEM_ATTRS, "trial_id", "key")
        self._lock = (
            sa.select(TRIALS.c.state, TRIALS.c.datetime_start, TRIALS.c.datetime_complete)
            .where(TRIALS.c.trial_id == sa.bindparam("of_trial"))
            .with_for_update()
        )
        self._lock_study = (
            sa.select(STUDIES.c.study_id)
            .where(STUDIES.c.study_id == sa.bindparam("of_study"))
            .with_for_update()
        )
        self._count = sa.select(sa.func.count()).where(
            TRIALS.c.study_id == sa.bindparam("of_study")
        )
        self._insert = sa.insert(TRIALS)
        self._update = sa.update(TRIALS).where(TRIALS.c.trial_id == sa.bindparam("of_trial"))
        of_study = TRIALS.c.study_id == sa.bindparam("of_study")
        above = TRIALS.c.trial_id > sa.bindparam("after")
        self._ids: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
        chosen = TRIALS.c.trial_id.in_(self._ids)
        self._chosen = sa.select(TRIALS).where(chosen)
        self._any_above = sa.select(TRIALS.c.trial_id).where(of_study, above).limit(1)
        self._above_or_chosen = sa.select(TRIALS).where(of_study, above | chosen)

    # Writes.

    def param(
        self, trial_id: int, name: str, internal: float, distribution: BaseDistribution
    ) -> Write:
        """One param."""
        values = {"trial_id": trial_id, "param_name": name, "param_value": internal}
        return self._param, {**values, "distribution_json": text_of(distribution)}

    def user_attr(self, trial_id: int, key: str, value: Any) -> Write:
        """One attribute."""
        return self._user_attr, {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}

    def system_attr(self, trial_id: int, key: str, value: Any) -> Write:
        """One attribute of Optuna's own."""
        values = {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        return self._system_attr, values

    def intermediate(self, trial_id: int, step: int, value: float) -> Write:
        """The value of one step."""
        model = models.TrialIntermediateValueModel
        number, kind = model.intermediate_value_to_stored_repr(value)
        values = {"intermediate_value": number, "intermediate_value_type": kind}
        return self._intermediate, {"trial_id": trial_id, "step": step, **values}

    def value(self, trial_id: int, objective: int, value: float) -> Write:
        """The value of one objective."""
        number, kind = models.TrialValueModel.value_to_stored_repr(value)
        values = {"value": number, "value_type": kind}
        return self._value, {"trial_id": trial_id, "objective": objective, **values}

    def everything(self, trial_id: int, trial: FrozenTrial) -> list[Write]:
        """All that a trial has beside its row."""
        writes = [self.value(trial_id, i, v) for i, v in enumerate(trial.values or ())]
        for name, value in trial.params.items():
            distribution = trial.distributions[name]
            internal = distribution.to_internal_repr(value)
            writes.append(self.param(trial_id, name, internal, distribution))
        writes += [self.user_attr(trial_id, k, v) for k, v in trial.user_attrs.items()]
        writes += [self.system_attr(trial_id, k, v) for k, v in trial.system_attrs.items()]
        writes += [self.intermediate(trial_id, s, v) for s, v in trial.intermediate_values.items()]
        return writes

    def write(self, connection: sa.Connection, writes: Iterable[Write]) -> None:
        """Writes rows; neighbours of one table in one statement."""
        groups: list[tuple[sa.Executable, list[dict[str, Any]]]] = []
        for statement, values in writes:
            if not groups or groups[-1][0] is not statement:
                groups.append((statement, []))
            groups[-1][1].append(values)
        for statement, rows in groups:
            connection.execute(statement, rows)

    def insert_trial(
        self, connection: sa.Connection, study_id: int, trial: FrozenTrial, reserved: list[int]
    ) -> tuple[int, int]:
        """Id and number of a new trial.  Raises KeyError.

        reserved: empty, or the id that an earlier run of this call drew; whether that run was
            committed shows in the table
        """
        if connection.execute(self._lock_study, {"of_study": study_id}).first() is None:
            raise KeyError(f"no study with id {study_id}")
        if reserved and (made := self._number(connection, reserved[0])) is not None:
            return reserved[0], made
        if self.has_sequences and not reserved:
            sequence = sa.func.pg_get_serial_sequence(TRIALS.name, "trial_id")
            reserved.append(connection.execute(sa.select(sa.func.nextval(sequence))).scalar_one())
        number = connection.execute(self._count, {"of_study": study_id}).scalar_one()
        row = {
            "study_id": study_id,
            "number": number,
            "state": trial.state,
            "datetime_start": utc(trial.datetime_start),
            "datetime_complete": utc(trial.datetime_complete),
        }
        if reserved:
            row["trial_id"] = reserved[0]
        done = connection.execute(self._insert, row)
        trial_id: int = reserved[0] if reserved else done.lastrowid
        self.write(connection, self.everything(trial_id, trial))
        return trial_id, number

    def _number(self, connection: sa.Connection, trial_id: int) -> int | None:
        query = sa.select(TRIALS.c.number).where(TRIALS.c.trial_id == trial_id)
        return connection.execute(query).scalar()

    def locked(self, connection: sa.Connection, trial_id: int) -> sa.Row[Any]:
        """State and times of a trial, which nobody else can change until the transaction ends."""
        return connection.execute(self._lock, {"of_trial": trial_id}).one()

    def set_state(
        self,
        connection: sa.Connection,
        trial_id: int,
        state: TrialState,
        values: Sequence[float] | None,
        stamp: datetime,
    ) -> None:
        """Sets state, values and the time, in UTC, that belongs to the state."""
        self.write(connection, [self.value(trial_id, i, v) for i, v in enumerate(values or ())])
        row: dict[str, Any] = {"of_trial": trial_id, "state": state}
        if state == TrialState.RUNNING:
            row["datetime_start"] = stamp
        if state.is_finished():
            row["datetime_complete"] = stamp
        connection.execute(self._update, row)

    # Reads.

    def study_of(self, connection: sa.Connection, trial_id: int) -> int | None:
        """The study of a trial."""
        query = sa.select(TRIALS.c.study_id).where(TRIALS.c.trial_id == trial_id)
        return connection.execute(query).scalar()

    def load(
        self, connection: sa.Connection, study_id: int, after: int, ids: Sequence[int]
    ) -> list[FrozenTrial]:
        """The trials with an id above `after` or one of `ids`, by id."""
        chosen: dict[str, Any] = {"of_study": study_id, "after": after}
        if not ids and connection.execute(self._any_above, chosen).first() is None:
            return []
        query = self._above_or_chosen
        within = query.with_only_columns(TRIALS.c.trial_id).scalar_subquery()
        return _read(connection, query, within, {**chosen, "ids": ids})

    def some(self, connection: sa.Connection, ids: Sequence[int]) -> list[FrozenTrial]:
        """The trials with these ids, by id; the work is theirs, however many the study has."""
        return _read(connection, self._chosen, self._ids, {"ids": ids})


def _read(
    connection: sa.Connection, query: sa.Select[Any], within: Any, chosen: dict[str, Any]
) -> list[FrozenTrial]:
    """Trials of a query, which has the ids `within`."""
    rows = connection.execute(query.order_by(TRIALS.c.trial_id), chosen).all()

    def of(table: sa.Table) -> dict[int, list[sa.Row[Any]]]:
        found: dict[int, list[sa.Row[Any]]] = defaultdict(list)
        order = next(iter(table.primary_key.columns))
        query = sa.select(table).where(table.c.trial_id.in_(within)).order_by(order)
        for row in connection.execute(query, chosen):
            found[row.trial_id].append(row)
        return found

    parts = [of(t) for t in (VALUES, PARAMS, USER_ATTRS, SYSTEM_ATTRS, INTERMEDIATE)]
    return [trial_of(row, *(part.get(row.trial_id, []) for part in parts)) for row in rows]


def trial_of(
    row: Any,
    values: Sequence[Any],
    params: Sequence[Any],
    user_attrs: Sequence[Any],
    system_attrs: Sequence[Any],
    intermediate: Sequence[Any],
) -> FrozenTrial:
    """The trial of a row, with its rows in the other tables in their order."""
    of_value = models.TrialValueModel.stored_repr_to_value
    of_step = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    distributions = {p.param_name: distribution_of(p.distribution_json) for p in params}
    found = sorted(values, key=lambda v: v.objective)
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        values=[of_value(v.value, v.value_type) for v in found] or None,
        datetime_start=local(row.datetime_start),
        datetime_complete=local(row.datetime_complete),
        params={
            p.param_name: distributions[p.param_name].to_external_repr(p.param_value)
            for p in params
        },
        distributions=distributions,
        user_attrs={a.key: json.loads(a.value_json) for a in user_attrs},
        system_attrs={a.key: json.loads(a.value_json) for a in system_attrs},
        intermediate_values={
            v.step: of_step(v.intermediate_value, v.intermediate_value_type) for v in intermediate
        },
        trial_id=row.trial_id,
    )
