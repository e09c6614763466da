"""What the library's tables say about a study: is it driven, does it wait, is it complete."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from ucd_ray.service.states import (
    BASE_STEP,
    BUDGET,
    DEGRADED,
    RESOURCES,
    Conditions,
    condition,
    with_condition,
)
from ucd_ray.service.studies import StudyRow
from ucd_ray.tune import commands
from ucd_ray.tune.admission import WAITS
from ucd_ray.tune.database import Database
from ucd_ray.tune.overview import PROGRESS_KINDS, Budget, budgets_of
from ucd_ray.tune.tables import event_table, hold_table


def while_running(database: Database, row: StudyRow) -> list[dict[str, Any]]:
    """The conditions of a study whose job runs."""
    found = _base_step(database, row, row.conditions)
    if commands.driven(database, row.name) and condition(found, DEGRADED) is not None:
        found = with_condition(found, DEGRADED, False, "RECOVERED", "its present job runs")
    if commands.is_paused(database, row.name):
        told = "paused by a command on the cluster; resume it there, or here"
        return with_condition(found, RESOURCES, False, "PAUSED_ON_CLUSTER", told)
    query = sa.select(hold_table.c.slot).where(hold_table.c.study == row.name)
    slots = database.read(lambda c: list(c.execute(query).scalars()))
    held = sum(slot != WAITS for slot in slots)
    if held:
        return with_condition(found, RESOURCES, True, "PLACED", "its trials hold workers")
    needs = f"{row.workers} worker(s) with {row.cpus:g} CPU(s)"
    needs += f" and {row.gpus:g} GPU(s)" if row.gpus else ""
    if slots:
        return with_condition(found, RESOURCES, False, "WAITS_FOR_WORKERS", f"waits for {needs}")
    if _told(database, row, *PROGRESS_KINDS, since=row.submitted or 0.0):
        return with_condition(found, RESOURCES, True, "FREE", "its trials hold no workers now")
    return with_condition(found, RESOURCES, False, "STARTING", f"starts; a trial takes {needs}")


def _base_step(database: Database, row: StudyRow, conditions: Conditions) -> list[dict[str, Any]]:
    before = condition(conditions, BASE_STEP)
    if before is not None and before["status"]:
        return list(conditions)
    if not _told(database, row, "step"):  # by a trial, or by the base run
        told = "step 0 is not trained yet"
        return with_condition(conditions, BASE_STEP, False, "TRAINING", told)
    return with_condition(conditions, BASE_STEP, True, "READY", "step 0 is in the step cache")


def _told(database: Database, row: StudyRow, *kinds: str, since: float = 0.0) -> bool:
    """Whether there is an event of one of these kinds."""
    of = event_table.c
    query = sa.select(of.id).where(of.study == row.name, of.kind.in_(kinds), of.time >= since)
    newest = query.order_by(of.id.desc()).limit(1)
    return database.read(lambda c: c.execute(newest).first()) is not None


def used_budget(budgets: list[Budget]) -> Budget | None:
    """The first budget that is used up; trials come first."""
    return next((budget for budget in budgets if budget.is_used), None)


def budgets(database: Database, row: StudyRow) -> list[Budget]:
    """What of its budgets is used."""
    return budgets_of(database, row.name)


def with_budget(conditions: Conditions, used: Budget | None) -> list[dict[str, Any]]:
    """The conditions with what ended a study."""
    if used is None:
        return with_condition(conditions, BUDGET, False, "LEFT", "no budget is used up")
    told = f"{used.used:g} of {used.limit:g} {used.name}"
    reason = "TRIALS" if used.name == "trials" else "LIMIT"
    return with_condition(conditions, BUDGET, True, reason, told)


def stopped_elsewhere(database: Database, row: StudyRow) -> bool:
    """Whether a command on the cluster stopped the present attempt."""
    since = row.submitted or row.updated
    return commands.is_stopping(database, row.name, since)
