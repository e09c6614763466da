"""Many open event streams: whether each gets every event, in order, and how soon."""

from __future__ import annotations

import asyncio
import json
import time
from argparse import Namespace

from rich.console import Console

from benchmarks.service.client import connect
from benchmarks.service.server import SMALL, Server, made, serving, study
from ucd_ray.service.database import open_database
from ucd_ray.tune.events import tell

EVENTS = 200
PAUSE_S = 0.02  # between two


def show_streams(arguments: Namespace) -> None:
    """Prints how many events arrived, in which order, and after how long."""
    with made(SMALL) as database, serving(database) as server:
        before = server.process.memory_info().rss
        found = asyncio.run(_run(server, arguments.clients))
        grown = (server.process.memory_info().rss - before) / 1e6
    texts = [str(i) for i in range(EVENTS)]
    whole = sum([text for text, _ in one] == texts for one in found)
    delays = sorted(delay for one in found for _, delay in one)
    Console().print(
        f"{whole} of {len(found)} streams got all {EVENTS} events in order; "
        f"after {delays[len(delays) // 2]:.2f} s (median), {delays[-1]:.2f} s (latest); "
        f"{grown:.0f} MB more in the server"
    )


async def _run(server: Server, clients: int) -> list[list[tuple[str, float]]]:
    ready = asyncio.Semaphore(0)
    listeners = [asyncio.create_task(_listen(server, ready)) for _ in range(clients)]
    for _ in listeners:
        await ready.acquire()
    await asyncio.to_thread(_tell, server)
    return list(await asyncio.gather(*listeners))


def _tell(server: Server) -> None:
    database = open_database(server.database)
    for i in range(EVENTS):
        tell(database, study(SMALL), str(i))
        time.sleep(PAUSE_S)


async def _listen(server: Server, ready: asyncio.Semaphore) -> list[tuple[str, float]]:
    """Texts and delays of all events."""
    connection = await connect(server.port)
    connection.writer.write(server.get(f"/v1/studies/{study(SMALL)}/events"))
    found: list[tuple[str, float]] = []
    while len(found) < EVENTS:
        line = await connection.reader.readline()
        if line.startswith(b"event: study"):
            ready.release()
        elif line.startswith(b'data: {"id"'):
            event = json.loads(line[5:])
            found.append((event["text"], time.time() - event["time"]))
    connection.writer.close()
    return found
