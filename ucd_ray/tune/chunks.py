"""The trials of a study in chunks of consecutive ones, straight from Optuna's tables.

A chunk is one short transaction: a study that runs meanwhile is not held up by who reads slowly, and a
hundred thousand trials need the memory of one chunk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.storages._rdb import models
from optuna.trial import TrialState

from ucd_ray.tune import commands
from ucd_ray.tune.database import Database
from ucd_ray.tune.event_data import shown_state
from ucd_ray.tune.keys import TRIAL, study_of_replicate
from ucd_ray.tune.objectives import RESULTS
from ucd_ray.tune.trial_rows import (
    INTERMEDIATE,
    PARAMS,
    SYSTEM_ATTRS,
    TRIALS,
    USER_ATTRS,
    VALUES,
    distribution_of,
)

CHUNK = 500  # trials
ENDED = [state for state in TrialState if state.is_finished()]
ATTRIBUTES = (
    "code",
    RESULTS,
    "reason",
    "seconds",
    "waiting",
    "waiting_code",
    "revision",
    TRIAL,
)  # of a trial, that tables show
NO_DRIVER = (
    "WAITING",
    "NO_DRIVER",
    "nothing runs the study; its next start goes on with this trial",
)


@dataclass
class StoredTrial:
    """What tables show of one trial."""

    number: int
    state: str  # in our words
    code: str | None
    reason: str | None
    seconds: float | None
    revision: int = 0
    value: float | None = None
    measured: dict[int, float] = field(default_factory=dict)  # values by replicate
    params: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)  # params that it was queued with
    results: dict[str, float] = field(default_factory=dict)  # metrics that goals name, if several


def state_and_reason(
    state: str, attributes: Mapping[str, Any], *, driven: bool
) -> tuple[str, str | None, str | None]:
    """A trial's state in our words, its reason code and the reason.

    state: Optuna's; attributes: the trial's; driven: its study has a driver
    """
    shown = shown_state(state, attributes)
    if state in ("COMPLETE", "PRUNED", "FAIL"):
        return shown, attributes.get("code"), attributes.get("reason")
    if state == "RUNNING" and not driven:
        return NO_DRIVER
    waits = attributes.get("waiting")
    return shown, waits and attributes.get("waiting_code"), waits


def trial_chunks(
    database: Database,
    study: str,
    *,
    whole: bool = True,
    measured: bool = False,
    replicate: int | None = None,
) -> Iterator[list[StoredTrial]]:
    """The trials of a study by number, at most `CHUNK` at a time.

    whole: with values and params, not only the states; measured: and the values of replicates;
    replicate: only their runs of this replicate
    """
    driven, after = commands.driven(database, study), -1
    rows = study if replicate is None else study_of_replicate(study, replicate)
    study_id = optuna_id(database, rows)
    while study_id is not None:
        read = partial(_chunk, study_id=study_id, after=after, driven=driven)
        found = database.read(partial(read, whole=whole, measured=measured))
        if not found:
            return
        after = max(found)
        yield list(found.values())


def param_types(database: Database, study: str) -> dict[str, set[type]]:
    """Which kinds of values each param of a study's trials can have, NoneType among them."""
    query = (
        sa.select(PARAMS.c.param_name, PARAMS.c.distribution_json)
        .join(TRIALS, TRIALS.c.trial_id == PARAMS.c.trial_id)
        .where(TRIALS.c.study_id == optuna_id(database, study))
        .distinct()
    )
    kinds: dict[str, set[type]] = {}
    for name, text in database.read(lambda connection: connection.execute(query).all()):
        distribution, found = distribution_of(text), kinds.setdefault(name, set())
        if isinstance(distribution, CategoricalDistribution):
            found |= {type(choice) for choice in distribution.choices}
        else:
            found.add(int if isinstance(distribution, IntDistribution) else float)
    return kinds


def count_ended(database: Database, study: str) -> int:
    """How many trials of a study have ended, one way or another."""
    query = sa.select(sa.func.count()).where(
        TRIALS.c.study_id == optuna_id(database, study), TRIALS.c.state.in_(ENDED)
    )
    return int(database.read(lambda connection: connection.execute(query).scalar_one()))


def optuna_id(database: Database, study: str) -> int | None:
    """Optuna's id of a study; None if its driver died before it asked for a trial."""
    storage = database.optuna_storage()  # makes Optuna's tables, if they are not there yet
    try:
        return int(storage.get_study_id_from_name(study))
    except KeyError:
        return None


