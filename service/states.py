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
ENDS = ("JOB_FAILED", "JOB_STOPPED")  # reasons of Degraded that end a study


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


def without(conditions: Conditions, *kinds: str) -> list[dict[str, Any]]:
    """The conditions of other kinds."""
    return [c for c in conditions if c["type"] not in kinds]


def queued(conditions: Conditions = ()) -> list[dict[str, Any]]:
    """The conditions of a study that has just been queued: it holds nothing, and is to go on."""
    left = without(conditions, RESOURCES, BUDGET)
    return with_condition(left, ADMITTED, False, "QUEUED", "waits for its turn")


def paused(conditions: Conditions) -> list[dict[str, Any]]:
    """The conditions of a study whose owner pauses it."""
    return with_condition(conditions, ADMITTED, False, "PAUSED", "paused by its owner")


def ended(conditions: Conditions) -> list[dict[str, Any]]:
    """What is left of them at the end: it holds nothing and waits for nothing; why it ended stays."""
    left = without(conditions, ADMITTED, RESOURCES)
    return [c for c in left if c["type"] == BUDGET or (c["status"] and not _is_over(c))]


def _is_over(condition: dict[str, Any]) -> bool:
    return condition["type"] == DEGRADED and condition["reason"] not in ENDS
