"""What a user does to a study from another process: pause, resume, stop, cancel, delete.

Every function may be called again: what is done already is said, not done twice.  A living driver is asked
through the table of commands and answers there; without one the database is changed here, under a claim
that keeps drivers out meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from ucd_ray.errors import StudyError
from ucd_ray.store import Store
from ucd_ray.tune import commands
from ucd_ray.tune.admission import WAITS
from ucd_ray.tune.database import Database, is_driven
from ucd_ray.tune.event_data import event_data
from ucd_ray.tune.events import tell
from ucd_ray.tune.ledger import OPEN
from ucd_ray.tune.one_trial import stored_trial
from ucd_ray.tune.results import state_of, stored_trials
from ucd_ray.tune.seen import CANCELLED, STOPPED_BY_USER, cancel_queued
from ucd_ray.tune.tables import hold_table, ledger_table, study_table, tables

WAIT_S = 60.0  # for a driver, unless the caller says otherwise
SILENT_S = 10.0  # after which a driver that shall end at once is ended from outside
TERM_S = 10.0  # from SIGTERM to SIGKILL
POLL_S = 0.2


@dataclass(frozen=True)
class Outcome:
    """What came of a command.

    done: it has been carried out, not only noted for the driver; command: its id, if the driver got one;
    trial: number of the one that was queued
    """

    text: str
    done: bool = True
    command: int | None = None
    trial: int | None = None


@dataclass(frozen=True)
class Driver:
    """The living process that drives a study."""

    host: str
    pid: int
    started: float  # of the process, in seconds since 1970
    heartbeat: float

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine."""
        return self.host == socket.gethostname()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def driver_of(database: Database, study: str) -> Driver | None:
    """Who drives a study now.  Raises StudyError if there is no such study."""
    columns = (study_table.c.driver, study_table.c.heartbeat)
    query = sa.select(*columns).where(study_table.c.name == study)
    row = database.read(lambda connection: connection.execute(query).first())
    if row is None:
        database.stored_spec(study)  # raises, and names the nearest
    if row is None or not is_driven(row.driver, row.heartbeat):
        return None
    return Driver(**json.loads(row.driver), heartbeat=row.heartbeat or 0.0)


def pause(database: Database, study: str, *, wait_s: float = WAIT_S) -> Outcome:
    """No new trials; running ones stop at their next checkpoint and their workers are let go."""
    asked = Asked(database, study, commands.PAUSE, wait_s)
    if asked.answer is None and asked.driver is not None:
        return asked.unanswered()
    how = f"`ucd-ray study resume {study}` goes on"
    if asked.driver is None:
        asked.finish("noted")
        return Outcome(
            f"study '{study}' is paused; nothing runs it, and its next start waits; {how}"
        )
    if asked.answer != "paused":
        return Outcome(f"study '{study}': {asked.answer}; its next start is paused")
    asked.wait_until(lambda: _gangs(database, study) == 0)
    left = _gangs(database, study)
    rest = (
        f"{left} gang(s) still train up to their next checkpoint" if left else "it holds no workers"
    )
    return Outcome(f"study '{study}' is paused; {rest}; {how}")


def resume(database: Database, study: str, *, wait_s: float = WAIT_S) -> Outcome:
    """A paused study goes on."""
    was_paused = commands.is_paused(database, study)
    asked = Asked(database, study, commands.RESUME, wait_s)
    if asked.answer is None and asked.driver is not None:
        return asked.unanswered()
    if asked.driver is None:
        asked.finish("noted")
        now = "is no longer paused" if was_paused else "is not paused"
        start = f"nothing runs it: `ucd-ray study run {study}` does"
        return Outcome(f"study '{study}' {now}; {start}")
    return Outcome(f"study '{study}' {'goes on' if was_paused else 'was not paused'}")


