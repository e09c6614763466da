"""One trainer per step: who wants to train a step that is not stored takes a lease on its digest.

A lease is a file `leases/<digest>.<generation>` that its holder renews.  Who finds the newest
generation dead creates the next one, so no two can take over one lease: where a file can be created
exclusively the second fails, in an object store each taker adds time and id to the name, waits a
moment and the smallest wins.  What is left - a partition, a process that was asleep - trains a step
twice and stores it once; it never changes a result.
"""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass

from ucd_ray.presence import Heart, Owner
from ucd_ray.store import Store

FOLDER = "leases"
NAME = re.compile(r"(?P<digest>[0-9a-f]+)\.(?P<generation>[0-9]{8})(\..*)?")
BEAT_S = 5.0  # between renewals
SILENT_S = 30.0  # without a renewal, as the one who waits sees it: the holder is dead
OLD_S = 300.0  # the same by two clocks, which may differ
STALL_S = 4 * 3600.0  # without an epoch: the holder hangs
SETTLE_S = 1.0  # until two takers see each other in an object store


@dataclass
class Lease:
    """The right to train a step; its file is renewed until `release`."""

    heart: Heart

    def worked(self) -> None:
        """Notes that training went on: a lease whose holder hangs is not renewed for ever."""
        self.heart.worked()

    def release(self) -> None:
        """Gives the lease back."""
        self.heart.stop()


@dataclass
class Claim:
    """A lease as others see it."""

    name: str
    owner: Owner | None  # None: its file could not be read
    modified: float
    seen: float  # when it was last seen to be renewed

    def dead(self, taker: str | None) -> bool:
        """Whether nobody renews it; `taker` may have the lease of its own name that a crash left."""
        lives = self.owner.lives() if self.owner else None
        if lives is False or time.monotonic() - self.seen > SILENT_S:
            return True
        if time.time() - self.modified > OLD_S:
            return True
        return lives is None and self.owner is not None and self.owner.name == taker


class Leases:
    """The leases in a store, as one run or study sees them."""

    def __init__(self, store: Store, name: str | None = None) -> None:
        self.store, self.name = store, name
        self._claims: dict[str, Claim] = {}  # by digest: the newest one that was seen

    def take(self, digest: str) -> Lease | None:
        """The lease on a step, None if another has it.  Raises CheckpointError."""
        assert self.name, "only a run or study with a name takes leases"
        before = self._names(digest)
        claim = self._claim(digest, before)
        if claim is not None and not claim.dead(self.name):
            return None
        content = Owner.here(self.name).encode()
        mine = self._create(content, digest, _generation(claim.name) + 1 if claim else 1)
        if mine is None:
            return None
        # Seen again: others may have taken and left what was dead or absent before.
        now = self._names(digest)
        changed = any(_older(name, mine) and now[name] != before.get(name) for name in now)
        if _leading(now) != mine or changed:
            self.store.delete(FOLDER, mine)
            return None
        for name in before:
            self.store.delete(FOLDER, name)
        heart = Heart(self.store, FOLDER, mine, content=content, every_s=BEAT_S, stall_s=STALL_S)
        return Lease(heart)

    def _create(self, content: bytes, digest: str, generation: int) -> str | None:
        """Claims a generation; the name of the claim's file, None if another has the generation."""
        name = f"{digest}.{generation:08d}"
        if self.store.local:
            return name if self.store.create(content, FOLDER, name) else None
        name += f".{time.time():017.6f}-{uuid.uuid4().hex[:8]}"
        self.store.write(content, FOLDER, name)
        time.sleep(SETTLE_S)
        return name

    def holder(self, digest: str) -> str | None:
        """Who trains a step now, None if nobody does.  Raises CheckpointError."""
        claim = self._claim(digest, self._names(digest))
        return None if claim is None or claim.dead(None) else str(claim.owner or "another run")

    def holders(self) -> dict[str, str]:
        """Who trains now, by the digest of the step."""
        found = [NAME.fullmatch(file.name) for file in self.store.files(FOLDER)]
        digests = {match["digest"] for match in found if match}
        by_digest = {digest: self.holder(digest) for digest in digests}
        return {digest: who for digest, who in by_digest.items() if who is not None}

    def _names(self, digest: str) -> dict[str, float]:
        """When each claim on a step was last renewed, by name."""
        return {
            file.name: file.modified
            for file in self.store.files(FOLDER)
            if (match := NAME.fullmatch(file.name)) and match["digest"] == digest
        }

    def _claim(self, digest: str, names: dict[str, float]) -> Claim | None:
        """The newest claim; the one seen before, if it is the same, with the time of its last change."""
        name = _leading(names)
        if name is None:
            self._claims.pop(digest, None)
            return None
        claim = self._claims.get(digest)
        same = claim is not None and (claim.name, claim.modified) == (name, names[name])
        if (
            claim is None or not same or claim.owner is None
        ):  # the next of its name may be another's
            owner = Owner.parse(self.store.read(FOLDER, name))
            seen = claim.seen if claim is not None and same else time.monotonic()
            claim = Claim(name, owner, names[name], seen)
        self._claims[digest] = claim
        return claim


def _generation(name: str) -> int:
    match = NAME.fullmatch(name)
    assert match, "only such names were listed"
    return int(match["generation"])


def _older(name: str, other: str) -> bool:
    return _generation(name) < _generation(other)


def _leading(names: dict[str, float]) -> str | None:
    """The claim that counts: of the newest generation, the smallest time and id."""
    return min(names, key=lambda name: (-_generation(name), name), default=None)
