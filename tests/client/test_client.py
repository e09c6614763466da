"""The client against a service that answers on a port, over connections that break."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from tests.service.live import serving
from tests.service.rows import add_row, app_with_study
from ucd_ray.client import Client, Line
from ucd_ray.client import client as module
from ucd_ray.errors import ConfigError, RequestRefused, ServiceError
from ucd_ray.service.tables import study_table
from ucd_ray.service.tokens import create_token
from ucd_ray.tune.events import tell
from ucd_ray.tune.results import read

TRIALS = 12
SHAPES: dict[str, Any] = {"tune": {"scenario": "shapes-8-4", "settings": {"trials": 3}}}
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    app = app_with_study(tmp_path_factory.mktemp("client"), TRIALS)
    for number in range(30):
        tell(app.state.core.database, "study", f"line {number}", number=number % 3)
    yield app
    app.state.core.close()


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def token(app: FastAPI) -> str:
    return create_token(app.state.core.database, "ann", ("read", "write"))


@pytest.fixture
def client(url: str, token: str) -> Iterator[Client]:
    with Client(url, token=token, patience_s=5) as client:
        yield client


def rows(app: FastAPI) -> int:
    count = sa.select(sa.func.count()).select_from(study_table)
    return int(app.state.core.database.read(lambda c: c.execute(count).scalar_one()))


def answering(*answers: Answer | Exception, patience_s: float = 5) -> Client:
    """A client of a service that gives these answers, one after the other."""
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer(request)

    transport = httpx.MockTransport(handle)
    return Client("http://service", token="t", patience_s=patience_s, transport=transport)


def problem(status: int, detail: str, **headers: str) -> Answer:
    body = {"status": status, "detail": detail, "code": "CODE", "errors": []}
    return lambda _: httpx.Response(status, json=body, headers=headers)


def test_pages_are_joined_and_typed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 5)
    found = list(client.trials("abc"))
    assert [trial.number for trial in found] == list(range(TRIALS))
    assert found[3] == client.trial("abc", 3)
    best = next(client.trials("abc", filter='state="COMPLETE"', order_by="value desc"))
    assert best.value == max(trial.value for trial in found if trial.value is not None)
    assert [step.step for step in client.steps("abc", best.number)] == [0, 1, 2]


def test_a_study_is_started_found_changed_and_deleted(client: Client, app: FastAPI) -> None:
    study = client.create({**SHAPES, "external_id": "life"})
    assert study.state == "QUEUED" and client.study(study.id) == client.find(study.name) == study
    changed, done = client.change(study.id, if_match=study.etag, priority=3)
    assert done and changed.priority == 3
    with pytest.raises(RequestRefused, match="has changed") as refused:
        client.change(study.id, if_match=study.etag, priority=4)
    assert refused.value.status == 412
    assert client.stop(study.id, "kill").state == "CANCELLED"
    copy = client.clone(study.id, {"name": "copy"})
    assert copy.name == "copy" and copy.id in {s.id for s in client.studies()}
    client.stop(copy.id, "kill")
    assert client.delete(copy.id).state == "DELETED"
    assert copy.id not in {s.id for s in client.studies()}
    assert client.undelete(copy.id).state == "CANCELLED"


def test_fine_tuning_is_started_once(client: Client) -> None:
    study = client.finetune("abc")
    assert (study.name, study.state) == ("study-finetune", "QUEUED")
    assert client.finetune("abc", key="again").id == study.id
    client.stop(study.id, "kill")


def test_a_name_of_several_studies_or_of_none_is_refused(client: Client, app: FastAPI) -> None:
    for key in ("tw1", "tw2"):
        add_row(app.state.core.database, key, title="twin", name=f"twin-{key}")
    with pytest.raises(RequestRefused, match=r"2 studies .*'twin'.*tw2 \(of ann\), tw1 \(of ann\)"):
        client.find("twin")
    assert client.find("tw1").id == "tw1"
    with pytest.raises(RequestRefused, match="there is no study 'nothing'"):
        client.find("nothing")


def test_tables_are_those_of_the_library(client: Client, app: FastAPI) -> None:
    own = read(app.state.core.database, "study", "steps").read_all()
    assert client.table("abc", "steps").equals(own)
    content = b"".join(client.pieces("abc", "steps", form="parquet"))
    assert pq.read_table(io.BytesIO(content)).equals(own)
    few = client.table("abc", filter=["state=COMPLETE"], columns=["number", "value"], limit=2)
    assert few.num_rows == 2 and few.column_names == ["number", "value"]
    published = b"".join(client.published("voc-15-1", form="arrow-stream"))
    assert pa.ipc.open_stream(published).read_all().num_rows > 10


def test_the_best_recipe_and_a_chart_come_in_their_forms(client: Client) -> None:
    assert "kd.weight" in client.best("abc")
    assert json.loads(client.best("abc", form="json"))["recipe"]
    assert client.plot("abc", "history", form="svg").startswith(b"<?xml")


def test_a_refusal_has_the_words_and_fields_of_the_service(client: Client, app: FastAPI) -> None:
    before = rows(app)
    with pytest.raises(RequestRefused, match=r"ucd\.weigth") as refused:
        client.create({"spec": {"name": "x", "recipe": {"scenario": "voc-15-1", "ucd.weigth": 1}}})
    assert refused.value.status == 422 and refused.value.code == "INVALID"
    assert "/spec/recipe/ucd.weigth" in {field["pointer"] for field in refused.value.fields}
    assert rows(app) == before


class Breaking(httpx.HTTPTransport):
    """A network on which answers get lost: the next one, or a stream after so many bytes."""

    def __init__(self, *, lost: int = 0, after: int | None = None) -> None:
        super().__init__()
        self.lost, self.after, self.sent = lost, after, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent += 1
        response = super().handle_request(request)
        if self.lost:
            self.lost -= 1
            response.read()
            raise httpx.ReadError("the connection broke")
        if self.after is not None and request.url.path.endswith("/events"):
            response.stream = Cut(response.stream, self.after)
            self.after += 200  # else one that breaks before its first event would never end
        return response


class Cut(httpx.SyncByteStream):
    def __init__(self, whole: Any, after: int) -> None:
        self.whole, self.after = whole, after

    def __iter__(self) -> Iterator[bytes]:
        left = self.after
        for piece in self.whole:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                raise httpx.ReadError("the connection broke")

    def close(self) -> None:
        self.whole.close()


def test_a_study_whose_answer_is_lost_is_started_once(url: str, token: str, app: FastAPI) -> None:
    before = rows(app)
    network = Breaking(lost=2)
    with Client(url, token=token, transport=network) as client:
        study = client.create(SHAPES)
    assert network.sent == 3 and rows(app) == before + 1
    assert study.state == "QUEUED"


def test_what_cannot_be_repeated_is_sent_once(url: str, token: str) -> None:
    network = Breaking(lost=1)
    with Client(url, token=token, transport=network) as client:
        with pytest.raises(ServiceError, match="does not answer: the connection broke"):
            client.queue_trial("abc", {"kd.weight": 3.0})
        assert network.sent == 1
        assert sum(trial.params.get("kd.weight") == 3.0 for trial in client.trials("abc")) <= 1


@pytest.mark.parametrize("after", [1, 300, 700])
def test_events_come_once_and_in_order_over_connections_that_break(
    url: str, token: str, after: int
) -> None:
    network = Breaking(after=after)
    found: list[str] = []
    with Client(url, token=token, transport=network) as client:
        for event in client.events("abc", follow=False):
            if isinstance(event, Line):
                found.append(event.text)
            else:
                assert event.state == "RUNNING"
    assert [text for text in found if text.startswith("line")] == [f"line {i}" for i in range(30)]
    assert network.sent > 2


def test_events_of_one_trial_go_on_after_the_last_that_was_seen(client: Client) -> None:
    lines = [e for e in client.events("abc", number=1, follow=False) if isinstance(e, Line)]
    assert {line.number for line in lines} == {1}
    rest = client.events("abc", number=1, after=lines[3].id, follow=False)
    assert [e for e in rest if isinstance(e, Line)] == lines[4:]


def test_a_stream_that_ends_at_once_is_opened_again_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr("ucd_ray.client.stream.time.sleep", sleep)
    stream = {"Content-Type": "text/event-stream"}
    client = answering(*[lambda _: httpx.Response(200, headers=stream, text="")] * 9)
    with pytest.raises(KeyboardInterrupt):
        next(client.events("abc"))
    assert pauses == sorted(pauses) and 0 < pauses[0] < 1 < pauses[-1] <= 5


def test_busy_services_are_asked_again_when_they_say() -> None:
    page = {"trials": [], "next_page_token": None}
    client = answering(
        problem(429, "slower", **{"Retry-After": "0"}),
        problem(503, "the database is away", **{"Retry-After": "0"}),
        httpx.ConnectError("refused"),
        lambda _: httpx.Response(200, json=page),
    )
    assert list(client.trials("abc")) == []


def test_patience_ends_with_the_words_of_the_service() -> None:
    away = problem(503, "the database is away", **{"Retry-After": "5"})
    with pytest.raises(ServiceError, match="the database is away"):
        answering(away, away, patience_s=0.5).study("abc")
    with pytest.raises(ServiceError, match="http://service does not answer: refused"):
        answering(*[httpx.ConnectError("refused")] * 50, patience_s=0.3).study("abc")


def test_a_request_in_flight_is_waited_for() -> None:
    body = {"status": 409, "detail": "being answered", "code": "IN_FLIGHT", "errors": []}
    keys: list[str] = []

    def busy(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        return httpx.Response(409, json=body, headers={"Retry-After": "0"})

    def refuses(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        return problem(422, "wrong")(request)

    with pytest.raises(RequestRefused, match="wrong"):
        answering(busy, refuses).create(SHAPES)
    assert len(keys) == 2 and keys[0] == keys[1]


def test_what_is_no_service_is_named() -> None:
    with pytest.raises(ServiceError, match="is it a ucd-ray service"):
        answering(lambda _: httpx.Response(404, text="<html>")).study("abc")
    with pytest.raises(ConfigError, match="must be a URL"):
        Client("ftp://service", token="t")


def test_an_unknown_token_is_refused(url: str) -> None:
    with pytest.raises(RequestRefused, match="unknown, expired or revoked") as refused:
        Client(url, token="ucd_x_y").study("abc")
    assert refused.value.status == 401


def test_a_token_comes_from_the_environment_or_a_file_of_its_owner(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("UCD_RAY_TOKEN", raising=False)
    sent = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("Authorization"))
        return httpx.Response(200, json={"studies": [], "next_page_token": None})

    def ask() -> None:
        list(Client("http://service", transport=httpx.MockTransport(answer)).studies())

    ask()
    own_home.mkdir()
    file = own_home / "service-token"
    file.write_text("of-home\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        ask()
    file.chmod(0o600)
    ask()
    other = tmp_path / "token"
    monkeypatch.setenv("UCD_RAY_TOKEN_FILE", str(other))
    with pytest.raises(ConfigError, match="No such file"):
        ask()
    other.touch(0o600)
    with pytest.raises(ConfigError, match="is empty"):
        ask()
    other.write_text("of-file")
    ask()
    monkeypatch.setenv("UCD_RAY_TOKEN", "of-environment")
    ask()
    names = ("of-home", "of-file", "of-environment")
    assert sent == [None, *(f"Bearer {name}" for name in names)]
