"""The catalogue: what the code knows, and nothing about where files lie."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pyarrow.csv
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.service.rows import client_of
from tests.tune.test_bridge import spec_of
from ucd_ray.data.prepare import Prepared
from ucd_ray.methods import METHODS
from ucd_ray.recipe import TOP_KEYS, Recipe, method_keys
from ucd_ray.scenarios import KNOWN_SCENARIOS
from ucd_ray.service.app import create_app
from ucd_ray.service.settings import Settings
from ucd_ray.tune.catalogue import method_facts


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    made: TestClient = client_of(app, "ann", "read")
    return made


def test_scenarios_are_listed_and_others_can_be_asked_for(client: TestClient) -> None:
    listed = client.get("/v1/scenarios").json()["scenarios"]
    assert tuple(one["name"] for one in listed) == KNOWN_SCENARIOS
    one = client.get("/v1/scenarios/voc-16-2").json()
    assert [len(step) for step in one["steps"]] == [16, 2, 2]
    for name in ("voc-16-3", "elsewhere.yaml", "nothing"):
        answer = client.get(f"/v1/scenarios/{name}")
        assert (answer.status_code, answer.json()["code"]) == (404, "NO_SCENARIO")


def test_every_method_is_listed(client: TestClient) -> None:
    assert [m["name"] for m in client.get("/v1/methods").json()["methods"]] == list(METHODS)
    missing = client.get("/v1/methods/mibb")
    assert (missing.status_code, "did you mean 'mib'" in missing.json()["detail"]) == (404, True)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_tells_every_key_of_its_recipes_with_default_and_meaning(name: str) -> None:
    found = method_facts(name)["parameters"]
    assert set(found) == set(method_keys(name)) - set(TOP_KEYS)
    flat = Recipe.from_flat({"scenario": "voc-15-5", "method": name}).flat()
    for key, facts in found.items():
        assert facts["default"] == flat[key]
        assert facts["meaning"], key
        if facts["searched"]:
            assert {"low", "high"} <= set(facts["searched"]) or facts["searched"]["choices"]


def test_the_range_of_a_parameter_is_that_of_its_field_and_of_the_search_space(
    client: TestClient,
) -> None:
    mib = client.get("/v1/methods/mib+ucd").json()["parameters"]
    assert mib["kd.weight"]["allowed"]["minimum"] == 0
    assert mib["kd.weight"]["first_step"] == 1
    assert mib["kd.weight"]["searched"]["log"] is True
    assert mib["data.loader_workers"]["first_step"] == -1
    assert mib["eval.mode"]["searched"] is None
    wrong = client.get("/v1/methods/mib", params={"scenario": "voc-7-7"})
    assert wrong.status_code == 422
    assert wrong.json()["errors"][0]["pointer"] == "#query/scenario"


def test_registered_data_sets_are_told_without_their_places(
    tmp_path: Path, shapes: Prepared
) -> None:
    raw, damaged = tmp_path / "raw", tmp_path / "damaged"
    raw.mkdir()
    damaged.mkdir()
    (damaged / "dataset.json").write_text("{")
    places = {"a": shapes.path, "b": raw, "c": tmp_path / "gone", "d": damaged}
    settings = Settings(
        database=f"sqlite:///{tmp_path}/studies.db",
        data_sets={name: str(path) for name, path in places.items()},
        weights={"imagenet": str(tmp_path / "weights.safetensors")},
    )
    answer = client_of(create_app(settings), "ann").get("/v1/datasets")
    prepared, unprepared, gone, broken, generated = answer.json()["datasets"]
    assert (prepared["dataset"], prepared["train"], prepared["val"]) == ("shapes", 24, 8)
    assert prepared["fingerprint"] == shapes.fingerprint
    assert (unprepared["name"], unprepared["dataset"], unprepared["problem"]) == ("b", None, None)
    assert gone["problem"] and broken["problem"]
    assert generated["name"] == "generated"
    assert answer.json()["weights"] == ["imagenet"]
    assert str(tmp_path) not in answer.text and str(shapes.path) not in answer.text


def test_published_rows_leave_as_tables(client: TestClient) -> None:
    rows = client.get("/v1/published", params={"scenario": "voc-15-5"}).json()
    assert {"mib", "MiB"} & {row["method"] for row in rows}
    csv = client.get("/v1/published", params={"scenario": "voc-15-5", "format": "csv"})
    table = pyarrow.csv.read_csv(pyarrow.BufferReader(csv.content))
    assert table.num_rows == len(rows)
    same = client.get(
        "/v1/published",
        params={"scenario": "voc-15-5", "format": "csv"},
        headers={"If-None-Match": csv.headers["etag"]},
    )
    assert same.status_code == 304
    missing = client.get("/v1/published", params={"scenario": "voc-16-2"})
    assert (missing.status_code, missing.json()["code"]) == (404, "NOT_PUBLISHED")


def test_the_schema_of_a_spec_accepts_a_spec(client: TestClient) -> None:
    schema = client.get("/v1/schemas/study").json()
    spec = spec_of().model_dump(mode="json")
    jsonschema.validate(spec, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**spec, "trials": 0}, schema)
    other = client.get("/v1/schemas/other")
    assert (other.status_code, "space, study" in other.json()["detail"]) == (404, True)


@pytest.mark.parametrize(
    "path",
    ["scenarios", "methods", "methods/mib", "datasets", "schemas/study", "published?scenario=x"],
)
def test_the_catalogue_is_for_who_has_a_token(app: FastAPI, client: TestClient, path: str) -> None:
    assert TestClient(app).get(f"/v1/{path}").status_code == 401
