"""When the database cannot be reached: which failures pass, how long we wait for it, what is said.

A server that restarts, a network that is cut and a file that another process holds are waited for, up to
UCD_RAY_DATABASE_WAIT seconds (default 300); when a database is opened, 10 s at most.  What waiting cannot
mend fails at once: a wrong password, a database that is not there, a missing right, a full disk.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from ucd_ray.errors import DatabaseError, StudyError

T = TypeVar("T")

FIRST_WAIT_S = 10.0  # for a database that has not been seen yet
WAIT_S = 300.0
LONGEST_PAUSE_S = 5.0

SQLITE_LOCKED = (5, 6)  # BUSY, LOCKED
# Connection failures, an administrator's shutdown, too many clients, deadlocks and failed serialisation.
PASSING_STATES = ("08", "57P01", "57P02", "57P03", "53300", "40001", "40P01")
# A failed connection has no SQLSTATE, only text: libpq's, or after FATAL the server's.
PASSING_TEXTS = (
    "connection refused",
    "connection reset",
    "connection timeout",
    "timeout expired",
    "timed out",
    "closed the connection",
    "connection is closed",
    "connection is lost",
    "broken pipe",
    "is the server running",
    "no route to host",
    "network is unreachable",
    "host is down",
    "could not translate host name",
    "failed to resolve host",
    "the database system is",  # starting up, shutting down, in recovery mode
    "too many clients",
    "connection slots are reserved",
    "terminating connection",
)
# What to do, by a part of the message.
HINTS = (
    (("is locked",), " (another process holds it)"),
    (
        ("password", "no pg_hba.conf entry"),
        "; give user and password in UCD_RAY_DATABASE, PGPASSWORD, ~/.pgpass or "
        "UCD_RAY_DATABASE_PASSWORD_FILE",
    ),
    (("permission denied", "readonly", "read-only"), "; it needs the right to write"),
    (
        ("is full", "no space left", "could not extend"),
        "; make room and start the same command again: what was stored stays",
    ),
)


def passes(error: BaseException) -> bool:
    """Whether a driver's or SQLAlchemy's error is one that ends by itself."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or (error.orig is not None and passes(error.orig))
    if (code := getattr(error, "sqlite_errorcode", None)) is not None:
        return code & 0xFF in SQLITE_LOCKED
    if (state := getattr(error, "sqlstate", None)) is not None:
        return state.startswith(PASSING_STATES)
    text = str(error).lower()
    return any(part in text for part in PASSING_TEXTS)


def reason(error: BaseException) -> str:
    """One line of what failed, and what can be done about it."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines() or [repr(error)]
    cause = lines[0].strip()
    if cause.endswith(":") and len(lines) > 1:  # one line for each address of a host
        cause = f"{cause} {lines[1].strip(' -')}"
    low = cause.lower()
    if 'database "' in low and "does not exist" in low:
        return f"{cause}; create it with createdb"
    return cause + next((hint for parts, hint in HINTS if any(p in low for p in parts)), "")


def longest_wait() -> float:
    """Seconds of UCD_RAY_DATABASE_WAIT.  Raises StudyError."""
    text = os.environ.get("UCD_RAY_DATABASE_WAIT") or str(WAIT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise StudyError(f"UCD_RAY_DATABASE_WAIT must be a number of seconds, not '{text}'")
    return seconds


class Patience:
    """Repeats calls while one database cannot be reached.  Threads wait each for itself, and tell once."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.on_wait: Callable[[str], None] = logging.getLogger("ucd_ray.database").warning
        self.longest = longest_wait()
        self.limit = min(FIRST_WAIT_S, self.longest)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._waiting = 0  # calls
        self._told: float | None = None  # when
        self._in_vain = (
            False  # a wait has ended without an answer: no second one, until there is one
        )

    def opened(self) -> None:
        """The database was there: from now on its outages are waited for."""
        self.limit = self.longest

    def stop(self) -> None:
        """Ends all waiting, also that of other threads: calls fail at their first error."""
        self._stopped.set()

    def keep_trying(self, call: Callable[[], T]) -> T:
        """The call's result, from a repetition if need be.  Raises StudyError.

        A call may be repeated after it took effect: the answer can be lost.
        """
        since: float | None = None
        try:
            for attempt in itertools.count():
                try:
                    result = call()
                    break
                except Exception as error:
                    found = database_error(error)
                    if found is None:
                        raise
                    if since is None:
                        since = time.monotonic()
                        self._count(1)
                    self._pause(found, since, attempt)
        finally:
            if since is not None:
                self._count(-1)
        self._answered()
        return result

    def failure(self, error: BaseException) -> DatabaseError:
        """The error as one that names the database."""
        return DatabaseError(f"database '{self.shown}' failed: {reason(error)}")

    def _count(self, change: int) -> None:
        with self._lock:
            self._waiting += change

    def _pause(self, error: BaseException, since: float, attempt: int) -> None:
        if not passes(error):
            raise self.failure(error) from None
        limit = 0.0 if self._in_vain or self._stopped.is_set() else self.limit
        left = since + limit - time.monotonic()
        if left <= 0:
            self._in_vain = True
            waited = f" (waited {limit:g} s)" if limit else ""
            raise DatabaseError(str(self.failure(error)) + waited) from None
        if attempt > 0 or not is_lost(error):  # a connection gone stale is renewed without a word
            self._tell(error)
        pause = min(0.1 * 2.0 ** min(attempt, 10), LONGEST_PAUSE_S)
        try:
            self._stopped.wait(min(pause * random.uniform(0.7, 1.0), left))
        except KeyboardInterrupt:
            self.stop()  # what is called on the way out does not wait again
            raise

    def _tell(self, error: BaseException) -> None:
        with self._lock:
            told, self._told = self._told, self._told or time.monotonic()
        if told is None:
            self.on_wait(
                f"database '{self.shown}' does not answer: {reason(error)}; "
                f"waiting up to {self.limit:g} s for it"
            )

    def _answered(self) -> None:
        self._in_vain = False
        if self._told is None:
            return
        with self._lock:
            told = None if self._waiting else self._told
            if told is not None:
                self._told = None
        if told is not None:
            waited = time.monotonic() - told
            self.on_wait(f"database '{self.shown}' answers again, after {waited:.0f} s")


def is_lost(error: BaseException) -> bool:
    """Whether an open connection broke."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def database_error(error: BaseException | None) -> BaseException | None:
    """The database driver's error in an exception or below it (Optuna wraps them), None if none."""
    while error is not None:
        names = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
        if names & {"sqlalchemy", "psycopg", "sqlite3"}:
            return error
        error = error.__cause__
    return None
