"""Studies: start, list, look at, change, stop."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response

from ucd_ray.service import actions, creation, finetuning, paging
from ucd_ray.service.auth import Reader, Writer
from ucd_ray.service.bodies import Change, Copy, NewStudy, Stop
from ucd_ray.service.changes import change_study, check_etag
from ucd_ray.service.core import Core, CoreOf, core_of
from ucd_ray.service.once import Answer
from ucd_ray.service.problems import responses
from ucd_ray.service.query import Route
from ucd_ray.service.rows import update
from ucd_ray.service.studies import Own, StudyRow, Visible
from ucd_ray.service.views import PlanView, StudyList, StudyView, study_view

router = APIRouter(route_class=Route, prefix="/v1/studies", tags=["studies"])
Key = Annotated[str | None, Header(alias="Idempotency-Key", pattern=r"^[\x21-\x7e]{1,255}$")]
IfMatch = Annotated[str | None, Header(alias="If-Match", max_length=1000)]
SAME: dict[int | str, dict[str, Any]] = {
    200: {"model": StudyView, "description": "The study that was there."}
}
PLAN_OR_SAME: dict[int | str, dict[str, Any]] = {
    200: {"model": StudyView | PlanView, "description": "The plan, or the study that was there."}
}


@router.post("", status_code=201, response_model=StudyView, responses=responses(409) | PLAN_OR_SAME)
def create_study(
    body: NewStudy,
    viewer: Writer,
    core: CoreOf,
    key: Key = None,
    validate_only: Annotated[bool, Query(description="Only check and plan.")] = False,
) -> Response:
    """Start a study.  With an `Idempotency-Key` it may be sent again."""
    if validate_only:
        return JSONResponse(creation.plan(body, viewer, core).model_dump(mode="json"))
    return _created(creation.create(body, viewer, core, key))


@router.get("", responses=responses())
def list_studies(
    viewer: Reader,
    core: CoreOf,
    page_size: Annotated[int, Query(ge=1, description="At most 200 are given.")] = 50,
    page_token: Annotated[str | None, Query(max_length=1000)] = None,
    filter: Annotated[
        str, Query(max_length=2000, description='Such as state="RUNNING" AND labels.team="x".')
    ] = "",
    order_by: Annotated[
        str, Query(max_length=60, description="create_time, update_time, priority or name; desc.")
    ] = "create_time desc",
    view: Annotated[
        str, Query(pattern="^(BASIC|FULL)$", description="BASIC: without spec.")
    ] = "BASIC",
    show_deleted: bool = False,
) -> StudyList:
    """List the studies that you may see, page by page."""
    page = paging.list_studies(
        core.database,
        viewer,
        size=page_size,
        token=page_token,
        filter_text=filter,
        order_by=order_by,
        deleted=show_deleted,
    )
    dashboard = core.dashboard
    shown = [study_view(row, dashboard, full=view == "FULL") for row in page.rows]
    return StudyList(studies=shown, next_page_token=page.next)


@router.get(
    "/{study_id}",
    response_model=StudyView,
    responses=responses() | {304: {"description": "Unchanged"}},
)
async def get_study(
    study: Visible,
    request: Request,
    if_none_match: Annotated[str | None, Header(alias="If-None-Match", max_length=1000)] = None,
) -> Response:
    """One study."""
    if if_none_match is not None and study.etag in if_none_match:
        return Response(status_code=304, headers={"ETag": study.etag})
    return _shown(core_of(request), study)


@router.patch(
    "/{study_id}",
    response_model=StudyView,
    responses=responses(409, 412) | {202: {"model": StudyView}},
)
def patch_study(body: Change, study: Own, core: CoreOf, if_match: IfMatch = None) -> Response:
    """Change budgets, parallelism, priority, labels or search space.

    202: the running study carries out the edit when it looks.
    """
    row, done = change_study(core.database, study, body, if_match)
    return _shown(core, row, 200 if done else 202)


@router.delete("/{study_id}", response_model=StudyView, responses=responses(409, 412))
def delete_study(
    study: Own,
    core: CoreOf,
    force: Annotated[bool, Query(description="Stop it first, if it runs.")] = False,
    if_match: IfMatch = None,
) -> Response:
    """Delete a study; its results go after some weeks, until then it can be undeleted."""
    check_etag(study, if_match)
    after = core.settings.purge_after_days * 86_400
    decide = actions.delete(force=force, purge_after_s=after)
    return _shown(core, update(core.database, study.id, decide))


@router.post("/{study_id}:pause", response_model=StudyView, responses=responses(409))
def pause_study(study: Own, core: CoreOf) -> Response:
    """Running trials stop at their next checkpoint; nothing is held until it is resumed."""
    return _shown(core, update(core.database, study.id, actions.pause))


@router.post("/{study_id}:resume", response_model=StudyView, responses=responses(409))
def resume_study(study: Own, core: CoreOf) -> Response:
    """A paused, stopped or failed study goes on where it was."""
    return _shown(core, update(core.database, study.id, actions.resume))


@router.post("/{study_id}:stop", response_model=StudyView, responses=responses(409))
def stop_study(study: Own, core: CoreOf, body: Stop | None = None) -> Response:
    """End a study."""
    decide = actions.stop((body or Stop()).how)
    return _shown(core, update(core.database, study.id, decide))


@router.post("/{study_id}:undelete", response_model=StudyView, responses=responses(409))
def undelete_study(study: Own, core: CoreOf) -> Response:
    """A deleted study is there again."""
    return _shown(core, update(core.database, study.id, actions.undelete))


@router.post(
    "/{study_id}:clone",
    status_code=201,
    response_model=StudyView,
    responses=responses(409) | PLAN_OR_SAME,
)
def clone_study(
    study: Visible, viewer: Writer, core: CoreOf, body: Copy | None = None, key: Key = None
) -> Response:
    """Start a copy of a study, from its first trial."""
    asked = creation.copy(study, body or Copy())
    return _created(creation.create(asked, viewer, core, key))


@router.post(
    "/{study_id}:finetune",
    status_code=201,
    response_model=StudyView,
    responses=responses(409) | SAME,
)
def finetune_study(study: Visible, viewer: Writer, core: CoreOf, key: Key = None) -> Response:
    """Train the best trial's recipe without distillation, in a study of its own with one trial.

    The chart `predictions` and the report then show fine-tuning beside the trial.  200: the study that does
    so already, or has done so.
    """
    return _created(finetuning.start(study, viewer, core, key))


def _created(answer: Answer) -> Response:
    headers = {"Location": f"/v1/studies/{answer.body['id']}", "ETag": answer.body["etag"]}
    return JSONResponse(answer.body, answer.status, headers)


def _shown(core: Core, row: StudyRow, status: int = 200) -> Response:
    body = study_view(row, core.dashboard)
    return Response(
        body.model_dump_json(), status, {"ETag": row.etag}, media_type="application/json"
    )
