"""`Idempotency-Key`: a request that is sent again is answered again, and done once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ucd_ray.service.problems import Problem
from ucd_ray.service.rows import insert_new
from ucd_ray.service.tables import request_table
from ucd_ray.tune.database import Database

IN_FLIGHT_S = 30.0  # after which a request without an answer is taken to have died with its process
KEPT_S = 7 * 86_400.0


@dataclass(frozen=True)
class Answer:
    """A stored response."""

    status: int
    body: dict[str, Any]


@dataclass(frozen=True)
class Once:
    """One request under a key of its owner."""

    database: Database
    owner: str
    key: str
    fingerprint: str

    @classmethod
    def of(cls, database: Database, owner: str, key: str, *content: str) -> Once:
        """content: all that makes it this request"""
        digest = hashlib.sha256("\0".join(content).encode()).hexdigest()
        return cls(database, owner, key, digest)

    def begin(self) -> Answer | None:
        """Takes the key.  Returns the answer if the request was answered before.

        Raises Problem: 422 for a key of another request, 409 while it is in flight.
        """
        found = self.database.write(self._begin)
        if isinstance(found, Problem):
            raise found
        return found

    def _begin(self, connection: sa.Connection) -> Answer | Problem | None:
        now = time.time()
        row = {"owner": self.owner, "key": self.key, "fingerprint": self.fingerprint}
        if insert_new(connection, request_table, {**row, "created": now}):
            return None
        query = sa.select(request_table).where(self._mine()).with_for_update()
        stored = connection.execute(query).one()
        if stored.fingerprint != self.fingerprint:
            told = f"Idempotency-Key '{self.key}' was used for another request; choose a new one"
            return Problem(422, "KEY_REUSED", told)
        if stored.status is not None:
            return Answer(stored.status, json.loads(stored.body))
        if now - stored.created < IN_FLIGHT_S:
            told = "the same request is being answered"
            return Problem(409, "IN_FLIGHT", told, headers={"Retry-After": "1"})
        connection.execute(request_table.update().where(self._mine()).values(created=now))
        return None

    def answered(self, connection: sa.Connection, answer: Answer) -> None:
        """Stores the answer, in the transaction of what the request does."""
        values = {"status": answer.status, "body": json.dumps(answer.body)}
        connection.execute(request_table.update().where(self._mine()).values(**values))

    def release(self) -> None:
        """The request was refused: the same key may try again."""
        unanswered = self._mine() & request_table.c.status.is_(None)
        self.database.write(lambda c: c.execute(request_table.delete().where(unanswered)))

    def _mine(self) -> sa.ColumnElement[bool]:
        return sa.and_(request_table.c.owner == self.owner, request_table.c.key == self.key)


def answered_once(
    database: Database,
    owner: str,
    key: str | None,
    content: tuple[str, ...],
    answer: Callable[[Once | None], Answer],
) -> Answer:
    """What `answer` returns, or returned before to the same request under the same key.

    content: all that makes it this request; answer: stores its answer in what it is given
    Raises Problem, and what `answer` raises: the same key may then try again.
    """
    if key is None:
        return answer(None)
    once = Once.of(database, owner, key, *content)
    if (before := once.begin()) is not None:
        return before
    try:
        return answer(once)
    except Exception:
        once.release()
        raise


def forget_old(database: Database) -> None:
    """Removes keys that nobody will send again."""
    old = request_table.c.created < time.time() - KEPT_S
    database.write(lambda connection: connection.execute(request_table.delete().where(old)))
