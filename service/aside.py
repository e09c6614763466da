"""Work in processes of its own, so that what it imports and needs does not stay in the service's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def own_process() -> ProcessPoolExecutor:
    """A process that starts with the first work."""
    # Not forked: threads of ours may hold locks.
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def aside(work: Callable[[], T]) -> T:
    """What `work` returns or raises, in a process that ends with it."""
    with own_process() as pool:
        return pool.submit(work).result()
