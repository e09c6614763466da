"""Answers that are given again as they were, before any route is looked for.

An answer with an ETag says what the database says to one token.  While nobody has committed anything, the
same request of the same token is answered with the same bytes; for `AGE_S` at most, as some of what an
answer tells stands in no table, and never beyond the end of its token.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ucd_ray.service.freshness import AGE_S
from ucd_ray.service.recent import Stamp

ROOM = 16_000_000  # bytes of remembered answers
MOST = 10_000  # of them
LONGEST = 500_000  # bytes of one
COUNTS = (b"authorization", b"accept", b"if-none-match")  # headers that an answer depends on
EXPIRES = "expires"  # in a request's state: when its token does, in seconds since 1970

Key = tuple[str, bytes, tuple[bytes | None, ...]]


@dataclass(frozen=True)
class Kept:
    """One answer, and what must still be so."""

    start: Message
    body: Message
    route: Any
    stamp: int
    until: float  # on the monotonic clock
    expires: float | None  # of the token

    def holds(self, stamp: int | None) -> bool:
        """Whether it is still the answer."""
        return (
            self.stamp == stamp
            and time.monotonic() < self.until
            and (self.expires is None or time.time() < self.expires)
        )


class Repeated:
    """The innermost layer of the app, in plain ASGI."""

    def __init__(self, app: ASGIApp, stamp: Stamp) -> None:
        self.app, self.stamp = app, stamp
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._size = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return await self.app(scope, receive, send)
        with self.stamp.read_once() as stamp:
            await self._answer(stamp, scope, receive, send)

    async def _answer(self, stamp: int | None, scope: Scope, receive: Receive, send: Send) -> None:
        key = _key(scope)
        if stamp is None or key[2][0] is None:  # without a token the address counts as well
            return await self.app(scope, receive, send)
        if (kept := self._kept.get(key)) is not None and kept.holds(stamp):
            scope["route"] = kept.route
            await send(kept.start)
            return await send(kept.body)
        began, said = time.monotonic(), list[Message]()

        async def send_noted(message: Message) -> None:
            if len(said) < 2:
                said.append(message)
            await send(message)

        await self.app(scope, receive, send_noted)
        if len(said) == 2 and _whole_and_tagged(*said):
            expires = scope["state"].get(EXPIRES)
            start, body = said
            self._keep(key, Kept(start, body, scope.get("route"), stamp, began + AGE_S, expires))

    def _keep(self, key: Key, kept: Kept) -> None:
        self._forget(key)
        self._kept[key] = kept
        self._size += len(kept.body["body"])
        while self._size > ROOM or len(self._kept) > MOST:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: Key) -> None:
        if (before := self._kept.pop(key, None)) is not None:
            self._size -= len(before.body["body"])


def _key(scope: Scope) -> Key:
    given = dict(scope["headers"])
    return scope["path"], scope["query_string"], tuple(map(given.get, COUNTS))


def _whole_and_tagged(start: Message, body: Message) -> bool:
    return (
        start["status"] in (200, 304)
        and any(name == b"etag" for name, _ in start["headers"])
        and not body.get("more_body", False)
        and "body" in body
        and len(body["body"]) <= LONGEST
    )
