"""Tables, recipe and charts of a study over HTTP: what the library gives, in the form asked for."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.service.rows import add_row, app_with_study, client_of
from tests.tune.test_standing import study_of
from ucd_ray.service.app import create_app
from ucd_ray.service.negotiation import TABLES
from ucd_ray.service.settings import Settings
from ucd_ray.tune.charts import CHARTS
from ucd_ray.tune.database import Database
from ucd_ray.tune.results import read
from ucd_ray.tune.standing import best_two

URL = "/v1/studies/abc/results"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    made = app_with_study(tmp_path_factory.mktemp("results"))
    yield made
    made.state.core.drawer.close()


@pytest.fixture(scope="module")
def client(app: FastAPI) -> TestClient:
    made: TestClient = client_of(app, "ann")
    return made


@pytest.fixture
def database(app: FastAPI) -> Database:
    found: Database = app.state.core.database
    return found


READ: dict[str, Callable[[bytes], pa.Table]] = {
    "text/csv": lambda body: pa.csv.read_csv(io.BytesIO(body)),
    "application/vnd.apache.parquet": lambda body: pa.parquet.read_table(io.BytesIO(body)),
    "application/vnd.apache.arrow.stream": lambda body: pa.ipc.open_stream(body).read_all(),
    "application/vnd.apache.arrow.file": lambda body: pa.ipc.open_file(body).read_all(),
}


@pytest.mark.parametrize("media", READ)
@pytest.mark.parametrize("view", ["trials", "runs", "steps", "classes", "paper"])
def test_every_view_leaves_in_every_form(
    client: TestClient, database: Database, view: str, media: str
) -> None:
    answer = client.get(URL, params={"view": view}, headers={"Accept": media})
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, media)
    table, expected = READ[media](answer.content), read(database, "study", view).read_all()
    assert table.column_names == expected.column_names
    if media == "text/csv":
        assert table.num_rows == expected.num_rows
    else:
        assert table.equals(expected)


def test_json_is_what_a_client_gets_who_asks_for_nothing(
    client: TestClient, database: Database
) -> None:
    answer = client.get(URL)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == read(database, "study").read_all().to_pylist()


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("text/html, text/csv;q=0.9, */*;q=0.1", "text/csv"),
        (
            "application/json;q=0.5, application/vnd.apache.parquet",
            "application/vnd.apache.parquet",
        ),
        ("text/*", "text/csv"),
        ("*/*", "application/json"),
    ],
)
def test_the_form_is_the_one_that_is_most_welcome(
    client: TestClient, accept: str, media: str
) -> None:
    answer = client.get(URL, params={"limit": 1}, headers={"Accept": accept})
    assert answer.headers["content-type"].split(";")[0] == media


@pytest.mark.parametrize("accept", ["text/html", "nonsense", "a/b/c;q=x", "image/*;q=0"])
def test_what_cannot_be_given_is_406_and_says_what_can(client: TestClient, accept: str) -> None:
    answer = client.get(URL, headers={"Accept": accept})
    assert (answer.status_code, answer.json()["code"]) == (406, "NOT_ACCEPTABLE")
    assert all(media in answer.json()["detail"] for media in TABLES)


def test_format_in_the_query_stands_for_the_header(client: TestClient) -> None:
    answer = client.get(URL, params={"format": "csv"}, headers={"Accept": "text/html"})
    assert answer.text.startswith('"number","state","value"')
    wrong = client.get(URL, params={"format": "xlsx"})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "#query/format")


def test_filters_order_columns_and_limit_are_those_of_the_command_line(
    client: TestClient, database: Database
) -> None:
    chosen: dict[str, Any] = {"filters": ["state=COMPLETE", "kd.weight>5"], "order_by": ["-value"]}
    chosen |= {"columns": ["number", "value"], "limit": 3}
    expected = read(database, "study", **chosen).read_all().to_pylist()
    query = {
        "filter": chosen["filters"],
        "order_by": "-value",
        "columns": "number,value",
        "limit": 3,
    }
    assert client.get(URL, params=query).json() == expected
    assert len(expected) == 3


def test_no_row_that_matches_is_an_empty_table(client: TestClient) -> None:
    assert client.get(URL, params={"filter": "value>1000"}).json() == []
    empty = client.get(URL, params={"filter": "value>1000", "format": "csv"})
    assert empty.text.startswith('"number"') and empty.text.count("\n") == 1


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"view": "tirals"}, "trials"),
        ({"filter": "colour=red"}, "there is no column 'colour'"),
        ({"order_by": "colour"}, "there is no column 'colour'"),
        ({"columns": "number,colour"}, "there is no column 'colour'"),
        ({"limit": 0}, "greater than or equal to 1"),
        ({"best": 3}, "only view 'paper' has it"),
    ],
)
def test_a_wrong_query_is_422_with_the_library_s_sentence(
    client: TestClient, query: dict[str, Any], told: str
) -> None:
    answer = client.get(URL, params=query)
    assert answer.status_code == 422
    assert told in answer.json()["detail"]
    assert [e["pointer"] for e in answer.json()["errors"]] == [f"#query/{next(iter(query))}"]


def test_all_that_is_wrong_with_a_query_is_named_at_once(client: TestClient) -> None:
    query = {"columns": "nope", "filter": "nope=3", "order_by": "nope", "view": "paper"}
    answer = client.get(URL, params=query)
    assert answer.status_code == 422
    assert {e["pointer"] for e in answer.json()["errors"]} == {
        "#query/columns",
        "#query/filter",
        "#query/order_by",
    }


def test_a_table_that_the_client_has_is_not_sent_again(tmp_path: Path) -> None:
    app = app_with_study(tmp_path, 10)
    client, core = client_of(app, "ann"), app.state.core
    first = client.get(URL)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    same = client.get(URL, headers={"If-None-Match": f'"other", W/{tag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    csv = client.get(URL, headers={"If-None-Match": tag, "Accept": "text/csv"})
    assert csv.status_code == 200, "another form is another answer"
    optuna.load_study(study_name="study", storage=core.database.optuna_storage()).enqueue_trial({})
    core.versions.forget("study")
    new = client.get(URL, headers={"If-None-Match": tag})
    assert (new.status_code, len(new.json())) == (200, 11)


def test_an_unchanged_table_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(app_with_study(tmp_path, 10), "ann")
    first = client.get(URL)
    monkeypatch.setattr("ucd_ray.service.routes.results.open_view", None)
    assert client.get(URL).content == first.content


def test_a_long_table_begins_before_it_ends(client: TestClient, monkeypatch: Any) -> None:
    whole = client.get(URL, params={"view": "classes"})
    for name, value in {"SHORT": 400, "PIECE": 100}.items():
        monkeypatch.setattr(f"ucd_ray.service.spool.{name}", value)
    long = client.get(URL, params={"view": "classes", "limit": 10_000})
    assert "content-length" in whole.headers and "content-length" not in long.headers
    assert long.content == whole.content and len(whole.content) > 10_000
    paper = client.get(URL, params={"view": "paper", "all_rows": True})
    assert "content-length" not in paper.headers
    assert paper.json()[0]["number"] is not None


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_the_best_recipe_is_what_the_command_line_exports(
    client: TestClient, database: Database, form: str
) -> None:
    answer = client.get("/v1/studies/abc/best", headers={"Accept": f"application/{form}"})
    content = yaml.safe_load(answer.text) if form == "yaml" else json.loads(answer.text)
    best = read(database, "study", order_by=["best"], limit=1).read_all().to_pylist()[0]
    assert (content["trial"], content["value"]) == (best["number"], best["value"])
    assert content["recipe"]["kd.weight"] == best["kd.weight"]
    other = client.get("/v1/studies/abc/best", params={"trial": 0}).text
    assert yaml.safe_load(other)["trial"] == 0


def test_without_a_complete_trial_there_is_no_best(tmp_path: Path) -> None:
    client = client_of(app_with_study(tmp_path, 0), "ann")
    answer = client.get("/v1/studies/abc/best")
    assert (answer.status_code, answer.json()["code"]) == (404, "NO_COMPLETE_TRIAL")
    assert client.get(URL).json() == []
    chart = client.get("/v1/studies/abc/plots/history")
    assert (chart.status_code, chart.json()["code"]) == (409, "NOTHING_TO_DRAW")


def test_a_chart_comes_as_figure_and_drawn(client: TestClient) -> None:
    url = "/v1/studies/abc/plots/history"
    figure = client.get(url)
    assert figure.headers["content-type"] == "application/json"
    assert {"data", "layout"} <= set(figure.json())
    svg = client.get(url, headers={"Accept": "image/svg+xml"})
    assert "<svg" in svg.text
    png = client.get(url, headers={"Accept": "image/png"})
    assert png.content.startswith(b"\x89PNG")
    again = client.get(url, headers={"Accept": "image/png", "If-None-Match": png.headers["etag"]})
    assert again.status_code == 304


def test_predictions_of_a_network_that_is_not_there_have_nothing_to_show(
    client: TestClient,
) -> None:
    answer = client.get("/v1/studies/abc/plots/predictions")
    assert (answer.status_code, answer.json()["code"]) == (409, "NOTHING_TO_DRAW")
    assert "is not in the step cache" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("importance", "did you mean 'importances'?"), ("pie", "history, importances")],
)
def test_a_chart_that_is_none_is_404_and_says_which_there_are(
    client: TestClient, name: str, hint: str
) -> None:
    answer = client.get(f"/v1/studies/abc/plots/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")
    assert f"'{name}'" in answer.json()["detail"] and hint in answer.json()["detail"]


def test_an_objective_that_the_study_does_not_have_is_named(client: TestClient) -> None:
    answer = client.get("/v1/studies/abc/plots/history", params={"objective": "nope"})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#query/objective"]


def test_the_guide_names_every_chart() -> None:
    guide = Path("docs/service-api.md").read_text()
    assert not [name for name in CHARTS if f"`{name}`" not in guide]


def test_a_report_is_one_page_that_needs_no_network(client: TestClient, tmp_path: Path) -> None:
    url = "/v1/studies/abc/report"
    page = client.get(url)
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-disposition"] == 'attachment; filename="abc.html"'
    assert page.text.count("Plotly.newPlot(") >= 5 and "<script src=" not in page.text
    assert client.get(url, headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    refused = client_of(app_with_study(tmp_path, 0), "ann").get(url)
    assert (refused.status_code, refused.json()["code"]) == (409, "NOTHING_TO_DRAW")
    assert "no finished trial" in refused.json()["detail"]


def test_whether_the_best_two_differ_is_said_where_trials_have_replicates(
    client: TestClient, tmp_path: Path
) -> None:
    assert client.get("/v1/studies/abc/standing").json() == {"sentences": []}
    database = study_of(tmp_path, (40.0, 44.0, 42.0), (41.0, 42.0, 43.5))
    app = create_app(Settings(database=f"sqlite:///{database.url.database}"))
    add_row(app.state.core.database)
    told = client_of(app, "ann").get("/v1/studies/abc/standing").json()["sentences"]
    assert told == best_two(database, "study") and "not distinguishable" in told[1]


def test_others_do_not_see_the_study(app: FastAPI) -> None:
    other = client_of(app, "bob")
    for path in ("results", "best", "plots/history", "report", "standing"):
        assert other.get(f"/v1/studies/abc/{path}").status_code == 404


def test_a_study_that_no_driver_opened_says_so(tmp_path: Path) -> None:
    app = app_with_study(tmp_path, 1)
    add_row(app.state.core.database, "new", name="new", state="QUEUED")
    answer = client_of(app, "ann").get("/v1/studies/new/results")
    assert (answer.status_code, answer.json()["code"]) == (409, "NOT_STARTED")
    assert "it is QUEUED" in answer.json()["detail"]
