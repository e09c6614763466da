"""What users do to a study: each is a decision over its row.  What follows from it the reconciler does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ucd_ray.service.problems import Problem
from ucd_ray.service.states import (
    CANCELLED,
    DEGRADED,
    DELETED,
    ENDED,
    PAUSED,
    PAUSING,
    QUEUED,
    RUNNING,
    STOPPING,
    WITH_JOB,
    ended,
    paused,
    queued,
    without,
)
from ucd_ray.service.studies import StudyRow
from ucd_ray.tune.commands import HOWS

Decision = Callable[[StudyRow], dict[str, Any]]


def pause(row: StudyRow) -> dict[str, Any]:
    """Running trials stop at their next checkpoint.  Raises Problem (409)."""
    if row.state in (PAUSING, PAUSED):
        return {}
    if row.state not in (QUEUED, RUNNING):
        raise cannot(row, "paused")
    state, why = PAUSED if row.state == QUEUED else PAUSING, paused(row.conditions)
    return {"state": state, "conditions": why, "share": None}


def resume(row: StudyRow) -> dict[str, Any]:
    """A paused or ended study goes on where it was.  Raises Problem (409)."""
    if row.state in (QUEUED, RUNNING):
        return {}
    if row.state in (*WITH_JOB, DELETED):
        raise cannot(row, "resumed")
    return {
        "state": QUEUED,
        "conditions": queued(without(row.conditions, DEGRADED)),
        "failures": 0,
        "not_before": None,
        "ended": None,
        "stop": None,
    }


def stop(how: str) -> Decision:
    """Ends a study; a harder way replaces a softer one.  Raises Problem (409)."""

    def decide(row: StudyRow) -> dict[str, Any]:
        if row.state in ENDED:
            return {}
        if row.state == DELETED:
            raise cannot(row, "stopped")
        if row.state in (QUEUED, PAUSED):
            if how == "kill" and row.attempt > 0:  # trials that are open are cancelled
                return {"state": STOPPING, "stop": how, "job": None}
            why = ended(row.conditions)
            return {"state": CANCELLED, "ended": time.time(), "stop": how, "conditions": why}
        before = row.stop if row.state == STOPPING else None
        if before is not None and HOWS.index(before) >= HOWS.index(how):
            return {}
        return {"state": STOPPING, "stop": how, "command": None}

    return decide


def delete(*, force: bool, purge_after_s: float) -> Decision:
    """Hides a study, and its results until they are purged.  Raises Problem (409) if it runs.

    force: it is stopped first
    """

    def decide(row: StudyRow) -> dict[str, Any]:
        if row.deleted is not None:
            return {}
        now = time.time()
        values: dict[str, Any] = {"deleted": now, "purge": now + purge_after_s}
        if row.state not in WITH_JOB:
            values["conditions"] = ended(row.conditions)
            return {**values, "state": DELETED, "before": row.state}
        if not force:
            raise Problem(
                409, "RUNNING", f"study '{row.id}' is {row.state}; stop it first, or add force=true"
            )
        return {**values, "state": STOPPING, "stop": "kill", "command": None}

    return decide


def undelete(row: StudyRow) -> dict[str, Any]:
    """A deleted study is there again, as it was; one that was queued is paused.  Raises Problem (409)."""
    if row.deleted is None:
        return {}
    if row.state != DELETED:
        raise cannot(row, "undeleted yet")
    values: dict[str, Any] = {"before": None, "deleted": None, "purge": None}
    if row.before in (QUEUED, PAUSED):
        return {**values, "state": PAUSED, "conditions": paused(row.conditions)}
    return {**values, "state": row.before}


def cannot(row: StudyRow, what: str) -> Problem:
    """Why a state does not allow what is asked."""
    return Problem(409, row.state, f"study '{row.id}' is {row.state} and cannot be {what}")