def stop(
    database: Database, study: str, *, how: str = "checkpoint", wait_s: float = WAIT_S
) -> Outcome:
    """Ends the driver of a study; what is open is adopted by the next one, unless `how` is kill.

    how: drain (running trials are finished first), checkpoint, or kill (at once; open trials are cancelled)
    """
    assert how in commands.HOWS, how
    if driver_of(database, study) is None:
        return _nothing_to_stop(database, study, how)
    kill = how == "kill"
    asked = Asked(
        database, study, commands.STOP, min(wait_s, SILENT_S) if kill else wait_s, how=how
    )
    if how == "drain" and asked.answer is not None:
        return Outcome(f"study '{study}' ends once its running trials are finished")
    if asked.answer is not None:
        asked.wait_until(lambda: driver_of(database, study) is None, wait_s)
    driver = driver_of(database, study)
    if driver is not None and kill:
        end_process(driver)
    elif driver is not None and asked.answer is None:
        return asked.unanswered()
    elif driver is not None:
        return Outcome(
            f"study '{study}' is stopping; {driver} still runs up to the next checkpoint", False
        )
    asked.finish("the driver has ended")
    if not kill:
        return Outcome(f"study '{study}' has stopped; `ucd-ray study run {study}` goes on")
    cancelled = _cancel_open(database, study)
    forced = f"; {driver} did not answer and was ended" if driver is not None else ""
    rest = f"; cancelled here: {cancelled}" if cancelled else ""
    return Outcome(f"study '{study}' was stopped at once{forced}{rest}")


def _nothing_to_stop(database: Database, study: str, how: str) -> Outcome:
    text = f"nothing runs study '{study}'"
    if how == "kill" and (cancelled := _cancel_open(database, study)):
        text += f"; its open trials are cancelled: {cancelled}"
    return Outcome(text)


def cancel(database: Database, study: str, number: int, *, wait_s: float = WAIT_S) -> Outcome:
    """Ends one open or queued trial; the study goes on.  Raises StudyError if there is no such trial."""
    database.stored_spec(study)
    who = f"trial {number} of study '{study}'"
    trial = stored_trial(database, study, number)
    if trial.state.is_finished():
        return Outcome(f"{who} has ended already: {state_of(trial, driven=False)[0]}")
    if driver_of(database, study) is None:
        with claimed(database, study):
            _set_cancelled(database, study, [stored_trial(database, study, number)])
        return Outcome(f"{who} is cancelled")
    asked = Asked(database, study, commands.CANCEL, wait_s, number=number)
    if asked.answer is None:
        return asked.unanswered()
    if asked.answer == "stopping":
        asked.wait_until(lambda: stored_trial(database, study, number).state.is_finished())
    trial = stored_trial(database, study, number)
    if trial.user_attrs.get("code") == STOPPED_BY_USER:
        return Outcome(f"{who} is cancelled")
    if trial.state.is_finished():
        return Outcome(f"{who} had ended: {state_of(trial, driven=True)[0]}")
    if asked.answer == "stopping":
        return Outcome(f"{who} stops at its next checkpoint", done=False)
    return Outcome(f"{who}: {asked.answer}", done=False)


def delete(database: Database, study: str, runs: Store) -> Outcome:
    """Removes a study: Optuna's, our rows, the checkpoints of its trials.  Raises StudyError if it runs.

    runs: where checkpoints lie; what the step cache holds stays
    """
    if database.spec(study) is None:
        return Outcome(f"there is no study '{study}'")
    driver = driver_of(database, study)
    if driver is not None:
        raise StudyError(
            f"study '{study}' is running in {driver}; stop it first: `ucd-ray study stop {study}`"
        )
    with claimed(database, study):
        import optuna

        storage = database.optuna_storage()
        for name in optuna.get_all_study_names(storage):
            if name.partition("/")[0] == study:  # its own, and those beside it
                optuna.delete_study(study_name=name, storage=storage)
        runs.delete(study)
        _delete_rows(database, study)  # last: until then the study can be deleted again
    return Outcome(
        f"study '{study}' is deleted; steps that it trained stay in the step cache "
        "(`ucd-ray cache prune` makes room)"
    )


def _delete_rows(database: Database, study: str) -> None:
    def work(connection: sa.Connection) -> None:
        for table in reversed(tables.sorted_tables):
            if "study" in table.c:
                connection.execute(table.delete().where(table.c.study == study))
        connection.execute(study_table.delete().where(study_table.c.name == study))

    database.write(work)


