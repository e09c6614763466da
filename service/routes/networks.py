"""The network that a trial trained, as a `.safetensors` file."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Annotated, BinaryIO

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from ucd_ray.errors import StudyError
from ucd_ray.service.answering import answered, version_of
from ucd_ray.service.core import Core, CoreOf
from ucd_ray.service.problems import Problem, tagged
from ucd_ray.service.query import Route
from ucd_ray.service.registered import with_names
from ucd_ray.service.routes.trials import MOST, TrialNumber, check_trial
from ucd_ray.service.studies import StudyRow, Visible
from ucd_ray.tune.best import measured_trial
from ucd_ray.tune.networks import study_network

router = APIRouter(
    route_class=Route, prefix="/v1/studies/{study_id}/trials/{number}", tags=["trials"]
)
MEDIA = "application/vnd.safetensors"
one_at_a_time = threading.Lock()  # a network is held in memory while it is packed


@router.get(
    "/checkpoint",
    response_class=Response,
    responses=tagged("The file.", {MEDIA: {}}, 409),
)
async def get_checkpoint(
    study: Visible,
    core: CoreOf,
    request: Request,
    number: TrialNumber,
    step: Annotated[
        int | None, Query(ge=0, le=MOST, description="After this step; else the last.")
    ] = None,
) -> Response:
    """The trained network of a complete trial; the file describes itself (classes, input, origin)."""
    await run_in_threadpool(check_trial, core, study, number)

    def fill(sink: BinaryIO) -> None:
        sink.write(_content(core, study, number, step))

    answer = await answered(core, request, await version_of(core, study), MEDIA, fill)
    name = f"{study.id}-{number}" + ("" if step is None else f"-step{step}")
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}.safetensors"'
    return answer


def _content(core: Core, study: StudyRow, number: int, step: int | None) -> bytes:
    try:
        trial = measured_trial(core.database, study.name, number)
    except StudyError as error:
        raise Problem(409, "NOT_COMPLETE", str(error)) from None
    wanted = trial.last.step if step is None else step
    if wanted not in {measured.step for measured in trial.steps}:
        raise Problem(404, "NO_STEP", f"trial {number} has no step {wanted}")
    try:
        with one_at_a_time:
            network = study_network(trial, core.database.about(study.name), step=wanted)
            recipe = with_names(network.info.origin["recipe"], core.settings)
            origin = {**network.info.origin, "recipe": recipe}
            info = network.info.model_copy(update={"origin": origin})
            return replace(network, info=info).content()
    except StudyError:  # whose message tells where the cache lies
        told = (
            f"the network of trial {number} after step {wanted} is not kept: the step cache has those "
            f"of the best trials (keep_best is {trial.spec.keep_best}) and what fits its limit"
        )
        raise Problem(404, "NOT_KEPT", told) from None
