"""Comparisons of the trials of a study as conditions of the database: which state, value or params.

They mean what the filters of tables mean (`ucd_ray.tune.selection`), and a database looks only at the
trials that it must.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.tune import commands
from ucd_ray.tune.chunks import optuna_id
from ucd_ray.tune.database import Database
from ucd_ray.tune.event_data import OWN_STATES
from ucd_ray.tune.selection import NULLS, OPERATORS
from ucd_ray.tune.trial_rows import PARAMS, TRIALS, USER_ATTRS, VALUES, distribution_of

Condition = sa.ColumnElement[bool]
COMPARE: dict[str, Callable[[Any, Any], Any]] = {**OPERATORS, "!=": operator.ne}
STATES = ("QUEUED", "WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAILED", "INFEASIBLE", "CANCELLED")
EMPTY = ("null", '""')  # JSON of an attribute that says nothing
COLUMNS = ("number", "state", "value", "code")


# Trials with their first objective, as VALUES.c.value: null of those that are not complete.
WITH_VALUE = TRIALS.outerjoin(
    VALUES,
    (VALUES.c.trial_id == TRIALS.c.trial_id)
    & (VALUES.c.objective == 0)
    & (TRIALS.c.state == TrialState.COMPLETE),
)


class TrialFilter:
    """The comparisons of one study."""

    def __init__(self, database: Database, study: str) -> None:
        self.database = database
        stored = database.stored_spec(study)
        self.keys = dict.fromkeys([*stored["search"], *stored["recipe"]])  # that trials may have
        self.driven = commands.driven(database, study)
        self.of_study = TRIALS.c.study_id == optuna_id(database, study)

    def compare(self, name: str, sign: str, wanted: str) -> Condition:
        """`name sign wanted`, on rows of `WITH_VALUE`.  Raises ConfigError.

        name: number, state, value, code or a key; sign: = != > >= < <=
        """
        text = f"{name}{sign}{wanted}"
        if name == "state":
            return _chosen(sign, _state(wanted, text, driven=self.driven), text)
        if name == "code":
            return _chosen(sign, _attribute("code", json.dumps(wanted)), text)
        if name in ("number", "value"):
            column = TRIALS.c.number if name == "number" else VALUES.c.value
            return _number(column, sign, wanted, text)
        if name not in self.keys:
            hint = did_you_mean(name, [*COLUMNS, *self.keys])
            raise ConfigError(f"filter '{text}': there is no column '{name}'; {hint}")
        return _param(name, sign, wanted, text, self._distributions(name))

    def _distributions(self, key: str) -> list[str]:
        """The JSON of every distribution that a key had."""
        query = (
            sa.select(PARAMS.c.distribution_json)
            .join(TRIALS, TRIALS.c.trial_id == PARAMS.c.trial_id)
            .where(self.of_study, PARAMS.c.param_name == key)
            .distinct()
        )
        return list(self.database.read(lambda c: c.execute(query).scalars().all()))


def _chosen(sign: str, found: Condition, text: str) -> Condition:
    if sign not in ("=", "!="):
        raise ConfigError(f"filter '{text}': only numbers have an order; use = or !=")
    return found if sign == "=" else sa.not_(found)


def _state(wanted: str, text: str, *, driven: bool) -> Condition:
    state = TRIALS.c.state
    if wanted not in STATES:
        hint = did_you_mean(wanted, STATES)
        raise ConfigError(f"filter '{text}': '{wanted}' is no state; {hint}")
    if wanted in ("COMPLETE", "PRUNED"):
        return state == TrialState[wanted]
    if wanted == "QUEUED":
        return state == TrialState.WAITING
    codes = {shown: _attribute("code", f'"{code}"') for code, shown in OWN_STATES.items()}
    if wanted in codes:
        return (state == TrialState.FAIL) & codes[wanted]
    if wanted == "FAILED":
        return (state == TrialState.FAIL) & ~sa.or_(*codes.values())
    waits = sa.true() if not driven else _attribute("waiting", *EMPTY, other=True)
    return (state == TrialState.RUNNING) & (waits if wanted == "WAITING" else sa.not_(waits))


def _attribute(key: str, *texts: str, other: bool = False) -> Condition:
    """Whether a trial's attribute is one of some JSON texts, or with `other` any but those."""
    own = sa.select(USER_ATTRS.c.trial_id).where(
        USER_ATTRS.c.trial_id == TRIALS.c.trial_id,
        USER_ATTRS.c.key == key,
        USER_ATTRS.c.value_json.not_in(texts) if other else USER_ATTRS.c.value_json.in_(texts),
    )
    return own.exists()


def _number(column: Any, sign: str, wanted: str, text: str) -> Condition:
    if wanted.lower() in NULLS and sign in ("=", "!="):
        return column.is_(None) if sign == "=" else column.is_not(None)
    try:
        number = float(wanted)
    except ValueError:
        raise ConfigError(f"filter '{text}': '{wanted}' is no number") from None
    found: Condition = COMPARE[sign](column, number)
    return found | column.is_(None) if sign == "!=" else found


def _param(name: str, sign: str, wanted: str, text: str, distributions: list[str]) -> Condition:
    """What has no value is not a value: `!=` holds for trials without the key."""
    null = wanted.lower() in NULLS and sign in ("=", "!=")
    parts = [_holds(one, "!=" if null else sign, wanted, text) for one in distributions]
    if sign == "!=" and not null:
        parts = [_holds(one, "=", wanted, text) for one in distributions]
    own = sa.select(PARAMS.c.trial_id).where(
        PARAMS.c.trial_id == TRIALS.c.trial_id, PARAMS.c.param_name == name, sa.or_(False, *parts)
    )
    inverted = (sign == "!=") != null
    return sa.not_(own.exists()) if inverted else own.exists()


def _holds(distribution: str, sign: str, wanted: str, text: str) -> Condition:
    """Whether a param with this distribution compares as wanted; null: whether it has a value."""
    of_kind = PARAMS.c.distribution_json == distribution
    found = distribution_of(distribution)
    null = wanted.lower() in NULLS
    if isinstance(found, CategoricalDistribution):
        places = [i for i, choice in enumerate(found.choices) if _compares(choice, sign, wanted)]
        return of_kind & PARAMS.c.param_value.in_(places)
    return of_kind if null else of_kind & _number(PARAMS.c.param_value, sign, wanted, text)


def _compares(choice: Any, sign: str, wanted: str) -> bool:
    if choice is None or wanted.lower() in NULLS:
        same = choice is None and wanted.lower() in (*NULLS, "all")
        return same if sign == "=" else sign == "!=" and not same
    try:
        return bool(COMPARE[sign](float(choice), float(wanted)))
    except ValueError:
        same = str(choice).lower() == wanted.lower()
        return same if sign == "=" else sign == "!=" and not same
