"""An answer of any size: a thread writes it into a temporary file, the client reads behind it.

So the writer never waits for a slow client, no thread is held by one, a short answer is whole before its
first byte leaves (its errors still have a status), and a long one begins at once.
"""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from typing import Any, BinaryIO, cast

SHORT = 1_000_000  # bytes of an answer that is sent whole
PIECE = 256_000
Fill = Callable[[BinaryIO], None]  # writes an answer


class Abandoned(Exception):  # noqa: N818
    """Nobody reads what is written any more."""


class Spool(io.RawIOBase):
    """The file: written by one thread, read by one task."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed with the spool
        self._news = asyncio.Event()
        self._written = self._readable = 0
        self._done = self._abandoned = False
        self._error: BaseException | None = None

    # The writer's side.

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Bytes so far."""
        return self._written

    def write(self, data: Any) -> int:
        """Appends bytes.  Raises Abandoned."""
        if self._abandoned:
            raise Abandoned
        count = self._file.write(data)
        self._written += count
        if self._written - self._readable >= PIECE:
            self._show()
        return count

    def _show(self) -> None:
        self._file.flush()
        self._readable = self._written
        self._loop.call_soon_threadsafe(self._news.set)

    def _fill(self, fill: Fill) -> None:
        try:
            fill(cast(BinaryIO, self))
        except BaseException as error:
            self._error = error
        self._done = True
        self._show()

    # The reader's side.

    @classmethod
    async def filled(cls, executor: Executor, fill: Fill) -> Spool:
        """A spool that `fill` writes to, once its content is whole or no longer short.

        Raises what `fill` raised until then.
        """
        spool = cls()
        task = spool._loop.run_in_executor(executor, spool._fill, fill)
        try:
            while not spool._done and spool._readable < SHORT:
                await spool._wait()
            if spool._done:
                await task
        except BaseException:
            spool._abandoned = True
            raise
        if spool._error is not None:
            raise spool._error
        return spool

    async def _wait(self) -> None:
        await self._news.wait()
        self._news.clear()

    @property
    def whole(self) -> bytes | None:
        """The content if it is short and complete."""
        if not self._done or self._readable >= SHORT:
            return None
        return os.pread(self._file.fileno(), self._readable, 0)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The content as it comes.  Raises what the writer raised: the answer then ends too early."""
        at = 0
        try:
            while True:
                done = self._done  # before the look: its last bytes are not missed
                while at < self._readable:  # it was just written, so it is in memory
                    piece = os.pread(self._file.fileno(), min(PIECE, self._readable - at), at)
                    at += len(piece)
                    yield piece
                if done:
                    break
                await self._wait()
            if self._error is not None:
                raise self._error
        finally:
            self._abandoned = True
