"""Who is at work in a store: a file that names a process and is renewed while it lives."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil

from ucd_ray.errors import CheckpointError
from ucd_ray.store import Store

STARTED_WITHIN_S = 5.0  # the clock of a machine may be set while a process lives


@dataclass(frozen=True)
class Owner:
    """A process that works on behalf of a run or study."""

    name: str  # of the run or study
    host: str
    machine: str  # the same text: process ids can be compared
    pid: int
    started: float  # when the process began: ids are used again

    @classmethod
    def here(cls, name: str) -> Owner:
        """This process."""
        pid = os.getpid()
        return cls(name, socket.gethostname(), _machine(), pid, psutil.Process(pid).create_time())

    @classmethod
    def parse(cls, content: bytes | None) -> Owner | None:
        """The owner that a file names, None if it names none."""
        try:
            stored = json.loads(content or b"")["owner"]
            return cls(**{field.name: stored[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError):
            return None

    def encode(self, **more: object) -> bytes:
        """The content of a file that names this owner; never twice the same."""
        return json.dumps({"owner": asdict(self), "id": uuid.uuid4().hex, **more}).encode()

    def lives(self) -> bool | None:
        """Whether the process lives; None if it belongs to another machine."""
        if self.machine != _machine():
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < STARTED_WITHIN_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid} on {self.host})"


def _machine() -> str:
    """Two processes see each other's ids where this is equal; containers may share a host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


class Heart:
    """Renews a file in the background until it is stopped, the file is another's, or work stalls.

    content: of the file, which no other process writes
    """

    def __init__(
        self, store: Store, *parts: str, content: bytes, every_s: float, stall_s: float = math.inf
    ) -> None:
        self.store, self.parts, self.content = store, parts, content
        self.every_s, self.stall_s = every_s, stall_s
        self._stop = threading.Event()
        self._worked = time.monotonic()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def worked(self) -> None:
        """Notes that work went on."""
        self._worked = time.monotonic()

    def stop(self) -> None:
        """Ends the renewal and removes the file."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(CheckpointError):  # it goes stale by itself
            if self._own():
                self.store.delete(*self.parts)

    def _beat(self) -> None:
        while not self._stop.wait(self.every_s):
            if time.monotonic() - self._worked > self.stall_s:
                return
            with contextlib.suppress(CheckpointError):  # tried again with the next beat
                if not self._own():
                    return
                self.store.touch(*self.parts)

    def _own(self) -> bool:
        """Whether the file is still ours: after a long sleep another may have it."""
        return self.store.read(*self.parts) == self.content
