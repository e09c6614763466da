"""Changing a study: budgets and search space through the library's edit, the rest in our row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ucd_ray.service import observed
from ucd_ray.service.bodies import Change, SpaceRevision
from ucd_ray.service.pointing import pointed, refuse
from ucd_ray.service.problems import Problem
from ucd_ray.service.registered import files_that_vary, not_plain
from ucd_ray.service.rows import update
from ucd_ray.service.states import BUDGET, DELETED, ENDED, condition
from ucd_ray.service.studies import StudyRow
from ucd_ray.tune.database import Database
from ucd_ray.tune.editing import edit
from ucd_ray.tune.edits import Edit

BUDGETS = ("trials", "max_hours", "max_gpu_hours", "patience")
OWN = ("parallelism", "priority", "labels", "shared")
NEVER_NULL = ("trials", "priority", "labels", "shared")
ANSWER_S = 20.0  # for the driver of a running study


def check_etag(row: StudyRow, if_match: str | None) -> None:
    """Raises Problem (412) unless the row is one that the client has seen."""
    if if_match is None or if_match.strip() == "*":
        return
    seen = [tag.strip().removeprefix("W/") for tag in if_match.split(",")]
    if row.etag not in seen:
        told = f"study '{row.id}' has changed since: its ETag is now {row.etag}"
        raise Problem(412, "CHANGED", told)


def change_study(
    database: Database, row: StudyRow, asked: Change, if_match: str | None
) -> tuple[StudyRow, bool]:
    """Applies a change.  Returns the row, and whether the driver has carried out an edit already.

    Raises Problem (409, 412, 422), ConfigError, StudyError; nothing is changed then.
    """
    check_etag(row, if_match)
    if row.state == DELETED:
        raise Problem(409, DELETED, f"study '{row.id}' is deleted; undelete it first")
    given = {name: getattr(asked, name) for name in asked.model_fields_set}
    for name in NEVER_NULL:
        if name in given and given[name] is None:
            told = f"'{name}' cannot be null; leave it out and it stays"
            raise Problem(
                422, "INVALID", told, [{"pointer": f"/{name}", "code": "NULL", "detail": told}]
            )
    _check_plain(asked.space)
    wanted = _edit(row, given, asked.space)
    done = True
    if wanted != Edit():
        space = asked.space
        with pointed(space.model_dump(), "space") if space else pointed(given):
            done = edit(database, row.name, wanted, wait_s=ANSWER_S).done
    own = {name: given[name] for name in OWN if name in given}
    used = observed.used_budget(observed.budgets(database, row))

    def decide(now: StudyRow) -> dict[str, Any]:
        if condition(now.conditions, BUDGET) is None:
            return own
        return {**own, "conditions": observed.with_budget(now.conditions, used)}

    return update(database, row.id, decide, touch=wanted != Edit()), done


def _check_plain(space: SpaceRevision | None) -> None:
    if space is None:
        return
    content = space.model_dump(mode="json", exclude={"constraints"})
    found = [*not_plain(content, ("space",))]
    for part in ("search", "fix"):
        found += files_that_vary(content[part], ("space", part))
    refuse(found)


def _edit(row: StudyRow, given: Mapping[str, Any], space: SpaceRevision | None) -> Edit:
    settings = {name: given[name] for name in BUDGETS if name in given}
    if row.state in ENDED and "parallelism" in given:
        settings["max_concurrent"] = given["parallelism"]
    return Edit(**(space.model_dump() if space else {}), settings=settings)
