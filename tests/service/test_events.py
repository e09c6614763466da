"""Events as a stream: every one once and in order, whoever comes back, reads slowly or goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.service.live import serving
from tests.service.rows import app_with_study, client_of
from ucd_ray.service import events as module
from ucd_ray.service.events import Event, Tail
from ucd_ray.service.tables import study_table
from ucd_ray.service.tokens import create_token
from ucd_ray.tune.database import Database
from ucd_ray.tune.event_data import event_data
from ucd_ray.tune.events import tell

URL = "/v1/studies/abc/events"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.02)


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return app_with_study(tmp_path, 3)


@pytest.fixture
def database(app: FastAPI) -> Database:
    found: Database = app.state.core.database
    return found


def say(database: Database, *texts: str, number: int | None = None) -> None:
    for text in texts:
        tell(database, "study", text, number=number, data={"of": f"trial {number}"})


def messages(text: str) -> list[dict[str, Any]]:
    """The messages of a stream, heartbeats left out."""
    found = []
    for part in text.strip().split("\n\n"):
        fields = [line.partition(": ")[::2] for line in part.splitlines()]
        if any(name == "data" for name, _ in fields):
            found.append(dict(fields))
    return found


def test_a_stream_tells_the_study_s_state_and_then_every_event(
    app: FastAPI, database: Database
) -> None:
    say(database, "a", "b")
    answer = client_of(app, "ann").get(URL, params={"follow": False})
    assert answer.headers["content-type"].startswith("text/event-stream")
    state, first, second = messages(answer.text)
    assert (state["event"], json.loads(state["data"])["state"]) == ("study", "RUNNING")
    assert "id" not in state, "it would be taken for the last event"
    content = json.loads(first["data"])
    assert (first["id"], content["text"], content["kind"]) == (str(content["id"]), "a", "study")
    assert int(second["id"]) > int(first["id"])


def test_a_stream_goes_on_after_the_last_event(app: FastAPI, database: Database) -> None:
    say(database, *"abcde")
    client = client_of(app, "ann")
    ids = [m["id"] for m in messages(client.get(URL, params={"follow": False}).text) if "id" in m]
    later = client.get(URL, params={"follow": False}, headers={"Last-Event-ID": ids[2]})
    assert [m["id"] for m in messages(later.text) if "id" in m] == ids[3:]
    for wrong in ("x", "-1", "9" * 30):
        assert client.get(URL, headers={"Last-Event-ID": wrong}).status_code == 400


def test_events_of_one_trial_can_be_asked_for(app: FastAPI, database: Database) -> None:
    say(database, "study")
    say(database, "one", number=1)
    text = client_of(app, "ann").get(URL, params={"follow": False, "number": 1}).text
    assert [json.loads(m["data"])["text"] for m in messages(text) if "id" in m] == ["one"]


def test_others_get_no_stream(app: FastAPI) -> None:
    assert client_of(app, "bob").get(URL).status_code == 404


async def collect(tail: Tail, count: int, after: int = 0, **options: Any) -> list[str]:
    """The texts of so many events."""
    found: list[str] = []
    async with contextlib.aclosing(tail.follow(after, **options)) as stream:
        async for event in stream:
            if isinstance(event, Event):
                found.append(event.text)
            if len(found) == count:
                break
    return found


def test_what_comes_is_read_once_for_all_who_listen(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [str(i) for i in range(200)]
    reads: list[int] = []
    read = module.events

    def counted(*args: Any, **named: Any) -> Any:
        reads.append(1)
        return read(*args, **named)

    monkeypatch.setattr(module, "events", counted)

    async def run() -> list[list[str]]:
        tail = Tail(database, "abc", "study")
        listeners = [asyncio.create_task(collect(tail, 200)) for _ in range(50)]
        for start in range(0, 200, 20):
            await asyncio.to_thread(say, database, *texts[start : start + 20])
        found = await asyncio.wait_for(asyncio.gather(*listeners), 30)
        assert tail.listeners == 0 and tail._task is None, "nobody listens: nobody looks"
        return found

    found = asyncio.run(run())
    assert all(one == texts for one in found)
    assert len(reads) < 200, "50 listeners, each of 200 events"


def test_who_falls_behind_what_is_kept_is_given_pages(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 5)
    monkeypatch.setattr(module, "PAGE", 3)
    texts = [str(i) for i in range(40)]

    async def run() -> tuple[list[str], list[str]]:
        tail = Tail(database, "abc", "study")
        quick = asyncio.create_task(collect(tail, 40))
        slow: list[str] = []
        async with contextlib.aclosing(tail.follow(0)) as stream:
            await anext(stream)  # the state: it listens
            for text in texts:
                await asyncio.to_thread(say, database, text)
            assert await asyncio.wait_for(quick, 20) == texts
            while len(slow) < 40:
                event = await asyncio.wait_for(anext(stream), 20)
                slow += [event.text] if isinstance(event, Event) else []
        return await quick, slow

    one, other = asyncio.run(run())
    assert one == other == texts


def test_a_change_of_the_study_s_state_is_told(database: Database) -> None:
    async def run() -> list[str]:
        tail, states = Tail(database, "abc", "study"), []
        async with contextlib.aclosing(tail.follow(0)) as stream:
            async for event in stream:
                assert isinstance(event, dict)
                states.append(event["state"])
                if len(states) == 2:
                    return states
                database.write(lambda c: c.execute(study_table.update().values(state="PAUSED")))
        raise AssertionError

    assert asyncio.run(asyncio.wait_for(run(), 20)) == ["RUNNING", "PAUSED"]


def test_a_stream_ends_after_its_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAM_S", 0.1)

    async def run() -> list[Any]:
        return [event async for event in Tail(database, "abc", "study").follow(0)]

    found = asyncio.run(asyncio.wait_for(run(), 20))
    assert all(isinstance(event, dict) for event in found), "nothing happened meanwhile"


def test_streams_end_in_order_when_the_service_ends(
    app: FastAPI, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"Authorization": f"Bearer {create_token(database, 'ann', ('read',))}"}
    say(database, "a")
    with ThreadPoolExecutor(1) as pool:
        with serving(app) as port:
            url = f"http://127.0.0.1:{port}{URL}"
            answer = pool.submit(httpx.get, url, headers=headers, timeout=60)
            wait_until(lambda: app.state.core.tails.open == 1)
        _, event = messages(answer.result().text)  # raises if the stream was cut off
    assert json.loads(event["data"])["text"] == "a"
    assert not caplog.records, caplog.text


def test_too_many_streams_are_refused(
    app: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 0)
    answer = client_of(app, "ann").get(URL)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")


def test_lines_of_a_trial_are_its_log(app: FastAPI, database: Database) -> None:
    say(database, "study")
    say(database, "one", "two", number=1)
    tell(database, "study", "run", number=1, data={"of": "trial 1-r1"})
    client, url = client_of(app, "ann"), "/v1/studies/abc/trials/1/logs"
    whole = client.get(url).json()
    assert [line["text"] for line in whole["lines"]] == ["one", "two", "run"]
    since = whole["lines"][0]["id"]
    assert len(client.get(url, params={"since": since}).json()["lines"]) == 2
    assert client.get(url, params={"since": whole["next"]}).json() == {
        **{"lines": [], "next": whole["next"]},
    }
    of_run = client.get(url, params={"replicate": 1}).json()
    assert [line["text"] for line in of_run["lines"]] == ["run"]


@pytest.mark.parametrize("follow", [False, True])
def test_a_log_is_that_of_one_worker(app: FastAPI, database: Database, follow: bool) -> None:
    report = {"node": "10.0.0.1", "level": "info"}
    for rank in (0, 1):
        data = event_data("worker", "trial 1", {**report, "rank": rank})
        tell(database, "study", f"rank {rank}", kind="worker", number=1, data=data)
    tell(database, "study", "end", kind="finished", number=1, data={"state": "COMPLETE"})
    asked = {"worker": 1, "follow": follow}
    answer = client_of(app, "ann").get("/v1/studies/abc/trials/1/logs", params=asked)
    assert "rank 1" in answer.text
    assert "rank 0" not in answer.text and "end" not in answer.text


def test_a_log_is_followed_until_its_trial_ends(app: FastAPI, database: Database) -> None:
    say(database, "one", number=1)
    tell(database, "study", "end", kind="finished", number=1, data={"state": "COMPLETE"})
    say(database, "later", number=1)
    text = client_of(app, "ann").get("/v1/studies/abc/trials/1/logs", params={"follow": True}).text
    assert [line.split("  ")[1] for line in text.splitlines()] == ["one", "end"]


def test_a_client_that_takes_nothing_is_cut_off_and_misses_nothing(
    app: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ucd_ray.service.routes.events.SEND_S", 0.5)
    many = 300
    token = create_token(database, "ann", ("read",))
    request = f"GET {URL} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    tails = app.state.core.tails
    with serving(app) as port, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", port))
        slow.sendall(f"{request}\r\n".encode())
        wait_until(lambda: tails.open == 1)
        say(database, *(f"{i} " + "x" * 50_000 for i in range(many)))
        wait_until(lambda: tails.open == 0)
        slow.settimeout(5)
        got = b"".join(iter(lambda: slow.recv(2**20), b""))
        last = re.findall(rb"^id: (\d+)", got[: got.rfind(b"\n\n")], re.MULTILINE)[-1]
        seen = got[: got.rfind(b"\n\n")].count(b'data: {"id"')
    again = client_of(app, "ann").get(
        URL, params={"follow": False}, headers={"Last-Event-ID": last.decode()}
    )
    rest = [json.loads(m["data"])["text"].split()[0] for m in messages(again.text) if "id" in m]
    assert rest == [str(i) for i in range(seen, many)]
    assert 0 < seen < many


def wait_until(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.02)
