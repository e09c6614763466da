"""What was read from the database and is still so: tokens and rows that every request needs.

On SQLite a counter tells at once whether anybody has committed anything since; as long as nobody has,
what was read is what is there.  A server has no such counter that costs less than the read: there
everything is read anew.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import sqlalchemy as sa
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.exc import SQLAlchemyError

from ucd_ray.tune.database import Database

T = TypeVar("T")
KEPT = 10_000  # values


class Stamp:
    """A number that differs once anybody has committed to the database."""

    def __init__(self, database: Database) -> None:
        self._at_begin: ContextVar[int | None] = ContextVar("stamp", default=None)
        self._connection: sqlite3.Connection | None = (
            database.connect() if database.is_sqlite else None
        )

    @contextmanager
    def read_once(self) -> Iterator[int | None]:
        """In the block `now` is what it is here: all that one request reads is at least as new."""
        stamp = self._read()
        token = self._at_begin.set(stamp)
        try:
            yield stamp
        finally:
            self._at_begin.reset(token)

    def now(self) -> int | None:
        """The number; None if it cannot be known."""
        begin = self._at_begin.get()
        return begin if begin is not None else self._read()

    def _read(self) -> int | None:
        if self._connection is None:
            return None
        try:
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return None

    def close(self) -> None:
        """Lets the file go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Reader:
    """Reads of a few rows by their keys.

    Of a SQLite file they take less time than handing them to a thread does, and no writer holds them up:
    they are done at once, on a connection that stays open.  Whatever goes wrong there, and every read of
    a server, is done in a thread, which waits for the database as all others do.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._lock = threading.Lock()
        self._connection: sa.Connection | None = None
        if database.is_sqlite:
            engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
            self._connection = engine.connect()

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """What `work` reads.  Raises StudyError."""
        if self._connection is not None:
            try:
                with self._lock:
                    return work(self._connection)
            except SQLAlchemyError:  # such as a file that is locked as a whole for a moment
                pass
        return await run_in_threadpool(self.database.read, work)

    def close(self) -> None:
        """Lets the file go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Recent:
    """Values by key, each with the stamp that was there before it was read."""

    def __init__(self, stamp: Stamp, reader: Reader) -> None:
        self.stamp, self.reader = stamp, reader
        self._known: OrderedDict[Hashable, tuple[int, Any]] = OrderedDict()

    async def of(self, key: Hashable, work: Callable[[sa.Connection], T]) -> T:
        """What `work` reads, from memory if nothing was committed since."""
        stamp = self.stamp.now()
        known = self._known.get(key)
        if known is not None and known[0] == stamp:
            found: T = known[1]
            return found
        value = await self.reader.read(work)
        if stamp is not None:
            self._known[key] = (stamp, value)
            self._known.move_to_end(key)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        return value
