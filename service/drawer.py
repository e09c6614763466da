"""Makes charts and reports in a process of its own: requests are answered meanwhile, whatever they take.

It alone imports what draws.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from ucd_ray.tune.database import Database


class Drawer:
    """Starts with the first chart."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    async def chart(
        self, url: str, study: str, name: str, objective: str | None, form: str
    ) -> bytes:
        """A chart of a study of the database at `url` as `json`, `svg` or `png`.

        Raises ConfigError for an unknown objective, NotDrawn if the chart would be empty.
        """
        return await self._run(partial(_chart, url, study, name, objective, form))

    async def report(self, url: str, study: str, left_out: Mapping[str, str]) -> bytes:
        """The report of a study of the database at `url`.  Raises StudyError."""
        return await self._run(partial(_report, url, study, left_out))

    async def _run(self, work: Callable[[], bytes]) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._started(), work)
        except BrokenProcessPool:  # somebody ended the process
            self.close()
            return await loop.run_in_executor(self._started(), work)

    def _started(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:  # not forked: threads of ours may hold locks
                spawn = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, mp_context=spawn)
            return self._pool

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = None


def _chart(url: str, study: str, name: str, objective: str | None, form: str) -> bytes:
    from ucd_ray.drawing import drawn
    from ucd_ray.tune.charts import Source, chart_of

    return drawn(chart_of(Source(Database(url), study), name, objective), form)


def _report(url: str, study: str, left_out: Mapping[str, str]) -> bytes:
    from ucd_ray.tune.report import report_of

    return report_of(url, study, left_out)
