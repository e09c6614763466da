"""What spares work: versions of studies that are read once a moment, and short answers of those versions.

An answer is at most twice `AGE_S` older than the database, whatever other processes write: its version may
be that old, and it may be given again for as long.  What this service itself writes shows at once.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fastapi import Request, Response

from ucd_ray.service.recent import Stamp
from ucd_ray.tune.database import Database
from ucd_ray.tune.version import StudyVersion

AGE_S = 0.25
STILL_S = 5.0  # if nothing was committed: that a driver was killed stands in no table
STUDIES = 1000  # whose versions are remembered
ROOM = 32_000_000  # bytes of remembered answers
CACHING = {"Cache-Control": "private, no-cache", "Vary": "Accept, Authorization"}


@dataclass
class Known:
    """The version of one study, when it was last read."""

    version: StudyVersion
    text: str = ""
    read: float = -math.inf
    stamp: int | None = None  # of the database, before it was read
    lock: threading.Lock = field(default_factory=threading.Lock)


class Versions:
    """The versions of all studies that someone reads, by their names in the database."""

    def __init__(self, database: Database, stamp: Stamp) -> None:
        self.database, self.stamp = database, stamp
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._lock = threading.Lock()

    def fresh(self, study: str) -> str | None:
        """The version if it was read a moment ago, or nothing was committed since."""
        known = self._known.get(study)
        if known is None or not known.text:
            return None
        age = time.monotonic() - known.read
        same = age < STILL_S and known.stamp is not None and known.stamp == self.stamp.now()
        return known.text if age < AGE_S or same else None

    def read(self, study: str) -> str:
        """The version; of those who ask at once, one reads it.  Raises StudyError."""
        with self._lock:
            if study not in self._known:
                self._known[study] = Known(StudyVersion(self.database, study))
            self._known.move_to_end(study)
            if len(self._known) > STUDIES:
                self._known.popitem(last=False)
            known = self._known[study]
        with known.lock:
            if self.fresh(study) is None:
                began, known.stamp = time.monotonic(), self.stamp.now()
                known.text = known.version.read()
                known.read = began
            return known.text

    def forget(self, study: str) -> None:
        """Something was just written: the next one who asks reads."""
        if (known := self._known.get(study)) is not None:
            known.read = -math.inf


class Answer(NamedTuple):
    """A whole answer."""

    media: str
    body: bytes


class Answers:
    """The latest short answers by their ETags."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Answer] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def get(self, tag: str) -> Answer | None:
        """The answer with that tag, if it is remembered."""
        with self._lock:
            if tag in self._known:
                self._known.move_to_end(tag)
            return self._known.get(tag)

    def put(self, tag: str, answer: Answer) -> None:
        """Remembers an answer, and forgets the oldest ones if there is no room."""
        with self._lock:
            if tag in self._known:
                return
            self._known[tag] = answer
            self._size += len(answer.body)
            while self._size > ROOM:
                self._size -= len(self._known.popitem(last=False)[1].body)


def tag_of(request: Request, *parts: str) -> str:
    """The ETag of what a request gets, from a version and the form."""
    path, query = request.scope["path"], request.scope["query_string"].decode("latin-1")
    asked = "\n".join([path, query, *parts])
    return f'"{hashlib.sha256(asked.encode()).hexdigest()[:24]}"'


def unchanged(request: Request, tag: str) -> Response | None:
    """The 304 for a client that has this version already."""
    given = request.headers.get("if-none-match", "")
    known = {part.strip().removeprefix("W/") for part in given.split(",")}
    if tag in known or "*" in known:
        return Response(status_code=304, headers={**CACHING, "ETag": tag})
    return None


def headers(tag: str) -> Mapping[str, str]:
    """The headers of an answer with a tag."""
    return {**CACHING, "ETag": tag}
