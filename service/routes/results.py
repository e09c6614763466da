"""Results: the tables of a study, the recipe of its best trial, its charts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, BinaryIO, Literal

import pyarrow as pa
from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from ucd_ray.errors import CheckpointError, ConfigError, NotDrawn, StudyError
from ucd_ray.service.answering import answered, check_started, version_of
from ucd_ray.service.auth import Reader
from ucd_ray.service.bodies import ID
from ucd_ray.service.comparison_views import ComparisonView, StandingView
from ucd_ray.service.core import Core, CoreOf
from ucd_ray.service.drawer import NETWORK
from ucd_ray.service.freshness import Answer, headers, tag_of, unchanged
from ucd_ray.service.negotiation import CHARTS, RECIPES, TABLES, media_types, wanted
from ucd_ray.service.problems import Problem, responses, tagged
from ucd_ray.service.query import Route, of_query, wrong_query
from ucd_ray.service.registered import with_names
from ucd_ray.service.spool import Fill, Spool
from ucd_ray.service.studies import StudyRow, Visible, find_visible
from ucd_ray.step_eviction import stored_steps
from ucd_ray.store import Store
from ucd_ray.tune.best import measured_trial
from ucd_ray.tune.comparison import compare_studies
from ucd_ray.tune.formats import write
from ucd_ray.tune.places import places
from ucd_ray.tune.results import open_view
from ucd_ray.tune.selection import select
from ucd_ray.tune.standing import best_two

router = APIRouter(route_class=Route, prefix="/v1/studies/{study_id}", tags=["results"])

View = Literal["trials", "runs", "steps", "classes", "paper"]
Kind = Literal[
    "history",
    "importances",
    "parallel",
    "slice",
    "contour",
    "intermediate",
    "pareto",
    "forgetting",
    "classes",
    "confusion",
    "predictions",
]
TableForm = Annotated[
    str | None, Query(description=f"Instead of `Accept`: {', '.join(TABLES.values())}.")
]
LIMIT = 2**31


@router.get(
    "/results",
    response_class=Response,
    responses=tagged("The table.", media_types(TABLES), 406, 409),
)
async def get_results(
    study: Visible,
    core: CoreOf,
    request: Request,
    view: Annotated[View, Query(description="Which table.")] = "trials",
    filters: Annotated[
        list[str],
        Query(
            alias="filter",
            description="`COLUMN=VALUE`, or with !=, >, >=, <, <=; all must hold.",
            max_length=50,
        ),
    ] = [],  # noqa: B006  FastAPI copies it
    order_by: Annotated[
        list[str],
        Query(description="A column, `-` before it: largest first; `best`.", max_length=20),
    ] = [],  # noqa: B006
    columns: Annotated[str | None, Query(description="Only these, with commas.")] = None,
    limit: Annotated[int | None, Query(ge=1, lt=LIMIT, description="Rows at most.")] = None,
    best: Annotated[
        int | None, Query(ge=1, lt=LIMIT, description="Trials in the paper table; else 3.")
    ] = None,
    background: Annotated[
        Literal["with", "without"] | None,
        Query(description="Whether means of the paper table count it."),
    ] = None,
    all_rows: Annotated[
        bool | None, Query(description="Also published rows that the paper table refuses.")
    ] = None,
    format: TableForm = None,
) -> Response:
    """A table of a study in the form that `Accept` asks for, row by row as it is read."""
    media, form = wanted(request, TABLES, format)
    of_paper = {"best": best, "background": background, "all_rows": all_rows}
    options = {name: value for name, value in of_paper.items() if value is not None}
    if options and view != "paper":
        name = next(iter(options))
        told = f"{name}: only view 'paper' has it, not '{view}'"
        raise wrong_query({name: told})
    chosen: dict[str, Any] = {
        "filters": filters,
        "order_by": order_by,
        "columns": [name.strip() for name in columns.split(",")] if columns else (),
        "limit": limit,
    }

    def fill(sink: BinaryIO) -> None:
        write(_selected(open_view(core.database, study.name, view, **options), chosen), form, sink)

    if view == "paper":  # rows of other studies stand in it too
        return await _of_content(request, media, core, fill)
    version = await version_of(core, study)
    return await answered(core, request, version, media, fill)


def _selected(rows: pa.RecordBatchReader, chosen: Mapping[str, Any]) -> pa.RecordBatchReader:
    """The chosen rows of a view.  Raises Problem (422) with every parameter that cannot be."""
    wrong = {}
    for name, value in chosen.items():
        try:
            select(rows, **{name: value})  # reads none of them
        except ConfigError as error:
            wrong["filter" if name == "filters" else name] = str(error)
    if wrong:
        raise wrong_query(wrong)
    return select(rows, **chosen)


async def _of_content(request: Request, media: str, core: Core, fill: Fill) -> Response:
    """An answer that is made anew each time; its tag is that of its content."""
    spool = await Spool.filled(core.writers, fill)
    if (body := spool.whole) is None:
        return StreamingResponse(spool.pieces(), media_type=media)
    tag = tag_of(request, hashlib.sha256(body).hexdigest())
    same = unchanged(request, tag)
    return same or Response(body, media_type=media, headers=headers(tag))


@router.get(
    "/best",
    response_class=Response,
    responses=tagged("The recipe.", media_types(RECIPES), 406, 409),
)
async def get_best(
    study: Visible,
    core: CoreOf,
    request: Request,
    trial: Annotated[int | None, Query(ge=0, lt=LIMIT, description="This one instead.")] = None,
    format: Annotated[str | None, Query(description="Instead of `Accept`: yaml or json.")] = None,
) -> Response:
    """The recipe of the best trial: `ucd-ray train --recipe FILE` trains it again."""
    media, form = wanted(request, RECIPES, format)
    version = await version_of(core, study)
    return await answered(core, request, version, media, partial(_recipe, core, study, trial, form))


@router.get("/comparison", response_model=ComparisonView, responses=responses(409))
async def get_comparison(
    study: Visible,
    core: CoreOf,
    viewer: Reader,
    request: Request,
    other: Annotated[str, Query(pattern=ID, description="Id of another study.")],
) -> dict[str, Any]:
    """Compare the best trials of two studies: how far apart, how sure, and what else differs."""
    second = await find_visible(request, other, viewer)

    def compared() -> dict[str, Any]:
        for each in (study, second):
            check_started(core, each)
        try:
            return compare_studies(core.database, study.name, second.name).content()
        except StudyError as error:
            raise Problem(409, "NOT_COMPARABLE", str(error)) from None

    return await run_in_threadpool(compared)


def _recipe(core: Core, study: StudyRow, trial: int | None, form: str, sink: BinaryIO) -> None:
    try:
        file = measured_trial(core.database, study.name, trial).recipe_file()
    except StudyError as error:
        raise Problem(404, "NO_COMPLETE_TRIAL", str(error)) from None
    file = file.model_copy(update={"recipe": with_names(file.recipe, core.settings)})
    content = file.model_dump(mode="json", exclude_none=True)
    sink.write((file.text() if form == "yaml" else json.dumps(content)).encode())


@router.get(
    "/plots/{kind}",
    response_class=Response,
    responses=tagged("The chart.", media_types(CHARTS), 406, 409),
)
async def get_plot(
    study: Visible,
    core: CoreOf,
    request: Request,
    kind: Kind,
    objective: Annotated[
        str | None, Query(max_length=40, description="Of several; else the first.")
    ] = None,
    format: Annotated[
        str | None, Query(description="Instead of `Accept`: json, svg or png.")
    ] = None,
) -> Response:
    """A chart as a figure of plotly.js, or drawn."""
    media, form = wanted(request, CHARTS, format)
    version = await version_of(core, study)
    networks = await run_in_threadpool(_networks) if kind == NETWORK else ""
    tag = tag_of(request, version, media, networks)
    if (same := unchanged(request, tag)) is not None:
        return same
    if (known := core.answers.get(tag)) is None:
        try:
            with of_query("objective"):
                drawn = await core.drawer.chart(_url(core), study.name, kind, objective, form)
        except NotDrawn as error:
            raise Problem(409, "NOTHING_TO_DRAW", str(error)) from None
        known = Answer(media, drawn)
        core.answers.put(tag, known)
    return Response(known.body, media_type=media, headers=headers(tag))


@router.get(
    "/report", response_class=Response, responses=tagged("The page.", {"text/html": {}}, 409)
)
async def get_report(study: Visible, core: CoreOf, request: Request) -> Response:
    """Tables and charts of a study in one HTML file, to be kept or sent: it needs no network."""
    version, networks = await version_of(core, study), await run_in_threadpool(_networks)
    tag = tag_of(request, version, "text/html", networks)
    if (same := unchanged(request, tag)) is not None:
        return same
    try:
        page = await core.drawer.report(_url(core), study.name)
    except StudyError as error:
        raise Problem(409, "NOTHING_TO_DRAW", str(error)) from None
    name = f'attachment; filename="{study.id}.html"'
    return Response(
        page, media_type="text/html", headers={**headers(tag), "Content-Disposition": name}
    )


@router.get("/standing", response_model=StandingView, responses=responses(409))
async def get_standing(study: Visible, core: CoreOf) -> dict[str, Any]:
    """How sure the best trial is, and whether it differs from the second."""

    def told() -> dict[str, Any]:
        check_started(core, study)
        return {"sentences": best_two(core.database, study.name)}

    return await run_in_threadpool(told)


def _networks() -> str:
    """Which networks the step cache has: what is drawn from them is as old as they are."""
    try:
        steps = stored_steps(Store(places().steps))
    except CheckpointError:  # which the chart tells
        return ""
    return " ".join(sorted(step.digest for step in steps if step.complete))


def _url(core: Core) -> str:
    """Of the database, for another process."""
    return core.database.url.render_as_string(hide_password=False)
