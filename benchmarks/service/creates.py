"""Many studies created at a time by clients that lose answers and send again: each is there once."""

from __future__ import annotations

import asyncio
import json
import random
import time
from argparse import Namespace
from collections import Counter

import sqlalchemy as sa
from rich.console import Console

from benchmarks.service.client import connect
from benchmarks.service.server import OWNER, Server, made, request, serving
from ucd_ray.service.database import open_database
from ucd_ray.service.tables import study_table

STUDIES = 1000
AT_A_TIME = 50
LOST = 0.3  # of the answers: the client has gone before it comes
BODY = {"tune": {"scenario": "shapes-8-4", "settings": {"trials": 3}}}


def show_creates(arguments: Namespace) -> None:
    """Prints how many requests it took, and what is missing or there twice."""
    with made() as database, serving(database) as server:
        start = time.perf_counter()
        found, sent = asyncio.run(_all(server))
        seconds = time.perf_counter() - start
        query = sa.select(study_table.c.id, study_table.c.labels)
        rows = open_database(server.database).read(lambda c: c.execute(query).all())
    stored = Counter(json.loads(row.labels)["number"] for row in rows)
    lost = [number for number in found if number not in stored]
    doubled = [number for number, times in stored.items() if times > 1]
    other = [row.id for row in rows if found.get(json.loads(row.labels)["number"]) != row.id]
    Console().print(
        f"{len(found)} of {STUDIES} studies created by {sum(sent.values())} requests in {seconds:.0f} s "
        f"({', '.join(f'{n} {what}' for what, n in sent.most_common())}); "
        f"{len(lost)} lost, {len(doubled)} doubled, {len(other)} under another id than was answered"
    )


async def _all(server: Server) -> tuple[dict[str, str], Counter[str]]:
    """Ids by number, and what became of the requests."""
    places, sent = asyncio.Semaphore(AT_A_TIME), Counter[str]()

    async def create(number: int) -> tuple[str, str]:
        async with places:
            return str(number), await _create(server, number, sent)

    return dict(await asyncio.gather(*map(create, range(STUDIES)))), sent


async def _create(server: Server, number: int, sent: Counter[str]) -> str:
    """The id of a study that is asked for until an answer comes."""
    body = json.dumps({**BODY, "labels": {"number": str(number)}}).encode()
    headers = {"Authorization": f"Bearer {server.token}", "Idempotency_Key": f"{OWNER}-{number}"}
    text = request("/v1/studies", body, **headers)
    while True:
        connection = await connect(server.port)
        try:
            if random.random() < LOST:
                connection.writer.write(text)
                await connection.writer.drain()
                await asyncio.sleep(random.uniform(0.0, 0.05))
                sent["lost"] += 1
                continue
            status, _, answer = await connection.ask(text)
            sent[str(status)] += 1
            if status == 201:
                return str(json.loads(answer)["id"])
            assert status == 409, answer  # the lost one is still being answered
            await asyncio.sleep(0.2)
        finally:
            connection.writer.close()
