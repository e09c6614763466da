"""Storage of finished steps, found again by everything that determined them, and of open trials.

A step's key is a mapping; its digest names the entry, the entry carries the key's full text.  Entries
are complete or absent: `entry.json` is written last and holds the digests of the weights and of itself.
All files go through `pyarrow.fs`, so the store may be a local directory or a URL such as
`s3://bucket/prefix`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow import fs

from ucd_ray.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1  # raise when the meaning of a stored step changes
DIGEST_BYTES = hashlib.sha256().digest_size


class Store:
    """Files under one root, local or remote.  Writes are atomic."""

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        self.url = text
        try:
            if "://" in text:
                self.fs, self.root = fs.FileSystem.from_uri(text)
            else:
                self.fs, self.root = fs.LocalFileSystem(), str(Path(text).absolute())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot open storage '{text}': {error}") from None

    def path(self, *parts: str) -> str:
        """Full path of a file in the file system."""
        return "/".join((self.root, *parts))

    def read(self, *parts: str) -> bytes | None:
        """The content of a file, None if there is none.  Raises CheckpointError."""
        path = self.path(*parts)
        try:
            if self.fs.get_file_info(path).type != fs.FileType.File:
                return None
            with self.fs.open_input_file(path) as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"cannot read '{path}': {error}") from None

    def write(self, content: bytes, *parts: str) -> None:
        """Writes a file whole or not at all.  Raises CheckpointError."""
        path = self.path(*parts)
        local = isinstance(self.fs, fs.LocalFileSystem)
        target = f"{path}.{uuid.uuid4().hex[:8]}.tmp" if local else path
        try:
            self.fs.create_dir(path.rsplit("/", 1)[0], recursive=True)
            with self.fs.open_output_stream(target) as file:
                file.write(content)
            if local:
                os.replace(target, path)
        except OSError as error:
            if local:
                with contextlib.suppress(OSError):
                    Path(target).unlink()
            raise CheckpointError(f"cannot write '{path}': {error}") from None

    def delete(self, *parts: str) -> None:
        """Removes a file or directory if it exists."""
        path = self.path(*parts)
        try:
            kind = self.fs.get_file_info(path).type
            if kind == fs.FileType.Directory:
                self.fs.delete_dir(path)
            elif kind == fs.FileType.File:
                self.fs.delete_file(path)
        except OSError as error:
            raise CheckpointError(f"cannot delete '{path}': {error}") from None


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
    return hashlib.sha256(key_text(key).encode()).hexdigest()[:32]


class StepCache:
    """Finished steps by key."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether the step of `key` is stored.  Raises CheckpointError if its entry is damaged."""
        return self._entry(key) is not None

    def result(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was measured at the step of `key`, without its weights; None if it is not stored."""
        entry = self._entry(key)
        return None if entry is None else entry["result"]

    def get(self, key: Mapping[str, Any]) -> StepEntry | None:
        """The stored step, None if there is none.

        Raises CheckpointError if the entry's key or the weights' digest differ from what was stored.
        """
        from safetensors.torch import load

        entry = self._entry(key)
        if entry is None:
            return None
        digest = entry["weights_sha256"]
        weights = self.store.read(key_digest(key), f"{digest}.safetensors")
        if weights is None or hashlib.sha256(weights).hexdigest() != digest:
            raise self._damaged(key, "its weights are absent or not those that were stored")
        return StepEntry(load(weights), entry["result"])

    def put(
        self, key: Mapping[str, Any], weights: Mapping[str, Tensor], result: Mapping[str, Any]
    ) -> None:
        """Stores a finished step.

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

    def _entry(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        content = self.store.read(key_digest(key), "entry.json")
        if content is None:
            return None
        try:
            stored = json.loads(content)
            entry: dict[str, Any] = stored["entry"]
            whole = stored["sha256"] == _entry_digest(entry)
        except (ValueError, KeyError, TypeError):
            raise self._damaged(key, "entry.json is not readable") from None
        if not whole:
            raise self._damaged(key, "entry.json is not what was stored")
        if entry["key"] != key_text(key):
            raise self._damaged(key, "it was stored under another key")
        return entry

    def _damaged(self, key: Mapping[str, Any], what: str) -> CheckpointError:
        path = self.store.path(key_digest(key))
        return CheckpointError(
            f"step cache entry '{path}' is damaged: {what}; delete it to retrain"
        )


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
