"""How long a page of 50 takes where there are many trials or studies, and where there are few."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import urllib.parse
from argparse import Namespace
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.service.client import times
from benchmarks.service.server import OTHER, SMALL, Server, made, serving, study
from tests.service.rows import add_rows
from ucd_ray.service.database import open_database
from ucd_ray.service.tokens import create_token

TRIALS = {
    "trials by number": {"filter": ""},
    "trials, last first": {"filter": "", "order_by": "number desc"},
    "complete trials": {"filter": 'state="COMPLETE" AND '},
    "trials, best first": {"filter": "", "order_by": "value desc"},
}
STUDIES = {
    "studies, newest first": {},
    "studies by name": {"order_by": "name"},
    "running studies": {"filter": 'state="RUNNING"', "order_by": "update_time desc"},
}
ROUNDS = 5  # by turns


def show_lists(arguments: Namespace) -> None:
    """Prints p99 and the ratio.  There are as many studies as trials of the large one."""
    large, small = f"p99 of {arguments.trials} [ms]", f"of {SMALL} [ms]"
    table = Table("page of 50", large, small, "ratio (median)", "from", "to")
    with (
        made(arguments.trials, SMALL, more=arguments.trials) as database,
        serving(database) as server,
    ):
        own = open_database(server.database)
        add_rows(own, SMALL, OTHER, prefix="other")
        few = create_token(own, OTHER, ("read",))
        pages = {name: _trials(server, arguments.trials, query) for name, query in TRIALS.items()}
        pages |= {name: _studies(server, few, query) for name, query in STUDIES.items()}
        for name, asks in pages.items():
            seconds = arguments.seconds / ROUNDS
            rounds = [[_p99(server, ask, seconds) for ask in asks] for _ in range(ROUNDS)]
            ratios = sorted(many / few for many, few in rounds)
            middle = [f"{statistics.median(side):.1f}" for side in zip(*rounds, strict=True)]
            shown = (statistics.median(ratios), ratios[0], ratios[-1])
            table.add_row(name, *middle, *(f"{ratio:.2f}" for ratio in shown))
    Console().print(table)


def _trials(server: Server, trials: int, query: dict[str, str]) -> list[Callable[[], bytes]]:
    """Of many, of few; by a filter that never was before: no memory has the answer."""
    other = itertools.count(1)

    def asks(size: int) -> Callable[[], bytes]:
        base = f"/v1/studies/{study(size)}/trials?page_size=50"

        def ask() -> bytes:
            chosen = {**query, "filter": f"{query['filter']}number!=-{next(other)}"}
            return server.get(f"{base}&{urllib.parse.urlencode(chosen)}")

        return ask

    return [asks(trials), asks(SMALL)]


def _studies(server: Server, few: str, query: dict[str, str]) -> list[Callable[[], bytes]]:
    path = f"/v1/studies?page_size=50&{urllib.parse.urlencode(query)}"
    return [lambda: server.get(path), lambda: server.get(path, token=few)]


def _p99(server: Server, ask: Callable[[], bytes], seconds: float) -> float:
    """Milliseconds of a page."""
    found = asyncio.run(times(server.port, ask, 200, seconds))
    return float(np.percentile(found, 99) * 1000)
