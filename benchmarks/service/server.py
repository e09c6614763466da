"""The server of a measurement: the service in a process of its own, on a database of made-up studies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from benchmarks.tables import build

OWNER, OTHER, SMALL = "ann", "bob", 1000


@dataclass(frozen=True)
class Made:
    """A database of studies that are called by their number of trials, and a token for it."""

    url: str
    token: str


@dataclass(frozen=True)
class Server:
    """A service that answers on 127.0.0.1."""

    port: int
    token: str
    database: str
    process: psutil.Process

    def get(self, path: str, *, token: str | None = None, **headers: str) -> bytes:
        """A request as it is sent."""
        return request(path, Authorization=f"Bearer {token or self.token}", **headers)


def request(path: str, body: bytes | None = None, **headers: str) -> bytes:
    """A GET request as it is sent; with a body a POST of JSON."""
    given = {"Host": "127.0.0.1", **headers}
    if body is not None:
        given |= {"Content_Type": "application/json", "Content_Length": str(len(body))}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    method = "GET" if body is None else "POST"
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + (body or b"")


def study(trials: int) -> str:
    """The id of the study with so many trials."""
    return f"t{trials}"


@contextlib.contextmanager
def made(*sizes: int, more: int = 0) -> Iterator[Made]:
    """A database with a study of each size, and more studies that have no trials."""
    from tests.service.rows import add_row, add_rows
    from ucd_ray.service.database import open_database
    from ucd_ray.service.tokens import create_token

    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder)}/studies.db"
        for trials in sizes:
            build(url, study(trials), trials, classes=False)
        database = open_database(url)
        for trials in sizes:
            add_row(database, study(trials), OWNER, name=study(trials))
        add_rows(database, more, OWNER, prefix="more")
        yield Made(url, create_token(database, OWNER, ("read", "write")))


@contextlib.contextmanager
def serving(database: Made) -> Iterator[Server]:
    """A service on such a database."""
    with started(_serve, database.url) as (port, process):
        yield Server(port, database.token, database.url, process)


@contextlib.contextmanager
def served(database: Made) -> Iterator[Server]:
    """`ucd-ray serve` on such a database, as a user starts it: with a Ray head beside it."""
    command = (sys.executable, "-m", "ucd_ray.cli", "serve", "--port", "0")
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "UCD_RAY_HOME": home, "UCD_RAY_DATABASE": database.url}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            url = next(word for word in process.stdout.readline().split() if "://" in word)
            port = int(url.rpartition(":")[2])
            yield Server(port, database.token, database.url, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def started(serve: Any, *arguments: Any) -> Iterator[tuple[int, psutil.Process]]:
    """A server process; `serve(port, ...)` is what it runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    process: BaseProcess = spawn.Process(target=serve, args=(port, *arguments), daemon=True)
    process.start()
    try:
        _wait_for(port, process)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join(10)


def _wait_for(port: int, process: BaseProcess) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.is_alive():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError("the server did not start")


def _serve(port: int, url: str) -> None:
    from ucd_ray.service.spare import spare_memory

    spare_memory()
    from ucd_ray.service.app import create_app
    from ucd_ray.service.settings import Settings

    _run(create_app(Settings(database=url, requests_per_minute=10**9)), port)


def serve_bare(port: int, bodies: dict[str, tuple[int, str, bytes]]) -> None:
    """A FastAPI app whose routes do nothing but return bytes: status, media type, body by path."""
    from fastapi import FastAPI, Response

    app = FastAPI()
    for path, (status, media, body) in bodies.items():

        async def answer(status: int = status, media: str = media, body: bytes = body) -> Response:
            return Response(body, status, media_type=media)

        app.add_api_route(path, _plain(answer), response_class=Response)
    _run(app, port)


def _plain(answer: Any) -> Any:
    """The same without parameters, which would be read from the query."""

    async def route() -> Any:
        return await answer()

    return route


def _run(app: Any, port: int) -> None:
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)
