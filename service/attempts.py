"""One study and its Ray job: what is written first, what follows, and the truth after a crash.

The row goes first: attempt, submission id and state are committed, then the job is submitted, then the row
says so.  Whoever finds a row whose job was never seen submits the same id again; the cluster takes an id
once.  A job that the cluster does not know any more was lost with its head: the next attempt has a new id,
and the library's claim on the study keeps a driver of the lost head and the new one apart.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from ucd_ray.service import observed
from ucd_ray.service.jobs import REFUSED, Jobs, JobStatus, submission_id
from ucd_ray.service.rows import change
from ucd_ray.service.states import (
    ADMITTED,
    CANCELLED,
    DEGRADED,
    DELETED,
    FAILED,
    PAUSED,
    PAUSING,
    QUEUED,
    RESOURCES,
    RUNNING,
    SUCCEEDED,
    condition,
    ended,
    queued,
    with_condition,
    without,
)
from ucd_ray.service.studies import StudyRow, find_study
from ucd_ray.service.wording import worded
from ucd_ray.tune import commands, manage
from ucd_ray.tune.database import Database

KILL_S = 15.0  # for a driver that was told to end at once
AGAIN_S = 5.0  # before the second attempt; doubles with each
PREEMPTED = "PREEMPTED"  # reason of Admitted while a study makes room
log = logging.getLogger("ucd_ray.service")


@dataclass
class Attempts:
    """Brings the rows of studies and the jobs of a cluster together."""

    database: Database
    jobs: Jobs
    max_attempts: int

    # Starting.

    def begin(self, row: StudyRow) -> None:
        """Starts the next attempt of a study.  Nothing happens if its row has changed meanwhile."""
        if commands.driven(self.database, row.name):
            self._degrade(row, "OLD_DRIVER", "a driver of an earlier attempt still lives")
            return
        if commands.is_paused(self.database, row.name):  # on the cluster; it was resumed here
            manage.resume(self.database, row.name, wait_s=0)
        attempt = row.attempt + 1
        before = without(row.conditions, RESOURCES)  # of an attempt whose cluster was lost
        admitted = with_condition(
            before, ADMITTED, True, "ADMITTED", "has its share of the cluster"
        )
        begun = self._change(
            row,
            state=RUNNING,
            attempt=attempt,
            job=submission_id(row.id, attempt),
            submitted=None,
            command=None,
            not_before=None,
            started=row.started or time.time(),
            ended=None,
            conditions=admitted,
        )
        if begun is not None:
            self._submit(begun)

    def _submit(self, row: StudyRow) -> None:
        assert row.job is not None
        self.jobs.submit(row.job, row.name)
        self._change(row, submitted=time.time())

    # Reconciling.

    def settle(self, row: StudyRow) -> None:
        """Makes the row of a study with a job true.  Raises ClusterError."""
        if row.job is None:  # stopped while nothing ran it
            return self._rest(row)
        status = self.jobs.status(row.job)
        if status is None and row.submitted is None and row.state == RUNNING:
            self._submit(row)
        elif status is None:
            self._lost(row)
        elif row.submitted is None:
            self._change(row, submitted=time.time())
        elif status.is_active:
            self._active(row)
        else:
            self._ended(row, status)

    def _lost(self, row: StudyRow) -> None:
        if commands.driven(self.database, row.name):
            self._degrade(row, "OLD_DRIVER", "its cluster is gone, its driver still lives")
        elif row.state == RUNNING:
            told = f"the cluster lost job {row.job}; the study goes on in a new one"
            self.begin(self._degrade(row, "CLUSTER_LOST", told) or row)
        else:
            self._rest(row)

    def _active(self, row: StudyRow) -> None:
        if row.state == RUNNING:
            conditions = observed.while_running(self.database, row)
            if conditions != row.conditions:
                self._change(row, conditions=conditions)
            return
        how = "checkpoint" if row.state == PAUSING else row.stop or "checkpoint"
        if not commands.driven(self.database, row.name):
            self._stop_job(row)  # it has not begun, or has just ended: nothing is open
        elif self._must_tell(row):
            told = commands.give(self.database, row.name, commands.STOP, how=how)
            self._change(row, command=told)
        elif how == "kill" and time.time() - row.updated > KILL_S:
            self._stop_job(row)

    def _must_tell(self, row: StudyRow) -> bool:
        """Whether no command is on its way: a driver that starts drops what was meant for an earlier."""
        if row.command is None:
            return True
        return commands.outcome(self.database, row.command) == commands.DRIVER_ENDED

    def _stop_job(self, row: StudyRow) -> None:
        assert row.job is not None
        self.jobs.stop(row.job)

    def _ended(self, row: StudyRow, status: JobStatus) -> None:
        if commands.driven(self.database, row.name):
            return  # its last writes are under way, or another process drives it
        if row.state != RUNNING:
            self._rest(row)
        elif status.state == "SUCCEEDED":
            self._succeeded(row)
        elif status.state == "STOPPED":
            told = f"job {row.job} was stopped on the cluster; resume it to go on"
            self._end(
                row, CANCELLED, with_condition(row.conditions, DEGRADED, True, "JOB_STOPPED", told)
            )
        else:
            self._failed(row, status)

    def _rest(self, row: StudyRow) -> None:
        """What was being paused or stopped has no job any more."""
        used = observed.used_budget(observed.budgets(self.database, row))
        if row.deleted is None and used is not None and used.name == "trials":
            self._end(row, SUCCEEDED, observed.with_budget(row.conditions, used))
        elif row.state == PAUSING:
            admitted = condition(row.conditions, ADMITTED)
            preempted = admitted is not None and admitted["reason"] == PREEMPTED
            state, left = QUEUED if preempted else PAUSED, without(row.conditions, RESOURCES)
            self._change(row, state=state, job=None, share=None, conditions=left)
        else:
            if row.stop == "kill":
                manage.stop(self.database, row.name, how="kill", wait_s=0)  # cancels what is open
            if row.deleted is None:
                self._end(row, CANCELLED, row.conditions)
            else:
                values = {
                    "state": DELETED,
                    "before": CANCELLED,
                    "conditions": ended(row.conditions),
                }
                self._change(row, ended=time.time(), share=None, **values)

    def _succeeded(self, row: StudyRow) -> None:
        used = observed.used_budget(observed.budgets(self.database, row))
        conditions = observed.with_budget(row.conditions, used)
        outside = used is None and observed.stopped_elsewhere(self.database, row)
        self._end(row, CANCELLED if outside else SUCCEEDED, conditions)

    def _failed(self, row: StudyRow, status: JobStatus) -> None:
        failures = row.failures + 1
        told = self._sentence(row) or status.message or "the job failed without a word"
        told = worded(told, [row])
        conditions = with_condition(row.conditions, DEGRADED, True, "JOB_FAILED", told)
        if failures >= self.max_attempts or status.exit_code == REFUSED:
            self._end(row, FAILED, conditions, failures=failures)
            return
        again = time.time() + AGAIN_S * 2.0 ** (failures - 1)
        conditions = queued(conditions)
        self._change(
            row,
            state=QUEUED,
            job=None,
            share=None,
            failures=failures,
            not_before=again,
            conditions=conditions,
        )

    def _sentence(self, row: StudyRow) -> str | None:
        """The library's own words, from the end of the job's log."""
        assert row.job is not None
        lines = [line.strip() for line in self.jobs.logs(row.job).splitlines()]
        errors = [line for line in lines if line.startswith("error: ")]
        return errors[-1].removeprefix("error: ")[:1000] if errors else None

    # Writing.

    def _end(
        self, row: StudyRow, state: str, conditions: list[dict[str, Any]], **values: Any
    ) -> None:
        values = {"failures": 0, **values, "conditions": ended(conditions), "share": None}
        self._change(row, state=state, ended=time.time(), **values)

    def _degrade(self, row: StudyRow, reason: str, told: str) -> StudyRow | None:
        conditions = with_condition(row.conditions, DEGRADED, True, reason, told)
        return self._change(row, conditions=conditions) if conditions != row.conditions else row

    def _change(self, row: StudyRow, **values: Any) -> StudyRow | None:
        """Changes a row that nobody has changed since.  Returns it as it is now, else None."""
        state = values.get("state", row.state)
        if state != row.state:
            log.info("study %s: %s -> %s", row.id, row.state, state)
        changed = self.database.write(
            lambda connection: change(connection, row.id, revision=row.revision, **values)
        )
        return find_study(self.database, row.id) if changed else None
