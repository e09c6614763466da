"""The events of studies, followed once for all who listen.

One task per study looks for new lines and at the study's state; however many clients there are, the
database is asked once a moment.  The latest lines are kept: who is behind those, because they come back
after a while or read slowly, is given pages from the database until they have caught up.  No client has
a queue of its own, so none can make another wait or take memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from fastapi.concurrency import run_in_threadpool
from sse_starlette import ServerSentEvent

from ucd_ray.errors import UcdRayError
from ucd_ray.service.problems import Problem
from ucd_ray.service.tables import study_table
from ucd_ray.tune.database import Database
from ucd_ray.tune.events import events

POLL_S = 0.5
KEPT = 2000  # lines
PAGE = 500  # lines that are read at a time
STREAM_S = 3600.0  # of one stream; its client comes back
MOST = 2000  # streams of one service


@dataclass(frozen=True)
class Event:
    """One line about a study."""

    id: int
    time: float
    number: int | None  # of the trial
    kind: str
    text: str
    data: dict[str, Any] | None

    @classmethod
    def of(cls, row: sa.Row[Any]) -> Event:
        """A stored line."""
        data = None if row.data is None else json.loads(row.data)
        return cls(row.id, row.time, row.number, row.kind, row.text, data)

    def content(self) -> dict[str, Any]:
        """As plain values."""
        names = ("id", "time", "number", "kind", "text", "data")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def frame(self) -> bytes:
        """As a stream has it, made once for all who listen."""
        return ServerSentEvent(json.dumps(self.content()), id=str(self.id), sep="\n").encode()


class Tail:
    """The new events of one study."""

    def __init__(self, database: Database, study_id: str, name: str) -> None:
        self.database, self.study_id, self.name = database, study_id, name
        self.listeners = 0
        self.state: dict[str, Any] | None = None  # of the study, and why
        self._latest: deque[Event] = deque(maxlen=KEPT)
        self._from = (
            self._to
        ) = -1  # every line with an id above the first, up to the second, is kept
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    async def follow(
        self, after: int, number: int | None = None, *, on: bool = True
    ) -> AsyncIterator[Event | dict[str, Any]]:
        """Events with ids above `after`, and the study's state whenever it is another.

        number: of one trial only; on: also those that come, for STREAM_S
        """
        self.listeners += 1
        loop, state = asyncio.get_running_loop(), None
        until = loop.time() + STREAM_S
        try:
            if self._task is None:
                self._task = asyncio.create_task(self._poll())
            while loop.time() < until and not self._ended:
                news = self._news
                if self.state is not None and self.state != state:
                    state = self.state
                    yield state
                found = self._kept(after)
                if found is None:
                    found = await self._page(after)
                for event in found:
                    after = event.id
                    if number is None or event.number == number:
                        yield event
                if not found and self._to >= 0 and not on:
                    return
                if not found:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(news.wait(), until - loop.time())
        finally:
            self.listeners -= 1
            if self.listeners == 0 and self._task is not None:
                self._task.cancel()
                self._task = None

    def end(self) -> None:
        """Ends all streams: the service ends.  To be called in their event loop."""
        self._ended = True
        self._news.set()

    def _kept(self, after: int) -> list[Event] | None:
        """What follows a line, if we have all of it."""
        if after < self._from:
            return None
        found: list[Event] = []
        for event in reversed(self._latest):
            if event.id <= after:
                break
            found.append(event)
        return found[::-1]

    async def _page(self, after: int) -> list[Event]:
        rows = await run_in_threadpool(events, self.database, self.name, after=after, first=PAGE)
        return [Event.of(row) for row in rows]

    async def _poll(self) -> None:
        while True:
            with contextlib.suppress(UcdRayError):  # the database is away: it is looked for again
                await self._look()
            await asyncio.sleep(POLL_S)

    def _state(self) -> dict[str, Any] | None:
        columns = (study_table.c.state, study_table.c.conditions)
        query = sa.select(*columns).where(study_table.c.id == self.study_id)
        row = self.database.read(lambda connection: connection.execute(query).first())
        return row and {"state": row.state, "conditions": json.loads(row.conditions)}

    async def _look(self) -> None:
        state = await run_in_threadpool(self._state)
        if self._to < 0:
            newest = await run_in_threadpool(events, self.database, self.name, last=1)
            found: list[Event] = []
            self._from = self._to = newest[0].id if newest else 0
        else:
            found = await self._page(self._to)
        for event in found:
            if len(self._latest) == KEPT:
                self._from = self._latest[0].id
            self._latest.append(event)
            self._to = event.id
        if found or state != self.state:
            self.state = state
            self._news.set()
            self._news = asyncio.Event()


class Tails:
    """The tails of all studies that someone listens to."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._tails: dict[str, Tail] = {}

    @property
    def open(self) -> int:
        """Streams."""
        return sum(tail.listeners for tail in self._tails.values())

    def end(self) -> None:
        """Ends all streams."""
        for tail in self._tails.values():
            tail.end()

    def of(self, study_id: str, name: str) -> Tail:
        """The tail of a study.  Raises Problem (503) if there are too many streams."""
        self._tails = {key: tail for key, tail in self._tails.items() if tail.listeners}
        if self.open >= MOST:
            told = f"{MOST} streams are open, and no more can be; come back later"
            raise Problem(503, "TOO_MANY_STREAMS", told, headers={"Retry-After": "30"})
        return self._tails.setdefault(study_id, Tail(self.database, study_id, name))
