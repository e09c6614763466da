"""One run outside Tune, on a gang of its own: the base step, and `ucd-ray train` with several workers."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ucd_ray.job import Job
from ucd_ray.tune.executors import Executor

OnReport = Callable[[str, dict[str, Any]], None]


def run_single(
    executor: Executor,
    key: str,
    job: Job,
    on_report: OnReport,
    check: Callable[[], object] | None = None,
) -> str | None:
    """Runs one job on a gang of `executor`.  Returns why it failed, None if it did not.

    check: called at least once a second; it may raise
    """
    executor.put(key, job)
    failure = None
    for report in executor.reports(key, check or executor.status):
        if report["kind"] == "failed":
            failure = report["reason"]
        on_report(report["kind"], report)
    executor.forget(key)
    return failure


@contextlib.contextmanager
def quiet_ray() -> Iterator[None]:
    """Keeps Tune's and Train's own tables and notes off the terminal: our progress shows as much."""
    for name in ("ray.tune", "ray.air", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