def _chunk(
    connection: sa.Connection,
    *,
    study_id: int,
    after: int,
    driven: bool,
    whole: bool,
    measured: bool,
) -> dict[int, StoredTrial]:
    """Trials by their id, the next ones above `after`."""
    query = (
        sa.select(TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state)
        .where(TRIALS.c.study_id == study_id, TRIALS.c.trial_id > after)
        .order_by(TRIALS.c.trial_id)
        .limit(CHUNK)
    )
    rows = connection.execute(query).all()
    if not rows:
        return {}
    ids = (rows[0].trial_id, rows[-1].trial_id)
    attributes = _attributes(connection, ids)
    found = {}
    for row in rows:
        own = attributes.get(row.trial_id, {})
        state, code, reason = state_and_reason(row.state.name, own, driven=driven)
        number, seconds = own.get(TRIAL, row.number), own.get("seconds")
        of_row = (number, state, code, reason, seconds, own.get("revision", 0))
        found[row.trial_id] = StoredTrial(*of_row, results=own.get(RESULTS, {}))
    if whole:
        _add_values(connection, ids, found)
        _add_params(connection, ids, found)
        _add_given(connection, ids, found)
    if measured:
        _add_measured(connection, ids, found)
    return found


def _attributes(connection: sa.Connection, ids: tuple[int, int]) -> dict[int, dict[str, Any]]:
    query = sa.select(USER_ATTRS.c.trial_id, USER_ATTRS.c.key, USER_ATTRS.c.value_json)
    named = USER_ATTRS.c.key.in_(ATTRIBUTES)
    found: dict[int, dict[str, Any]] = {}
    for trial_id, key, text in connection.execute(query.where(_within(USER_ATTRS, ids), named)):
        found.setdefault(trial_id, {})[key] = json.loads(text)
    return found


def _add_values(
    connection: sa.Connection, ids: tuple[int, int], found: dict[int, StoredTrial]
) -> None:
    """Values of complete trials: of a pruned one Optuna keeps the last intermediate value."""
    query = sa.select(VALUES.c.trial_id, VALUES.c.value, VALUES.c.value_type)
    first = VALUES.c.objective == 0
    of_value = models.TrialValueModel.stored_repr_to_value
    for trial_id, value, kind in connection.execute(query.where(_within(VALUES, ids), first)):
        trial = found.get(trial_id)  # the ids between may be another study's
        if trial is not None and trial.state == "COMPLETE":
            trial.value = of_value(value, kind)


def _add_params(
    connection: sa.Connection, ids: tuple[int, int], found: dict[int, StoredTrial]
) -> None:
    columns = (PARAMS.c.trial_id, PARAMS.c.param_name, PARAMS.c.param_value)
    query = sa.select(*columns, PARAMS.c.distribution_json).where(_within(PARAMS, ids))
    for trial_id, name, internal, text in connection.execute(query):
        trial = found.get(trial_id)
        if trial is not None:
            trial.params[name] = distribution_of(text).to_external_repr(internal)


def _add_given(
    connection: sa.Connection, ids: tuple[int, int], found: dict[int, StoredTrial]
) -> None:
    """What trials were queued with: the sampler adds the other params when they start."""
    query = sa.select(SYSTEM_ATTRS.c.trial_id, SYSTEM_ATTRS.c.value_json)
    given = SYSTEM_ATTRS.c.key == "fixed_params"
    for trial_id, text in connection.execute(query.where(_within(SYSTEM_ATTRS, ids), given)):
        trial = found.get(trial_id)
        if trial is not None and not trial.params:
            trial.given = json.loads(text)


def _add_measured(
    connection: sa.Connection, ids: tuple[int, int], found: dict[int, StoredTrial]
) -> None:
    """What finished replicates measured: the intermediate values of a trial that has several."""
    columns = (INTERMEDIATE.c.trial_id, INTERMEDIATE.c.step, INTERMEDIATE.c.intermediate_value)
    for trial_id, replicate, value in connection.execute(
        sa.select(*columns).where(_within(INTERMEDIATE, ids))
    ):
        if trial_id in found:
            found[trial_id].measured[replicate] = value


def _within(table: sa.Table, ids: tuple[int, int]) -> sa.ColumnElement[bool]:
    return table.c.trial_id.between(*ids)
