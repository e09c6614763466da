"""A client that costs little: requests as bytes over connections that stay open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

CONNECTIONS = 8


class Connection:
    """One open connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().strip().split("\r\n")
        pairs = (line.split(": ", 1) for line in lines)
        headers = {name.lower(): value for name, value in pairs}
        return int(first.split()[1]), headers, await self._body(headers)

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await self.reader.readexactly(int(headers.get("content-length", 0)))
        parts = []
        while size := int(await self.reader.readline(), 16):
            parts.append(await self.reader.readexactly(size))
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return b"".join(parts)


async def connect(port: int) -> Connection:
    """A new connection."""
    return Connection(*await asyncio.open_connection("127.0.0.1", port, limit=2**20))


async def one(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """One answer."""
    connection = await connect(port)
    try:
        return await connection.ask(request)
    finally:
        connection.writer.close()


async def times(port: int, ask: Callable[[], bytes], status: int, seconds: float) -> list[float]:
    """Seconds of every answer, from some connections at once for so long.

    ask: makes the next request; status: what every answer must have
    """
    until = time.monotonic() + seconds

    async def work() -> list[float]:
        connection, found = await connect(port), []
        while time.monotonic() < until:
            start = time.perf_counter()
            answer = await connection.ask(ask())
            found.append(time.perf_counter() - start)
            assert answer[0] == status, answer
        connection.writer.close()
        return found

    jobs: list[Awaitable[list[float]]] = [work() for _ in range(CONNECTIONS)]
    return [each for found in await asyncio.gather(*jobs) for each in found]
