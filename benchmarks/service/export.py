"""The memory of `ucd-ray serve` while the table of a large study leaves."""

from __future__ import annotations

import asyncio
import io
import time
from argparse import Namespace
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.service.client import one
from benchmarks.service.server import SMALL, Server, made, served, study

FORMS = ("parquet", "csv", "json", "arrow-stream")


def show_export(arguments: Namespace) -> None:
    """Prints seconds, megabytes and the server's peak memory, each form from a process of its own."""
    table = Table("form", "s", "MB sent", "peak [MB]", "of it for the table [MB]")
    with made(arguments.trials, SMALL) as database:
        for form in FORMS:
            with served(database) as server:
                asyncio.run(_get(server, SMALL, form))  # what is loaded once
                before = _peak(server)
                start = time.perf_counter()
                body = asyncio.run(_get(server, arguments.trials, form))
                seconds, after = time.perf_counter() - start, _peak(server)
            if form == "parquet":
                assert pq.read_metadata(io.BytesIO(body)).num_rows == arguments.trials
            sizes = (len(body) / 1e6, after, after - before)
            table.add_row(form, f"{seconds:.1f}", *(f"{size:.0f}" for size in sizes))
    Console().print(table)


async def _get(server: Server, trials: int, form: str) -> bytes:
    path = f"/v1/studies/{study(trials)}/results?format={form}"
    status, _, body = await one(server.port, server.get(path))
    assert status == 200, body
    return body


def _peak(server: Server) -> float:
    """Largest resident memory of the server so far, in MB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6
