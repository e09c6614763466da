"""How much a SQLite database has to do for an answer, whatever the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa

from ucd_ray.tune.database import Database

T = TypeVar("T")
EVERY = 10  # steps that are counted at a time


def steps_of(database: Database, call: Callable[[], T]) -> tuple[T, int]:
    """What `call` returns, and the steps of SQLite's machine that it took."""
    counted, on = 0, False

    def count() -> int:
        nonlocal counted
        counted += EVERY if on else 0
        return 0

    def watch(raw: Any, *_: Any) -> None:
        raw.set_progress_handler(count, EVERY)

    sa.event.listen(database.engine, "checkout", watch)
    try:
        call()  # once before: it reads the schema
        on = True
        return call(), counted
    finally:
        on = False
        sa.event.remove(database.engine, "checkout", watch)
