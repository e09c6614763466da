"""What every request passes: an id, limits of size, depth and rate, security headers."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections import OrderedDict

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ucd_ray.service.problems import Problem, render
from ucd_ray.service.settings import Settings

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
RAW = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
CALLERS = 10_000  # whose rates are remembered
TOKENS_OF_ADDRESS = 10  # that can be used at full rate from one address
TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
BRACKETS = re.compile(rb"[\[\]{}]")
ESCAPES = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
BODY = ("POST", "PUT", "PATCH")


class Limits:
    """The outermost layer of the app, in plain ASGI: streams pass through it unbuffered."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.tokens = Rates(settings.requests_per_minute)
        self.addresses = Rates(settings.requests_per_minute * TOKENS_OF_ADDRESS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = message["headers"]
                names = {name for name, _ in given}
                own = [header for header in RAW if header[0] not in names]
                mark = (b"x-request-id", request_id.encode())
                message = {**message, "headers": [*given, *own, mark]}
            await send(message)

        try:
            self._count(scope)
            if scope["method"] in BODY:
                receive = replayed(await self._body(scope, receive))
        except Problem as problem:
            return await render(problem, request_id)(scope, receive, send_safely)
        await self.app(scope, receive, send_safely)

    def _count(self, scope: Scope) -> None:
        """Counts a request for its address, and for its token, which may share that address."""
        self.addresses.take(str((scope.get("client") or ("nobody",))[0]))
        token = Headers(scope=scope).get("authorization")
        if token is not None:
            self.tokens.take(token)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = self.settings.max_body_bytes
        too_large = Problem(413, "TOO_LARGE", f"the body is larger than {limit} bytes")
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        body = bytearray()
        more = True
        while more:
            try:
                message = await asyncio.wait_for(receive(), self.settings.body_wait_s)
            except TimeoutError:
                raise Problem(408, "TOO_SLOW", "the body did not arrive in time") from None
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                raise too_large
        deepest = self.settings.max_depth
        if too_deep(body, deepest):
            raise Problem(422, "TOO_DEEP", f"the body is nested deeper than {deepest} levels")
        if has_half(body):
            told = "the body has half of a character (\\ud800 to \\udfff alone)"
            raise Problem(400, "NOT_JSON", told)
        return bytes(body)


def replayed(body: bytes) -> Receive:
    """A body that was read, for who reads it next."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


def too_deep(text: bytes | bytearray, limit: int) -> bool:
    """Whether JSON is nested deeper than `limit`, seen before anybody parses it."""
    level = 0
    for match in BRACKETS.finditer(TEXTS.sub(b"", text)):
        level += 1 if match.group() in b"[{" else -1
        if level > limit:
            return True
    return False


def has_half(text: bytes | bytearray) -> bool:
    """Whether JSON has one of a pair of surrogates alone: it is no text, and nothing can store it."""
    if b"\\u" not in text:
        return False
    first = None  # where a pair that has begun goes on
    for match in ESCAPES.finditer(text):
        code = int(match[1], 16) if match[1] else 0
        if (first is not None) != (0xDC00 <= code < 0xE000) or first not in (None, match.start()):
            return True
        first = match.end() if 0xD800 <= code < 0xDC00 else None
    return first is not None


class Rates:
    """A bucket for every caller: full it allows a minute's requests at once, and it fills evenly."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self.buckets: OrderedDict[int, tuple[float, float]] = OrderedDict()

    def take(self, who: str) -> None:
        """Counts a request.  Raises Problem if it is one too many."""
        now, key = time.monotonic(), hash(who)
        left, since = self.buckets.pop(key, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - since) * self.per_minute / 60)
        self.buckets[key] = (max(0.0, left - 1), now)
        if len(self.buckets) > CALLERS:
            self.buckets.popitem(last=False)
        if left < 1:
            wait = {"Retry-After": str(1 + int((1 - left) * 60 / self.per_minute))}
            told = f"more than {self.per_minute} requests a minute"
            raise Problem(429, "TOO_MANY_REQUESTS", told, headers=wait)
