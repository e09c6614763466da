"""Requests per second of reads, and of a bare FastAPI route that returns the same bytes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table

from benchmarks.service.client import one, times
from benchmarks.service.server import Server, made, request, serve_bare, serving, started, study
from ucd_ray.service.database import open_database
from ucd_ray.tune.events import tell

TRIALS = 20_000
STUDIES = 2000
ROUNDS = 7  # by turns, a short one of each: what disturbs one disturbs the other
COMMITS = 10  # per second, by a study that runs
Requests = Callable[[], bytes]


def show_reads(arguments: Namespace) -> None:
    """Prints the ratios."""
    with made(TRIALS, more=STUDIES) as database, serving(database) as server:
        cases = asyncio.run(_cases(server))
        answers = [asyncio.run(_answer(server, case())) for case in cases.values()]
        bodies = {f"/{i}": answer for i, answer in enumerate(answers)}
        with started(serve_bare, bodies) as (bare, _), running_study(server):
            table = Table("read", "bytes", "requests/s", "bare", "ratio (median)", "from", "to")
            for i, (name, case) in enumerate(cases.items()):
                status, _, body = answers[i]
                plain = request(f"/{i}")
                rates = []
                for _ in range(ROUNDS):
                    ours, its = (
                        len(asyncio.run(times(port, ask, status, arguments.seconds / ROUNDS)))
                        for port, ask in ((server.port, case), (bare, lambda p=plain: p))
                    )
                    rates.append((ours, its))
                per_s = [
                    statistics.median(side) * ROUNDS / arguments.seconds
                    for side in zip(*rates, strict=True)
                ]
                ratios = sorted(ours / its for ours, its in rates)
                three = (statistics.median(ratios), ratios[0], ratios[-1])
                shown = [f"{rate:.0f}" for rate in per_s] + [f"{ratio:.0%}" for ratio in three]
                table.add_row(name, f"{len(body)}", *shown)
    Console().print(table)


@contextlib.contextmanager
def running_study(server: Server) -> Iterator[None]:
    """Something is committed again and again: nothing stays in memory for long."""
    ends = threading.Event()

    def run() -> None:
        database = open_database(server.database)
        while not ends.wait(1 / COMMITS):
            tell(database, study(TRIALS), "an epoch")

    thread = threading.Thread(target=run)
    thread.start()
    yield
    ends.set()
    thread.join()


async def _cases(server: Server) -> dict[str, Requests]:
    """What is asked; fresh: the next study or trial each time, of which no memory has an answer."""
    base = f"/v1/studies/{study(TRIALS)}"
    results = f"{base}/results?limit=50"
    _, headers, _ = await one(server.port, server.get(results))
    other = itertools.count()
    return {
        "a study, fresh": lambda: server.get(f"/v1/studies/more{next(other) % STUDIES}"),
        "a trial, fresh": lambda: server.get(f"{base}/trials/{next(other) % TRIALS}"),
        "a study, as before": lambda: server.get(base),
        "a trial, as before": lambda: server.get(f"{base}/trials/500"),
        "results, as before": lambda: server.get(results),
        "results, 304": lambda: server.get(results, If_None_Match=headers["etag"]),
    }


async def _answer(server: Server, case: bytes) -> tuple[int, str, bytes]:
    status, headers, body = await one(server.port, case)
    return status, headers.get("content-type", "application/json"), body
