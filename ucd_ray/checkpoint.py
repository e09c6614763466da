"""Storage of finished steps, found again by everything that determined them, and of open trials.

A step's key is a mapping; its digest names the entry, the entry carries the key's full text.  Entries
are complete or absent: `entry.json` is written last and holds the digests of the weights and of itself.
The store may be a local directory or a URL such as `s3://bucket/prefix`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ucd_ray import step_eviction
from ucd_ray.errors import CheckpointError
from ucd_ray.step_leases import Lease, Leases
from ucd_ray.store import Store

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DamagedEntry",
    "StepCache",
    "StepEntry",
    "Store",
    "TrialStore",
    "key_digest",
    "key_text",
]

SCHEMA_VERSION = 1  # raise when the meaning of a stored step changes
DIGEST_BYTES = hashlib.sha256().digest_size


class DamagedEntry(CheckpointError):  # noqa: N818
    """An entry of the step cache is not what was stored, or lies under another key."""

    what: str  # the damage, without the entry's name


@dataclass(frozen=True)
class StepEntry:
    """A stored step: network weights and what was measured."""

    weights: dict[str, Tensor]
    result: dict[str, Any]


def key_text(key: Mapping[str, Any]) -> str:
    """The canonical text of a key; equal keys have equal text."""
    return json.dumps({"schema": SCHEMA_VERSION, **key}, sort_keys=True, separators=(",", ":"))


def key_digest(key: Mapping[str, Any]) -> str:
    """The name of a key's entry."""
    return _text_digest(key_text(key))


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class StepCache:
    """Finished steps by key, as one run or study sees them.

    name: of the run or study, for others who wait for a step that it trains
    """

    def __init__(self, store: Store, name: str | None = None) -> None:
        self.store, self.name = store, name
        self.limit = step_eviction.cache_limit()
        self._leases = Leases(store, name)
        self._entries: dict[str, dict[str, Any]] = {}  # read and found whole; they never change

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether the step of `key` is stored.  Raises CheckpointError if its entry is damaged."""
        return self._entry(key) is not None

    def result(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was measured at the step of `key`, without its weights; None if it is not stored."""
        entry = self._entry(key)
        if entry is None:
            return None
        step_eviction.note_use(self.store, key_digest(key))
        return entry["result"]

    def get(self, key: Mapping[str, Any]) -> StepEntry | None:
        """The stored step, None if there is none.

        Raises CheckpointError if the entry's key or the weights' digest differ from what was stored.
        """
        from safetensors.torch import load

        entry = self._entry(key)
        if entry is None:
            return None
        weights = read_weights(self.store, key_digest(key), entry)
        if weights is None:
            self._entries.pop(key_digest(key))
            return None
        step_eviction.note_use(self.store, key_digest(key))
        return StepEntry(load(weights), entry["result"])

    def put(
        self, key: Mapping[str, Any], weights: Mapping[str, Tensor], result: Mapping[str, Any]
    ) -> None:
        """Stores a finished step, then removes others if the limit is exceeded.

        The weights' file is named by its content: of two trials that finish the same step at once,
        each entry finds its own.
        """
        from safetensors.torch import save

        content = save({name: value.cpu().contiguous() for name, value in weights.items()})
        entry = {
            "key": key_text(key),
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "result": dict(result),
        }
        if self.has(key):
            return
        digest = key_digest(key)
        self.store.write(content, digest, f"{entry['weights_sha256']}.safetensors")
        stored = {"entry": entry, "sha256": _entry_digest(entry)}
        self.store.write(json.dumps(stored, indent=1).encode(), digest, "entry.json")
        if self.limit is not None:
            with contextlib.suppress(CheckpointError):  # the step is stored, whatever else fails
                step_eviction.evict(self.store, limit=self.limit, keep=digest)

    def lease(self, key: Mapping[str, Any]) -> Lease | None:
        """The right to train the step of `key`, None while another run has it.

        Look again whether the step is stored before training it.  Raises CheckpointError.
        """
        return self._leases.take(key_digest(key))

    def holder(self, key: Mapping[str, Any]) -> str | None:
        """Who trains the step of `key` now, None if nobody does.  Raises CheckpointError."""
        return self._leases.holder(key_digest(key))

    def hold(self, keys: Iterable[Mapping[str, Any]]) -> contextlib.AbstractContextManager[None]:
        """Keeps steps, stored or not, from being removed as long as the context is open."""
        assert self.name, "only a run or study with a name holds steps"
        return step_eviction.hold(self.store, map(key_digest, keys), self.name)

    def _entry(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        digest = key_digest(key)
        entry = self._entries.get(digest) or read_entry(self.store, digest)
        if entry is not None:
            self._entries[digest] = entry
        return entry


def read_entry(store: Store, digest: str) -> dict[str, Any] | None:
    """The entry of a digest, without its weights; None if there is none.

    Raises DamagedEntry if it is damaged, or stored under the digest of another key.
    """
    content = store.read(digest, "entry.json")
    if content is None:
        return None
    try:
        stored = json.loads(content)
        entry: dict[str, Any] = stored["entry"]
        whole = stored["sha256"] == _entry_digest(entry)
        own = _text_digest(entry["key"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged(store, digest, "entry.json is not readable") from None
    if not whole:
        raise damaged(store, digest, "entry.json is not what was stored")
    if own != digest:
        raise damaged(store, digest, "it was stored under another key")
    return entry


def read_weights(store: Store, digest: str, entry: Mapping[str, Any]) -> bytes | None:
    """The weights' file of an entry that was read; None if both were removed since.

    Raises DamagedEntry if it is absent or not what was stored.
    """
    content = store.read(digest, f"{entry['weights_sha256']}.safetensors")
    if content is None and read_entry(store, digest) is None:
        return None
    if content is None or hashlib.sha256(content).hexdigest() != entry["weights_sha256"]:
        raise damaged(store, digest, "its weights are absent or not those that were stored")
    return content


def damaged(store: Store, digest: str, what: str) -> DamagedEntry:
    """The error of an entry that must not be used."""
    error = DamagedEntry(
        f"step cache entry '{store.path(digest)}' is damaged: {what}; delete it to retrain "
        "(`ucd-ray cache verify --delete` deletes all that are damaged)"
    )
    error.what = what
    return error


def _entry_digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


class TrialStore:
    """The checkpoint of the open step of one trial: a digest, then what torch saved."""

    def __init__(self, store: Store, *name: str) -> None:
        self.store, self.name = store, name

    def load(self) -> dict[str, Any] | None:
        """The last state, None if there is none or it is damaged (the open step starts anew)."""
        import torch

        stored = self.store.read(*self.name, "state.pt") or b""
        digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
        if digest != hashlib.sha256(content).digest():  # torch.load alone takes a flipped byte
            return None
        state: dict[str, Any] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Replaces the state."""
        import torch

        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = buffer.getvalue()
        self.store.write(hashlib.sha256(content).digest() + content, *self.name, "state.pt")

    def clear(self) -> None:
        """Removes the state of a finished trial."""
        self.store.delete(*self.name)
