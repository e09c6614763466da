"""The trained network of a trial leaves as a file that describes itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.service.rows import add_row, client_of
from ucd_ray.data.prepare import Prepared
from ucd_ray.network import read_network
from ucd_ray.service.app import create_app
from ucd_ray.service.settings import Settings
from ucd_ray.tune.networks import open_network

URL = "/v1/studies/abc/trials/{}/checkpoint"


@pytest.fixture(scope="module")
def home(finished_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished study's home, which the service writes to."""
    return Path(shutil.copytree(finished_home, tmp_path_factory.mktemp("served") / "home"))


@pytest.fixture
def client(home: Path, shapes: Prepared, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("UCD_RAY_HOME", str(home))
    database = f"sqlite:///{home}/studies.db"
    app = create_app(Settings(database=database, data_sets={"mine": str(shapes.path)}))
    if client_of(app, "ann").get("/v1/studies/abc").status_code == 404:
        add_row(app.state.core.database, name="tiny")
    made: TestClient = client_of(app, "ann")
    return made


def test_the_file_is_the_network_that_the_library_exports(
    client: TestClient, tmp_path: Path, shapes: Prepared
) -> None:
    expected = open_network("tiny")
    number = expected.info.origin["trial"]
    answer = client.get(URL.format(number))
    assert answer.headers["content-type"] == "application/vnd.safetensors"
    assert f'filename="abc-{number}.safetensors"' in answer.headers["content-disposition"]
    file = tmp_path / "network.safetensors"
    file.write_bytes(answer.content)
    network = read_network(file)
    assert network.info.class_names == expected.info.class_names
    assert all(network.weights[k].equal(v) for k, v in expected.weights.items())
    assert network.info.origin["recipe"]["data.source"] == "mine"
    assert str(shapes.path).encode() not in answer.content
    same = client.get(URL.format(number), headers={"If-None-Match": answer.headers["etag"]})
    assert same.status_code == 304


def test_a_network_that_is_not_kept_is_404_and_says_which_are(client: TestClient) -> None:
    best = open_network("tiny").info.origin["trial"]
    answer = client.get(URL.format(1 - best))
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_KEPT")
    assert "(keep_best is 1)" in answer.json()["detail"]
    missing = client.get(URL.format(best), params={"step": 9})
    assert (missing.status_code, missing.json()["code"]) == (404, "NO_STEP")


def test_the_recipe_of_the_best_trial_tells_no_place(client: TestClient, shapes: Prepared) -> None:
    answer = client.get("/v1/studies/abc/best", headers={"Accept": "application/json"})
    assert answer.json()["recipe"]["data.source"] == "mine"
    assert str(shapes.path) not in answer.text
