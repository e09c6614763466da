"""Starting studies: checked as a whole, written once, found again."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa

from ucd_ray.errors import UcdRayError
from ucd_ray.service.aside import aside
from ucd_ray.service.auth import Viewer
from ucd_ray.service.bodies import Copy, NewStudy
from ucd_ray.service.copies import copied_spec
from ucd_ray.service.core import Core
from ucd_ray.service.once import Answer, Once, answered_once
from ucd_ray.service.pointing import refuse
from ucd_ray.service.problems import Problem
from ucd_ray.service.registered import Finding
from ucd_ray.service.rows import insert_study, new_id
from ucd_ray.service.specs import (
    Built,
    differing,
    from_scenario,
    from_spec,
)
from ucd_ray.service.states import DELETED
from ucd_ray.service.studies import StudyRow, find_study, read_row, row_of
from ucd_ray.service.tables import study_table
from ucd_ray.service.views import PlanView, study_view
from ucd_ray.tune import tables as library
from ucd_ray.tune.database import Database
from ucd_ray.tune.places import Places, places
from ucd_ray.tune.plan import study_plan
from ucd_ray.tune.spec import StudySpec
from ucd_ray.tune.warm_start import check_sources

_one_plan = threading.Lock()  # a plan builds networks and may prepare images


def built(asked: NewStudy, core: Core, study_id: str) -> Built:
    """The spec that a request asks for.  Raises Problem (422)."""
    if (asked.tune is None) == (asked.spec is None):
        told = "give either `tune` (a scenario) or `spec` (a whole spec)"
        raise Problem(422, "INVALID", told, [{"pointer": "", "code": "ONE_OF", "detail": told}])
    if asked.tune is not None:
        return from_scenario(asked.tune, core.settings, study_id)
    assert asked.spec is not None
    return from_spec(asked.spec, core.settings, study_id)


def sources_of(asked: NewStudy, viewer: Viewer, core: Core, spec: StudySpec) -> list[str]:
    """Names in the library of the studies to learn from.  Raises Problem (422)."""
    found, wrong = [], []
    for place, study_id in enumerate(asked.warm_start):
        row = find_study(core.database, study_id)
        told = f"there is no study '{study_id}'"
        if row is not None and row.visible_to(viewer) and row.state != DELETED:
            try:
                check_sources(core.database, spec, [row.name])
            except UcdRayError as error:
                told = str(error)
            else:
                found.append(row.name)
                continue
        wrong.append(Finding(f"/warm_start/{place}", "INVALID", told))
    refuse(wrong)
    return found


def plan(asked: NewStudy, viewer: Viewer, core: Core) -> PlanView:
    """What a study would do and cost.  Nothing is written.  Raises Problem, UcdRayError."""
    spec = built(asked, core, new_id()).spec
    sources = sources_of(asked, viewer, core, spec)
    here = places()
    where = Places(here.home, core.settings.database, here.storage)
    with _one_plan:
        return aside(partial(_planned, spec, sources, core.settings.ray_dashboard, where))


def _planned(
    spec: StudySpec, sources: Sequence[str], address: str | None, where: Places
) -> PlanView:
    found = study_plan(spec, sources=sources, address=address, where=where)
    hours, gang = found.whole * found.gang_hours, found.gang
    return PlanView(
        trials=found.trials,
        replicates=spec.replicates,
        gang={"workers": gang.workers, "cpus": gang.cpus, "gpus": gang.gpus},
        base_steps=found.bases,
        unit=found.unit,
        hours=(hours.low, hours.high),
        searched=sorted(spec.search),
        warm_start=[str(warm) for warm in found.warm],
    )


def create(asked: NewStudy, viewer: Viewer, core: Core, key: str | None) -> Answer:
    """Starts a study: 201, or 200 with the one that has the same external id.  Raises Problem."""
    content = ("POST /v1/studies", asked.model_dump_json())
    return answered_once(
        core.database, viewer.owner, key, content, lambda once: start(asked, viewer, core, once)
    )


def start(asked: NewStudy, viewer: Viewer, core: Core, once: Once | None) -> Answer:
    """The same as an answer that is stored in `once`."""
    study_id = new_id()
    found = built(asked, core, study_id)
    sources = sources_of(asked, viewer, core, found.spec)

    def work(connection: sa.Connection) -> Answer | None:
        status = 201
        row = read_row(connection, study_id)  # a repetition, after an answer that was lost
        if row is None and insert_study(
            connection, study_id, viewer.owner, found, asked, sources=sources
        ):
            row = read_row(connection, study_id)
        if row is None:
            row, status = _same(connection, viewer.owner, asked, found, sources), 200
        if row is None:
            return None
        answer = Answer(status, view(core, row))
        if once is not None:
            once.answered(connection, answer)
        return answer

    answer = core.database.write(work)
    if answer is None:
        raise _taken(core.database, viewer.owner, asked, found, sources)
    return answer


def _of_external_id(connection: sa.Connection, owner: str, external_id: str | None) -> StudyRow:
    where = (study_table.c.owner == owner) & (study_table.c.external_id == external_id)
    return row_of(connection.execute(sa.select(study_table).where(where)).one())


def _same(
    connection: sa.Connection, owner: str, asked: NewStudy, found: Built, sources: list[str]
) -> StudyRow | None:
    """The study with the same external id, if it asks for the same and is not deleted."""
    row = _of_external_id(connection, owner, asked.external_id)
    if row.state == DELETED or _differing(connection, row, found, sources):
        return None
    return row


def _differing(
    connection: sa.Connection, row: StudyRow, found: Built, sources: list[str]
) -> list[str]:
    """Pointers to what a study does not have as it is asked for."""
    paths = [f"/spec{path}" for path in differing(row.spec, found.shown)]
    query = sa.select(library.study_table.c.about).where(library.study_table.c.name == row.name)
    about = json.loads(connection.execute(query).scalar() or "{}")
    return paths + ["/warm_start"] * ((about.get("sources") or []) != sources)


def _taken(
    database: Database, owner: str, asked: NewStudy, found: Built, sources: list[str]
) -> Problem:
    row = database.read(lambda c: _of_external_id(c, owner, asked.external_id))
    if row.state == DELETED:
        told = f"external_id '{asked.external_id}' is that of study '{row.id}', which is deleted"
        return Problem(409, "DELETED", f"{told}; undelete it, or choose another")
    paths = database.read(lambda c: _differing(c, row, found, sources))
    told = f"external_id '{asked.external_id}' is that of study '{row.id}', with another spec"
    errors = [
        {"pointer": path, "code": "DIFFERS", "detail": "differs from the stored spec"}
        for path in paths
    ]
    return Problem(409, "EXTERNAL_ID_TAKEN", f"{told}; differing: {', '.join(paths)}", errors)


def copy(row: StudyRow, asked: Copy) -> NewStudy:
    """The request that starts a copy of a study."""
    spec = {**copied_spec(row.spec, asked.spec), "name": asked.name or row.title}
    return NewStudy(
        spec=spec,
        external_id=asked.external_id,
        priority=row.priority,
        parallelism=row.parallelism,
        labels=row.labels,
    )


def view(core: Core, row: StudyRow) -> dict[str, Any]:
    """A row as JSON."""
    return study_view(row, core.dashboard).model_dump(mode="json")
