"""What can be tuned: scenarios, methods, data sets, published rows, and the schemas of specs."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as InPath

from ucd_ray.data.prepare import INFO_FILE, open_prepared
from ucd_ray.errors import ConfigError, DataError, did_you_mean
from ucd_ray.published import scenarios as published_scenarios
from ucd_ray.service.answering import answered
from ucd_ray.service.auth import Reader
from ucd_ray.service.catalogue_views import (
    Datasets,
    Methods,
    MethodView,
    Scenarios,
    ScenarioView,
)
from ucd_ray.service.core import CoreOf
from ucd_ray.service.negotiation import TABLES, media_types, wanted
from ucd_ray.service.problems import Problem, responses, tagged
from ucd_ray.service.query import Route, of_query
from ucd_ray.service.registered import GENERATED
from ucd_ray.tune.catalogue import EXAMPLE, catalogue, method_facts, scenario_facts
from ucd_ray.tune.formats import write
from ucd_ray.tune.published_view import published_view
from ucd_ray.tune.schema import schema_of
from ucd_ray.tune.selection import select

router = APIRouter(route_class=Route, prefix="/v1", tags=["catalogue"], responses=responses())
Name = Annotated[str, InPath(max_length=60)]
Scenario = Annotated[str, Query(max_length=60, description="Such as voc-15-1.")]


@router.get("/scenarios", response_model=Scenarios)
def list_scenarios(viewer: Reader) -> dict[str, Any]:
    """The published scenarios."""
    return {"scenarios": catalogue()["scenarios"]}


@router.get("/scenarios/{name}", response_model=ScenarioView)
def get_scenario(name: Name, viewer: Reader) -> dict[str, Any]:
    """One scenario; any split that fits its data set."""
    try:
        return scenario_facts(name)
    except ConfigError as error:
        raise Problem(404, "NO_SCENARIO", str(error)) from None


@router.get("/methods", response_model=Methods)
def list_methods(viewer: Reader) -> dict[str, Any]:
    """All methods."""
    return {"methods": catalogue()["methods"]}


@router.get("/methods/{name}", response_model=MethodView)
def get_method(name: Name, viewer: Reader, scenario: Scenario = EXAMPLE) -> dict[str, Any]:
    """One method: its loss terms, and every parameter with its meaning, range and default."""
    if name not in {method["name"] for method in catalogue()["methods"]}:
        known = [method["name"] for method in catalogue()["methods"]]
        told = f"there is no method '{name}'; {did_you_mean(name, known)}"
        raise Problem(404, "NO_METHOD", told)
    with of_query("scenario"):
        scenario_facts(scenario)
    return method_facts(name, scenario)


@router.get("/datasets", response_model=Datasets)
def list_datasets(viewer: Reader, core: CoreOf) -> dict[str, Any]:
    """The registered data sets and weights."""
    own = core.settings
    found = [_dataset(name, Path(place)) for name, place in sorted(own.data_sets.items())]
    return {"datasets": [*found, _facts(GENERATED)], "weights": sorted(own.weights)}


def _dataset(name: str, place: Path) -> dict[str, Any]:
    """What is known of a registered data set; not where it lies."""
    if not place.is_dir():
        return _facts(name, problem="its directory is not there")
    if not (place / INFO_FILE).is_file():
        return _facts(name)
    try:
        found = open_prepared(place)
    except DataError:
        return _facts(name, problem="its prepared files are damaged, or of a newer version")
    return _facts(
        name,
        dataset=found.dataset,
        classes=list(found.classes),
        train=found.train.num_rows,
        val=found.val.num_rows,
        fingerprint=found.fingerprint,
    )


def _facts(name: str, **known: Any) -> dict[str, Any]:
    keys = ("dataset", "classes", "train", "val", "fingerprint", "problem")
    return {"name": name, **dict.fromkeys(keys), **known}


@router.get(
    "/published",
    response_class=Response,
    responses=tagged("The table.", media_types(TABLES), 406),
)
async def get_published(
    viewer: Reader,
    core: CoreOf,
    request: Request,
    scenario: Scenario,
    format: Annotated[str | None, Query(description="Instead of `Accept`.")] = None,
) -> Response:
    """The published rows of a scenario, with what is known of how they were measured."""
    media, form = wanted(request, TABLES, format)
    if scenario not in published_scenarios():
        hint = did_you_mean(scenario, published_scenarios())
        raise Problem(404, "NOT_PUBLISHED", f"no published rows for '{scenario}'; {hint}")

    def fill(sink: BinaryIO) -> None:
        write(select(published_view(scenario)), form, sink)

    return await answered(core, request, version("ucd-ray"), media, fill)


@router.get("/schemas/{name}")
def get_schema(name: Literal["study", "space"], viewer: Reader) -> dict[str, Any]:
    """The JSON Schema of a study's spec, or of a search space."""
    return schema_of(name)
