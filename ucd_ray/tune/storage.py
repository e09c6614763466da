"""Optuna's storage for studies that one driver writes: Optuna's own tables, in few transactions.

Trials are kept in memory: finished ones are never read again, and those that this process made are known
without asking.  Trials of other processes are read anew until they are finished.  The params of a new
trial are written with the next thing that is said about it (Optuna's storages may do so), everything
else before its call returns.

Every write can be repeated: when the answer to a commit was lost with the connection, the second run
finds what the first one left, by the trial's id or by its time stamp.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ucd_ray.errors import StudyError
from ucd_ray.tune.trial_rows import VALUES, Rows, Write, local

if TYPE_CHECKING:
    from ucd_ray.tune.database import Database

T = TypeVar("T")

BY_VALUE = "ucd_trial_by_value"  # Optuna has none: a page of trials by value would read all of them
OPENINGS = 10  # processes that make Optuna's tables at the same time disturb one another


def open_rdb(database: Database) -> RDBStorage:
    """Optuna's own storage on the connections of a database; makes its tables, and our index on them.

    Raises StudyError.

    Its URL has no password: it needs none.
    """
    backend = database.engine.dialect.name
    driver = database.engine.dialect.driver
    options = {
        "creator": database.connect,
        "poolclass": sa.pool.QueuePool,
        "pool_size": 1,
        "pool_pre_ping": backend != "sqlite",
    }
    for attempt in range(OPENINGS):
        try:
            storage = database.patience.keep_trying(
                lambda: RDBStorage(f"{backend}+{driver}://", engine_kwargs=dict(options))
            )
            if not database.read(_has_index):
                database.write(_make_index)
            return storage
        except StudyError as error:
            made = ("already exists", "duplicate key", "UNIQUE constraint")
            if attempt == OPENINGS - 1 or not any(part in str(error) for part in made):
                raise
        except RuntimeError as error:  # tables of another version
            raise StudyError(f"database '{database.shown}': {error}") from None
        time.sleep(0.1 * (attempt + 1))
    raise AssertionError


def _has_index(connection: sa.Connection) -> bool:
    return any(i["name"] == BY_VALUE for i in sa.inspect(connection).get_indexes(VALUES.name))


def _make_index(connection: sa.Connection) -> None:
    columns = "(objective, value, trial_id)"
    connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {BY_VALUE} ON {VALUES.name} {columns}")


class Mirror:
    """The trials of one study as they are in the database."""

    def __init__(self, directions: list[StudyDirection]) -> None:
        self.directions = directions
        self.trials: dict[int, FrozenTrial] = {}  # by id
        self.foreign: set[int] = set()  # ids of unfinished trials that others may write
        self.complete_to = 0  # no trial with an id up to this one is missing
        self.distributions: dict[str, BaseDistribution] = {}

    def put(self, trial: FrozenTrial) -> None:
        """Adds a trial, or replaces it: who got the earlier object keeps it as it was."""
        self.trials[trial._trial_id] = trial
        for name, distribution in trial.distributions.items():
            self.distributions.setdefault(name, distribution)


class StudyStorage(BaseStorage):
    """See the module."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.rdb = open_rdb(database)
        self.rows = Rows(database.engine.dialect.name)
        self._lock = threading.RLock()
        self._mirrors: dict[int, Mirror] = {}
        self._study_of: dict[int, int] = {}
        self._pending: dict[int, list[Write]] = {}

    def __reduce__(self) -> NoReturn:
        raise TypeError("the storage of a study stays in its process")

    # Studies: rarely written, so Optuna's own way.

    def _rdb(self, call: Callable[[], T]) -> T:
        return self.database.patience.keep_trying(call)

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """The id of a new study.  Raises DuplicatedStudyError."""
        return self._rdb(lambda: self.rdb.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        """Removes a study and its trials.  Raises KeyError."""
        self._rdb(lambda: self.rdb.delete_study(study_id))
        with self._lock:
            self._mirrors.pop(study_id, None)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Sets an attribute.  Raises KeyError."""
        self._rdb(lambda: self.rdb.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Sets an attribute of Optuna's own.  Raises KeyError."""
        self._rdb(lambda: self.rdb.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        """The id of a study.  Raises KeyError."""
        return self._rdb(lambda: self.rdb.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """The name of a study.  Raises KeyError."""
        return self._rdb(lambda: self.rdb.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Whether each objective is minimised or maximised.  Raises KeyError."""
        with self._lock:
            return self._mirror(study_id).directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """All attributes of a study.  Raises KeyError."""
        return self._rdb(lambda: self.rdb.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """All attributes of Optuna's own.  Raises KeyError."""
        return self._rdb(lambda: self.rdb.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[Any]:
        """All studies by id."""
        return self._rdb(self.rdb.get_all_studies)

    # Reading trials.

    def _mirror(self, study_id: int) -> Mirror:
        if study_id not in self._mirrors:
            self._mirrors[study_id] = Mirror(
                self._rdb(lambda: self.rdb.get_study_directions(study_id))
            )
        return self._mirrors[study_id]

    def _refreshed(self, study_id: int) -> Mirror:
        """The mirror with what others wrote since."""
        mirror = self._mirror(study_id)
        after, foreign = mirror.complete_to, sorted(mirror.foreign)
        found = self.database.read(lambda c: self.rows.load(c, study_id, after, foreign))
        for trial in found:
            mirror.complete_to = max(mirror.complete_to, trial._trial_id)
            if trial._trial_id in mirror.trials and trial._trial_id not in mirror.foreign:
                continue  # ours: we know more about it
            mirror.put(trial)
            self._study_of[trial._trial_id] = study_id
            if trial.state.is_finished():
                mirror.foreign.discard(trial._trial_id)
            else:
                mirror.foreign.add(trial._trial_id)
        return mirror

    def _mirror_of(self, trial_id: int) -> Mirror:
        """The mirror that holds a trial, as it is now.  Raises KeyError."""
        if trial_id not in self._study_of:
            study_id = self.database.read(lambda c: self.rows.study_of(c, trial_id))
            if study_id is None:
                raise KeyError(f"no trial with id {trial_id}")
            self._refreshed(study_id)
        mirror = self._mirrors[self._study_of[trial_id]]
        if trial_id in mirror.foreign:
            self._refreshed(self._study_of[trial_id])
        return mirror

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """A copy of a trial.  Raises KeyError."""
        with self._lock:
            return changed(self._mirror_of(trial_id).trials[trial_id])

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """The trials of a study by number.  Raises KeyError."""
        with self._lock:
            trials = self._refreshed(study_id).trials.values()
            found = [t for t in trials if states is None or t.state in states]
        found.sort(key=lambda trial: trial.number)
        return copy.deepcopy(found) if deepcopy else found

    # Writing trials.

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """The id of a new trial, RUNNING or like its template.  Raises KeyError."""
        trial = copy.deepcopy(template_trial) or new_trial()
        reserved: list[int] = []  # of the first run, if there is a second
        with self._lock:
            mirror = self._mirror(study_id)
            trial._trial_id, trial.number = self.database.write(
                lambda c: self.rows.insert_trial(c, study_id, trial, reserved)
            )
            if trial.number == len(mirror.trials):
                mirror.complete_to = trial._trial_id
            mirror.put(trial)
            self._study_of[trial._trial_id] = study_id
            if trial.state == TrialState.WAITING:
                mirror.foreign.add(trial._trial_id)
        return trial._trial_id

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Sets a param, which is written with the next write of its trial."""
        with self._lock:
            mirror, trial = self._writable(trial_id)
            self.check_kind(trial_id, param_name, distribution)
            trial.params[param_name] = distribution.to_external_repr(param_value_internal)
            trial.distributions[param_name] = distribution
            write = self.rows.param(trial_id, param_name, param_value_internal, distribution)
            self._write_later(trial_id, write)
            mirror.put(trial)

    def check_kind(self, trial_id: int, name: str, distribution: BaseDistribution) -> None:
        """Raises ValueError if the study had another kind of distribution, or other choices."""
        known = self._mirror_of(trial_id).distributions.get(name)
        if known is not None:
            optuna.distributions.check_distribution_compatibility(known, distribution)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Sets an attribute of Optuna's own, which is written with the next write of its trial."""
        with self._lock:
            mirror, trial = self._writable(trial_id)
            trial.system_attrs[key] = json.loads(json.dumps(value))
            self._write_later(trial_id, self.rows.system_attr(trial_id, key, value))
            mirror.put(trial)

    def amend(self, attributes: Mapping[int, Mapping[str, Any]]) -> None:
        """Sets attributes of finished trials, by their id: what is known of them and was not stored."""
        with self._lock:
            writes = [
                self.rows.user_attr(trial_id, key, value)
                for trial_id, own in attributes.items()
                for key, value in own.items()
            ]
            self.database.write(lambda connection: self.rows.write(connection, writes))
            for trial_id, own in attributes.items():
                mirror = self._mirror_of(trial_id)
                trial = changed(mirror.trials[trial_id])
                trial.user_attrs.update(json.loads(json.dumps(own)))
                mirror.put(trial)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Sets an attribute."""
        with self._lock:
            mirror, trial = self._writable(trial_id)
            trial.user_attrs[key] = json.loads(json.dumps(value))
            self._write(trial_id, self.rows.user_attr(trial_id, key, value))
            mirror.put(trial)

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Sets the value of a step."""
        with self._lock:
            mirror, trial = self._writable(trial_id)
            trial.intermediate_values[step] = intermediate_value
            self._write(trial_id, self.rows.intermediate(trial_id, step, intermediate_value))
            mirror.put(trial)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Whether the state was set: a trial can be taken from WAITING to RUNNING only once."""
        stamp = datetime.now(UTC).replace(tzinfo=None)
        with self._lock:
            mirror, trial = self._writable(trial_id)
            pending = self._pending.get(trial_id, [])

            def work(connection: sa.Connection) -> bool:
                row = self.rows.locked(connection, trial_id)
                if row.state.is_finished():
                    if (row.state, row.datetime_complete) == (state, stamp):
                        return True  # by the first run of this call
                    raise UpdateFinishedTrialError(f"trial {trial.number} is {row.state.name}")
                if state == TrialState.RUNNING and row.state != TrialState.WAITING:
                    return row.datetime_start == stamp
                self.rows.write(connection, pending)
                self.rows.set_state(connection, trial_id, state, values, stamp)
                return True

            done = self._check(mirror, trial_id, work)
            if done:
                self._pending.pop(trial_id, None)
                mirror.foreign.discard(trial_id)
                trial.state = state
                trial.values = trial.values if values is None else list(values)
                if state == TrialState.RUNNING:
                    trial.datetime_start = local(stamp)
                if state.is_finished():
                    trial.datetime_complete = local(stamp)
                mirror.put(trial)
        return done

    def _writable(self, trial_id: int) -> tuple[Mirror, FrozenTrial]:
        """The mirror, and a copy of the trial to be changed.  Raises UpdateFinishedTrialError."""
        mirror = self._mirror_of(trial_id)
        trial = changed(mirror.trials[trial_id])
        self.check_trial_is_updatable(trial_id, trial.state)
        return mirror, trial

    def _write_later(self, trial_id: int, write: Write) -> None:
        if trial_id in self._mirrors[self._study_of[trial_id]].foreign:
            return self._write(trial_id, write)
        self._pending.setdefault(trial_id, []).append(write)

    def _write(self, trial_id: int, write: Write) -> None:
        """Writes what is pending for a trial, and this."""
        together = [*self._pending.get(trial_id, []), write]

        def work(connection: sa.Connection) -> None:
            row = self.rows.locked(connection, trial_id)
            if row.state.is_finished():
                raise UpdateFinishedTrialError(f"trial {trial_id} is {row.state.name}")
            self.rows.write(connection, together)

        self._check(self._mirrors[self._study_of[trial_id]], trial_id, work)
        self._pending.pop(trial_id, None)

    def _check(self, mirror: Mirror, trial_id: int, work: Callable[[sa.Connection], T]) -> T:
        """Does work on a trial, which is ours from then on, unless another process finished it."""
        try:
            result = self.database.write(work)
        except UpdateFinishedTrialError:
            mirror.foreign.add(trial_id)  # read it anew
            self._pending.pop(trial_id, None)
            raise
        if mirror.trials[trial_id].state == TrialState.RUNNING:
            mirror.foreign.discard(trial_id)
        return result


def new_trial() -> FrozenTrial:
    """A trial that runs from now on; id and number are not known yet."""
    return FrozenTrial(
        number=-1,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=-1,
    )


def changed(trial: FrozenTrial) -> FrozenTrial:
    """A copy that can be changed; values are shared."""
    twin = copy.copy(trial)
    twin.params = dict(trial.params)
    twin.distributions = dict(trial.distributions)
    twin.user_attrs = dict(trial.user_attrs)
    twin.system_attrs = dict(trial.system_attrs)
    twin.intermediate_values = dict(trial.intermediate_values)
    return twin
