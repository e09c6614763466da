"""Room in the step cache: what is stored, what running work needs, what was used least recently.

Runs and studies hold the steps they need: a file in `holds/` that names them and is renewed.  Steps
that are held or being trained are never removed.  An entry goes with its `entry.json` first, so it is
absent or complete at any moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ucd_ray.errors import CheckpointError, ConfigError
from ucd_ray.presence import Heart, Owner
from ucd_ray.step_leases import FOLDER as LEASES
from ucd_ray.step_leases import Leases
from ucd_ray.store import Listed, Store

LIMIT = "UCD_RAY_CACHE_LIMIT"
HOLDS = "holds"
ENTRY = "entry.json"
USED = "used"
USED_EVERY_S = 300.0  # between notes that an entry was used
BEAT_S = 30.0  # between renewals of a hold
STALE_S = 600.0  # without a renewal, by two clocks, which may differ
LEFTOVER_S = 3600.0  # a file that no entry names may be of one that is being written, until then
DIGEST = re.compile(r"[0-9a-f]{32}")
UNITS = {"": 1, "B": 1}
UNITS |= {f"{unit}B": 1000**power for power, unit in enumerate("KMGT", start=1)}
UNITS |= {f"{unit}IB": 1024**power for power, unit in enumerate("KMGT", start=1)}


def parse_size(text: str, name: str = LIMIT) -> int:
    """Bytes of a text such as `50GB` or `1.5 TiB`.  Raises ConfigError, which names `name`."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise ConfigError(
            f"{name} ('{text}') must be a size such as 500MB, 50GB, 1.5TB or 40GiB; "
            "leave it out for no limit"
        )
    return int(float(match[1]) * UNITS[match[2].upper()])


def cache_limit() -> int | None:
    """The bytes that the step cache may take, None for no limit.  Raises ConfigError."""
    text = os.environ.get(LIMIT)
    return parse_size(text) if text else None


@dataclass(frozen=True)
class Stored:
    """The files of one digest."""

    digest: str
    files: list[Listed] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether there is an entry; files without one are left over or being written."""
        return any(file.name == ENTRY for file in self.files)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.size for file in self.files)

    @property
    def created(self) -> float:
        """When the entry was stored."""
        return max((f.modified for f in self.files if f.name != USED), default=0.0)

    @property
    def used(self) -> float:
        """When the entry was stored or last used, to a few minutes."""
        return max(file.modified for file in self.files)


def stored_steps(store: Store) -> list[Stored]:
    """What a store holds, the least recently used first."""
    found: dict[str, Stored] = {}
    for file in store.files():
        digest, _, rest = file.path.partition("/")
        if DIGEST.fullmatch(digest) and rest:
            found.setdefault(digest, Stored(digest)).files.append(file)
    return sorted(found.values(), key=lambda stored: stored.used)


def note_use(store: Store, digest: str) -> None:
    """Notes that an entry is used, unless that was noted minutes ago."""
    with contextlib.suppress(CheckpointError):  # such as a cache that may only be read
        noted = store.modified(digest, USED)
        if noted is None or time.time() - noted > USED_EVERY_S:
            store.write(b"", digest, USED)


@contextlib.contextmanager
def hold(store: Store, digests: Iterable[str], name: str) -> Iterator[None]:
    """Keeps steps, stored or not, from being removed while a run or study needs them."""
    content = Owner.here(name).encode(digests=sorted(set(digests)))
    file = uuid.uuid4().hex
    store.write(content, HOLDS, file)
    heart = Heart(store, HOLDS, file, content=content, every_s=BEAT_S)
    try:
        yield
    finally:
        heart.stop()


def in_use(store: Store) -> dict[str, list[str]]:
    """Who holds or trains a step, by digest."""
    users: dict[str, list[str]] = {}
    for digest, who in Leases(store).holders().items():
        users.setdefault(digest, []).append(f"{who} trains it")
    for file in store.files(HOLDS):
        content = store.read(HOLDS, file.path)
        owner = Owner.parse(content)
        stale = time.time() - file.modified > STALE_S
        if content is None or owner is None or stale or owner.lives() is False:
            continue
        for digest in json.loads(content)["digests"]:
            users.setdefault(digest, []).append(str(owner))
    return users


@dataclass
class Removed:
    """What a removal freed, or would."""

    entries: list[Stored] = field(default_factory=list)
    leftovers: list[tuple[str, Listed]] = field(default_factory=list)  # folder below the root, file
    kept: int = 0  # entries over the limit or age that are in use

    @property
    def size(self) -> int:
        """In bytes."""
        parts = (sum(e.size for e in self.entries), sum(f.size for _, f in self.leftovers))
        return sum(parts)


def evict(
    store: Store,
    *,
    limit: int | None = None,
    unused_s: float | None = None,
    keep: str | None = None,
    dry_run: bool = False,
) -> Removed:
    """Removes the least recently used entries until the rest fits, and all unused for long.

    limit: bytes; unused_s: seconds; keep: a digest to spare; what is in use is spared anyway
    Returns what was removed, or would be.  Raises CheckpointError.
    """
    removed, now = Removed(), time.time()
    steps = stored_steps(store)
    size = sum(stored.size for stored in steps)
    for stored in steps:
        too_old = unused_s is not None and now - stored.used > unused_s
        too_much = limit is not None and size > limit
        if not stored.complete or stored.digest == keep or not (too_old or too_much):
            continue
        if stored.digest in in_use(store):  # asked anew: a run may begin at any moment
            removed.kept += 1
            continue
        if not dry_run:
            delete_step(store, stored)
        removed.entries.append(stored)
        size -= stored.size
    return removed


def delete_step(store: Store, stored: Stored) -> None:
    """Removes an entry; only the files that were seen, as it may be stored anew meanwhile."""
    store.delete(stored.digest, ENTRY)
    for file in stored.files:
        if file.name != ENTRY:
            store.delete(stored.digest, file.name)
    _delete_empty(store, stored.digest)


def _delete_empty(store: Store, folder: str) -> None:
    if store.local:
        with contextlib.suppress(OSError):  # not empty: stored anew
            os.rmdir(store.path(folder))


def remove_leftovers(store: Store, *, dry_run: bool = False) -> list[tuple[str, Listed]]:
    """Removes old files that belong to nothing.  Returns them with their folders.

    Those are files of broken writes, weights that no entry names, and holds and leases of the dead.
    """
    now = time.time()
    found = []
    for stored in stored_steps(store):
        found += [(stored.digest, file) for file in _unnamed(store, stored)]
    found += [(folder, file) for folder in (HOLDS, LEASES) for file in store.files(folder)]
    old = [(folder, file) for folder, file in found if now - file.modified > LEFTOVER_S]
    if not dry_run:
        for folder, file in old:
            store.delete(folder, file.name)
            if DIGEST.fullmatch(folder):
                _delete_empty(store, folder)
    return old


def _unnamed(store: Store, stored: Stored) -> list[Listed]:
    """The files that no entry names; none if the entry is damaged, which is told where it is used."""
    if not stored.complete:
        return stored.files
    try:
        content = store.read(stored.digest, ENTRY)
        weights = f"{json.loads(content or b'')['entry']['weights_sha256']}.safetensors"
    except (ValueError, KeyError, TypeError):
        return []
    return [file for file in stored.files if file.name not in (ENTRY, USED, weights)]
