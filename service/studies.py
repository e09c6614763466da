"""The service's rows of studies, and who may see them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Depends, Path, Request

from ucd_ray.service.auth import Viewer, reader, writer
from ucd_ray.service.bodies import ID
from ucd_ray.service.core import core_of
from ucd_ray.service.problems import Problem
from ucd_ray.service.tables import study_table
from ucd_ray.tune.database import Database

StudyId = Annotated[str, Path(description="Id of a study.", pattern=ID)]
BY_ID = sa.select(study_table).where(study_table.c.id == sa.bindparam("of"))


@dataclass(frozen=True)
class StudyRow:
    """One study as the service knows it; times are seconds since 1970."""

    id: str
    owner: str
    name: str  # in the library's database
    title: str  # the name that its owner gave
    external_id: str | None
    spec: dict[str, Any]  # as it was created
    workers: int  # of one trial
    cpus: float  # of one worker
    gpus: float | None
    parallelism: int | None
    share: int | None
    priority: int
    labels: dict[str, str]
    shared: bool
    state: str
    before: str | None  # the state that it was deleted in
    conditions: list[dict[str, Any]]
    stop: str | None
    command: int | None
    attempt: int
    job: str | None  # submission id of its Ray job
    submitted: float | None
    failures: int
    not_before: float | None
    created: float
    updated: float
    started: float | None
    ended: float | None
    deleted: float | None
    purge: float | None
    revision: int

    @property
    def etag(self) -> str:
        """Changes whenever the row does."""
        return f'"{self.id}-{self.revision}"'

    def visible_to(self, viewer: Viewer) -> bool:
        """Whether someone may read it."""
        return self.shared or self.owned_by(viewer)

    def owned_by(self, viewer: Viewer) -> bool:
        """Whether someone may change it."""
        return self.owner == viewer.owner or viewer.may("admin")


def row_of(row: sa.Row[Any]) -> StudyRow:
    """A stored row."""
    values = dict(row._mapping)
    for name in ("spec", "labels", "conditions"):
        values[name] = json.loads(values[name])
    return StudyRow(**values)


def read_row(connection: sa.Connection, study_id: str) -> StudyRow | None:
    """The row with an id, None if there is none."""
    row = connection.execute(BY_ID, {"of": study_id}).first()
    return None if row is None else row_of(row)


def find_study(database: Database, study_id: str) -> StudyRow | None:
    """The same in a transaction of its own."""
    return database.read(lambda connection: read_row(connection, study_id))


async def find_visible(request: Request, study_id: str, viewer: Viewer) -> StudyRow:
    """The study with an id, which the request is about.

    Raises Problem (404) if there is none that they may see.
    """
    row = await core_of(request).recent.of(("study", study_id), lambda c: read_row(c, study_id))
    if row is None or not row.visible_to(viewer):
        raise Problem(404, "NO_STUDY", f"there is no study '{study_id}'")
    request.state.studies = [*getattr(request.state, "studies", ()), row]
    return row


async def visible_study(study_id: StudyId, request: Request) -> StudyRow:
    """The study of a route that reads.  Raises Problem (404) if there is none that they may see."""
    return await find_visible(request, study_id, await reader(request))


async def own_study(study_id: StudyId, request: Request) -> StudyRow:
    """The study of a route that changes it.  Raises Problem (404, or 403 if it is only shared)."""
    viewer = await writer(request)
    row = await find_visible(request, study_id, viewer)
    if not row.owned_by(viewer):
        raise Problem(403, "NOT_YOURS", f"study '{study_id}' belongs to another owner")
    return row


Visible = Annotated[StudyRow, Depends(visible_study)]
Own = Annotated[StudyRow, Depends(own_study)]
