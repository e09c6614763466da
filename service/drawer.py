"""Makes charts and reports in processes of its own: requests are answered meanwhile, whatever they take.

They alone import what draws, and what runs a network: its 500 MB go with the process that needed them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from ucd_ray.errors import CheckpointError, DataError, NotDrawn, WeightsError
from ucd_ray.service.aside import own_process
from ucd_ray.tune.database import Database

NETWORK = "predictions"  # the chart that runs one


class Drawer:
    """Starts with the first chart."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._one_network = asyncio.Lock()

    async def chart(
        self, url: str, study: str, name: str, objective: str | None, form: str
    ) -> bytes:
        """A chart of a study of the database at `url` as `json`, `svg` or `png`.

        Raises ConfigError for an unknown objective, NotDrawn if the chart would be empty.
        """
        run = self._run_once if name == NETWORK else self._run
        return await run(partial(_chart, url, study, name, objective, form))

    async def report(self, url: str, study: str) -> bytes:
        """The report of a study of the database at `url`.  Raises StudyError."""
        return await self._run_once(partial(_report, url, study))

    async def _run(self, work: Callable[[], bytes]) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._started(), work)
        except BrokenProcessPool:  # somebody ended the process
            self.close()
            return await loop.run_in_executor(self._started(), work)

    async def _run_once(self, work: Callable[[], bytes]) -> bytes:
        async with self._one_network:
            pool = own_process()
            try:
                return await asyncio.get_running_loop().run_in_executor(pool, work)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _started(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = own_process()
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

    try:
        return drawn(chart_of(Source(Database(url), study), name, objective), form)
    except (CheckpointError, DataError, WeightsError) as error:  # of a network, or of its images
        raise NotDrawn(str(error)) from None


def _report(url: str, study: str) -> bytes:
    from ucd_ray.tune.report import report_of

    return report_of(url, study)
