"""Draws charts in a process of its own: requests are answered meanwhile, whatever a chart takes."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from ucd_ray.drawing import drawn
from ucd_ray.drawing.chart import Chart


class Drawer:
    """Starts with the first chart."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    async def draw(self, chart: Chart, form: str) -> bytes:
        """The chart as `json`, `svg` or `png`."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._started(), drawn, chart, form)
        except BrokenProcessPool:  # somebody ended the process
            self.close()
            return await loop.run_in_executor(self._started(), drawn, chart, form)

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
