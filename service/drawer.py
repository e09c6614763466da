"""Draws charts in a process of its own: requests are answered meanwhile, whatever a chart takes."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from ucd_ray.drawing import drawn
from ucd_ray.drawing.chart import Chart
from ucd_ray.tune.report import report_of


class Drawer:
    """Starts with the first chart."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    async def draw(self, chart: Chart, form: str) -> bytes:
        """The chart as `json`, `svg` or `png`."""
        return await self._run(partial(drawn, chart, form))

    async def report(self, url: str, study: str, left_out: Mapping[str, str]) -> bytes:
        """The report of a study of the database at `url`.  Raises StudyError."""
        return await self._run(partial(report_of, url, study, left_out))

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