class Asked:
    """A command that was given to the driver of a study, and waited for."""

    def __init__(
        self, database: Database, study: str, kind: str, wait_s: float, **body: Any
    ) -> None:
        self.database, self.study, self.kind, self.wait_s = database, study, kind, wait_s
        self.until = time.monotonic() + wait_s
        self.driver = driver_of(database, study)
        self.id = commands.give(database, study, kind, **body)
        self.answer: str | None = None  # None: nobody has carried it out
        self.wait_until(self._is_settled)

    def _is_settled(self) -> bool:
        self.driver = driver_of(self.database, self.study)
        self.answer = commands.outcome(self.database, self.id)
        return self.answer is not None or self.driver is None

    def wait_until(self, ready: Callable[[], bool], wait_s: float | None = None) -> None:
        """Waits, until the command's time is over, or for `wait_s` from now."""
        until = self.until if wait_s is None else time.monotonic() + wait_s
        while not ready() and time.monotonic() < until:
            time.sleep(POLL_S)

    def finish(self, outcome: str) -> None:
        """Marks the command as carried out, where no driver did."""
        commands.finish(self.database, self.id, outcome)

    def unanswered(self) -> Outcome:
        """The driver lives, and has not answered."""
        return Outcome(
            f"study '{self.study}': {self.driver} has not answered within {self.wait_s:g} s; "
            f"the command ({self.kind}) stays for it, and is carried out when it looks",
            done=False,
            command=self.id,
        )


def end_process(driver: Driver) -> None:
    """Ends the process of a driver: SIGTERM, after TERM_S SIGKILL.  Raises StudyError.

    Only a process of this machine whose start time is that of the claim: its id may be another's by now.
    """
    if not driver.is_here:
        raise StudyError(
            f"{driver} does not answer, and can only be ended there: run the same command on {driver.host}"
        )
    try:
        process = psutil.Process(driver.pid)
        if abs(process.create_time() - driver.started) >= 2:
            return
        for end in (process.terminate, process.kill):
            end()
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(TERM_S)
                return
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        raise StudyError(f"{driver} does not answer, and belongs to another user") from None
    raise StudyError(f"{driver} could not be ended")


@contextlib.contextmanager
def claimed(database: Database, study: str) -> Iterator[None]:
    """Keeps drivers out of a study.  Raises StudyError if there is one."""
    database.claim(study)
    try:
        yield
    finally:
        database.release(study)


def _cancel_open(database: Database, study: str) -> str:
    """Cancels what a driver that is gone left open, and gives back what it held.  Returns the numbers."""
    with claimed(database, study):
        left = [t for t in stored_trials(database, study) if t.state == TrialState.RUNNING]
        _set_cancelled(database, study, left)

        def work(connection: sa.Connection) -> None:
            connection.execute(hold_table.delete().where(hold_table.c.study == study))

        database.write(work)
    return ", ".join(str(trial.number) for trial in left)


def _set_cancelled(database: Database, study: str, trials: list[FrozenTrial]) -> None:
    storage = database.optuna_storage()
    ended = {"state": "FAIL", "code": STOPPED_BY_USER, "reason": CANCELLED}
    for trial in trials:
        if trial.state == TrialState.WAITING:
            cancel_queued(storage, trial)
        else:
            storage.set_trial_user_attr(trial._trial_id, "code", STOPPED_BY_USER)
            storage.set_trial_user_attr(trial._trial_id, "reason", CANCELLED)
            storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        who = f"trial {trial.number}"
        data = event_data("finished", who, ended)
        text = f"{who} {data['state']}: {CANCELLED}"
        tell(database, study, text, kind="finished", number=trial.number, data=data)
    numbers = [trial.number for trial in trials]
    of_open = (
        (ledger_table.c.study == study)
        & ledger_table.c.number.in_(numbers)
        & (ledger_table.c.kind == OPEN)
    )
    database.write(
        lambda connection: connection.execute(
            ledger_table.update().where(of_open).values(kind="failed")
        )
    )


def _gangs(database: Database, study: str) -> int:
    """Gangs that hold workers, as far as the database knows."""
    query = sa.select(sa.func.count()).where(
        hold_table.c.study == study, hold_table.c.slot != WAITS
    )
    return database.read(lambda connection: int(connection.execute(query).scalar_one()))
