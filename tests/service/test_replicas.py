"""Two processes of the service on one PostgreSQL: one talks to the cluster, both answer, either may die."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from tests.postgres import PostgresServer
from ucd_ray.service.database import open_database
from ucd_ray.service.tables import lease_table, study_table
from ucd_ray.service.tokens import create_token
from ucd_ray.tune.database import Database

SHAPES: dict[str, Any] = {"tune": {"scenario": "shapes-8-4", "settings": {"trials": 3}}}


@dataclass
class Pair:
    """Both processes, and what they work on."""

    database: Database
    folder: Path
    processes: list[subprocess.Popen[str]]
    clients: list[httpx.Client]

    def starts(self) -> list[str]:
        """Names of studies, once for each job that was started."""
        path = self.folder / "starts"
        return path.read_text().splitlines() if path.exists() else []

    def names(self) -> list[str]:
        """Of all studies."""
        return list(
            self.database.read(lambda c: c.execute(sa.select(study_table.c.name)).scalars())
        )

    def holder(self) -> int:
        """Which process has the lease."""
        text = self.database.read(lambda c: c.execute(sa.select(lease_table.c.holder)).scalar_one())
        return [process.pid for process in self.processes].index(int(text.split("-")[-2]))


@pytest.fixture
def pair(postgres: PostgresServer, tmp_path: Path) -> Iterator[Pair]:
    url = postgres.url(postgres.new_database())
    database, folder = open_database(url), tmp_path / "cluster"
    folder.mkdir()
    token = create_token(database, "ann", ["write"])
    command = [sys.executable, "-m", "tests.service.replica", url, str(folder)]
    environment = {**os.environ, "UCD_RAY_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        ports = [process.stdout.readline().strip() for process in processes if process.stdout]
        headers = {"Authorization": f"Bearer {token}"}
        bases = [f"http://127.0.0.1:{port}/v1" for port in ports]
        clients = [httpx.Client(base_url=base, headers=headers, timeout=30) for base in bases]
        yield Pair(database, folder, processes, clients)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def create(pair: Pair, number: int, which: int) -> str:
    """The id of a study that is asked for at one replica, and again at the other."""
    key = {"Idempotency-Key": f"k{number}"}
    found = []
    for client in (pair.clients[which], pair.clients[1 - which]):
        while (answer := client.post("/studies", json=SHAPES, headers=key)).status_code == 409:
            time.sleep(0.05)  # the same request is being answered
        assert answer.status_code == 201, answer.text
        found.append(answer.json()["id"])
    assert found[0] == found[1]
    return str(found[0])


def test_two_replicas_start_every_study_once_and_one_outlives_the_other(pair: Pair) -> None:
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda n: create(pair, n // 2, n % 2), range(12)))
    assert len(set(ids)) == 6, "both ask for the same study at the same time"
    until(lambda: sorted(pair.starts()) == sorted(pair.names()))
    for client in pair.clients:
        listed = client.get("/studies").json()["studies"]
        assert {study["id"] for study in listed} == set(ids)
        until(lambda c=client: c.get(f"/studies/{ids[0]}").json()["state"] == "RUNNING")  # type: ignore[misc]

    first = pair.holder()
    pair.processes[first].kill()
    pair.processes[first].wait()
    left = pair.clients[1 - first]
    answer = left.post("/studies", json=SHAPES)
    assert answer.status_code == 201
    until(lambda: pair.holder() == 1 - first)
    until(lambda: sorted(pair.starts()) == sorted(pair.names()))
    assert len(pair.starts()) == 7
    patched = left.patch(f"/studies/{ids[1]}", json={"priority": 3})
    assert (patched.status_code, patched.json()["priority"]) == (200, 3)
