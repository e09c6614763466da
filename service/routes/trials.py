"""Trials: list, look at, queue, stop, try again."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from ucd_ray.errors import ConfigError
from ucd_ray.service.answering import answered_json, check_started
from ucd_ray.service.bodies import NewTrial
from ucd_ray.service.core import Core, CoreOf, core_of
from ucd_ray.service.filters import Condition, invalid, parse_comparisons
from ucd_ray.service.page_tokens import place_of, token_of
from ucd_ray.service.paging import LARGEST
from ucd_ray.service.pointing import pointed
from ucd_ray.service.problems import SAME, Problem, responses
from ucd_ray.service.query import Route
from ucd_ray.service.studies import Own, StudyId, StudyRow, Visible, visible_study
from ucd_ray.service.trial_views import Done, Steps, TrialPage, TrialView
from ucd_ray.service.wording import worded
from ucd_ray.tune.editing import enqueue, retry
from ucd_ray.tune.manage import Outcome, cancel
from ucd_ray.tune.one_trial import read_content, read_study, trial_id, trial_steps
from ucd_ray.tune.trial_filter import TrialFilter
from ucd_ray.tune.trial_page import Place, trial_page

router = APIRouter(
    route_class=Route,
    prefix="/v1/studies/{study_id}/trials",
    tags=["trials"],
    responses=responses(409),
)

WAIT_S = 5.0  # for a study's driver; what it has not done by then is answered with 202
MOST = 2**31 - 1
TrialNumber = Annotated[int, Path(ge=0, le=MOST, description="Number of a trial.")]
LATER: dict[int | str, dict[str, Any]] = {
    202: {"model": Done, "description": "Noted; the study's driver will carry it out."}
}
KINDS = (int, (float, type(None)))  # of a place


@router.get("", response_model=TrialPage, responses=SAME)
async def list_trials(
    study: Visible,
    core: CoreOf,
    request: Request,
    filter: Annotated[
        str,
        Query(
            max_length=2000,
            description='On number, state, value, code or a searched key: `state="COMPLETE" AND '
            "(value>40 OR kd.weight<=10)`.",
        ),
    ] = "",
    order_by: Annotated[
        str, Query(pattern=r"^(number|value)( (asc|desc))?$", description="number or value; desc.")
    ] = "number",
    page_size: Annotated[int, Query(ge=1, description="At most 200 are given.")] = 50,
    page_token: Annotated[str | None, Query(max_length=1000)] = None,
) -> Response:
    """List the trials of a study, page by page."""
    asked = (study.id, filter, order_by)
    place = place_of(page_token, KINDS, *asked)
    name, _, direction = order_by.partition(" ")

    def page() -> dict[str, Any]:
        found = trial_page(
            core.database,
            study.name,
            where=_conditions(core, study, filter),
            order_by=name,
            descending=direction == "desc",
            after=Place(*place) if place else None,
            size=min(page_size, LARGEST),
        )
        end = found.end and token_of([found.end.id, found.end.value], *asked)
        return {"trials": found.trials, "next_page_token": end}

    return await answered_json(core, request, study, partial(run_in_threadpool, page))


def _conditions(core: Core, study: StudyRow, filter: str) -> list[Condition]:
    if not filter.strip():
        return []
    chosen = TrialFilter(core.database, study.name)

    def compare(name: str, sign: str, value: str) -> Condition:
        try:
            return chosen.compare(name, sign, value)
        except ConfigError as error:
            raise invalid(str(error)) from None

    return [parse_comparisons(filter, compare)]


@router.post(
    "",
    response_model=Done,
    status_code=201,
    responses={201: {"description": "It is queued."}, **LATER},
)
def queue_trial(study: Own, core: CoreOf, body: NewTrial) -> Response:
    """Queue a trial with these params, also outside of their ranges."""
    check_started(core, study)
    with pointed(body.params, "params"):
        outcome = enqueue(core.database, study.name, body.params, wait_s=WAIT_S)
    return _queued(core, study, outcome)


@router.get("/{number}", response_model=TrialView, responses=SAME)
async def get_trial(study_id: StudyId, request: Request, number: TrialNumber) -> Response:
    """One trial."""
    study, core = await visible_study(study_id, request), core_of(request)

    async def trial() -> dict[str, Any]:
        of = await core.recent.of(("trials of", study.name), lambda c: read_study(c, study.name))
        found = (
            None
            if of is None
            else await core.reader.read(partial(read_content, study=of, number=number))
        )
        if found is None:
            raise _no_trial(study, number)
        return found

    return await answered_json(core, request, study, trial)


@router.get("/{number}/steps", response_model=Steps, responses=SAME)
async def list_steps(
    study: Visible, core: CoreOf, request: Request, number: TrialNumber
) -> Response:
    """What was measured after each step of a trial."""

    def steps() -> dict[str, Any]:
        check_trial(core, study, number)
        return {"steps": trial_steps(core.database, study.name, number)}

    return await answered_json(core, request, study, partial(run_in_threadpool, steps))


@router.get("/{number}/steps/{step}", response_model=Steps, responses=SAME)
async def get_step(
    study: Visible,
    core: CoreOf,
    request: Request,
    number: TrialNumber,
    step: Annotated[int, Path(ge=0, le=MOST, description="Number of a step.")],
) -> Response:
    """The same of one step, with its classes; a row for each replicate."""

    def steps() -> dict[str, Any]:
        check_trial(core, study, number)
        found = trial_steps(core.database, study.name, number, step)
        if not found:
            raise Problem(404, "NO_STEP", f"trial {number} has not finished step {step}")
        return {"steps": found}

    return await answered_json(core, request, study, partial(run_in_threadpool, steps))


@router.post("/{number}:stop", response_model=Done, responses=LATER)
def stop_trial(study: Own, core: CoreOf, number: TrialNumber) -> Response:
    """End one open or queued trial; the study goes on."""
    check_trial(core, study, number)
    outcome = cancel(core.database, study.name, number, wait_s=WAIT_S)
    return _told(core, study, outcome, 200, number)


@router.post(
    "/{number}:retry",
    response_model=Done,
    status_code=201,
    responses={201: {"description": "It is queued."}, **LATER},
)
def retry_trial(study: Own, core: CoreOf, number: TrialNumber) -> Response:
    """Queue a new trial with the params of one that has ended."""
    check_trial(core, study, number)
    return _queued(core, study, retry(core.database, study.name, number, wait_s=WAIT_S))


def check_trial(core: Core, study: StudyRow, number: int) -> None:
    """Raises Problem (404) if the study has no such trial."""
    check_started(core, study)
    if trial_id(core.database, study.name, number) is None:
        raise _no_trial(study, number)


def _no_trial(study: StudyRow, number: int) -> Problem:
    return Problem(404, "NO_TRIAL", f"study '{study.id}' has no trial {number}")


def _queued(core: Core, study: StudyRow, outcome: Outcome) -> Response:
    answer = _told(core, study, outcome, 201, outcome.trial)
    if outcome.trial is not None:
        answer.headers["Location"] = f"/v1/studies/{study.id}/trials/{outcome.trial}"
    return answer


def _told(
    core: Core, study: StudyRow, outcome: Outcome, status: int, trial: int | None
) -> Response:
    core.versions.forget(study.name)
    content = {"done": outcome.done, "detail": worded(outcome.text, [study]), "trial": trial}
    return JSONResponse(content, status if outcome.done else 202)
