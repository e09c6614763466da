"""States of a study and its conditions: what it does, and why it does not go on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

QUEUED, RUNNING, PAUSING, PAUSED = "QUEUED", "RUNNING", "PAUSING", "PAUSED"
STOPPING, SUCCEEDED, FAILED = "STOPPING", "SUCCEEDED", "FAILED"
CANCELLED, DELETED = "CANCELLED", "DELETED"

STATES = (QUEUED, RUNNING, PAUSING, PAUSED, STOPPING, SUCCEEDED, FAILED, CANCELLED, DELETED)
WITH_JOB = (RUNNING, PAUSING, STOPPING)  # a Ray job of theirs may be on the cluster
ENDED = (SUCCEEDED, FAILED, CANCELLED)

ADMITTED = "Admitted"
BASE_STEP = "BaseStepReady"
RESOURCES = "ResourcesAvailable"
DEGRADED = "Degraded"
BUDGET = "BudgetExhausted"


class Condition(BaseModel):
    """One answer to "why is nothing happening?"."""

    type: str
    status: bool
    reason: str
    """For programs."""
    message: str
    """For people."""
    since: float
    """When status or reason changed last, in seconds since 1970."""


Conditions = Sequence[dict[str, Any]]


def with_condition(
    conditions: Conditions, kind: str, status: bool, reason: str, message: str
) -> list[dict[str, Any]]:
    """The conditions with one of them set; its time stays if nothing but the message changed."""
    before = condition(conditions, kind)
    same = before is not None and (before["status"], before["reason"]) == (status, reason)
    since = before["since"] if before is not None and same else time.time()
    new = {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "since": since,
    }
    if before is None:
        return [*conditions, new]
    return [new if c["type"] == kind else c for c in conditions]  # equal again if nothing changed


def condition(conditions: Conditions, kind: str) -> dict[str, Any] | None:
    """The condition of a kind, None if it was never set."""
    return next((c for c in conditions if c["type"] == kind), None)


def queued(conditions: Conditions = ()) -> list[dict[str, Any]]:
    """The conditions of a study that has just been queued."""
    return with_condition(conditions, ADMITTED, False, "QUEUED", "waits for its turn")
