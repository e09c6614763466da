"""Files under one root: a local directory, a network drive or an object store, through `pyarrow.fs`."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from ucd_ray.errors import CheckpointError

# They have no directories, so none is made; and no call that creates a file only if it is absent.
OBJECT_STORES = ("s3", "gcs", "abfs")
# A password may hold any character; the colon tells it from an '@' in a path.
USER = re.compile(r"(?<=://)(?:[^\s'\"]*:[^\s'\"]*|[^\s'\"?/@]*)@")
SECRET = re.compile(r"(?i)([?&][^=&\s'\"]*(?:key|secret|token|password|sig)[^=&\s'\"]*=)[^&\s'\"]*")


def masked(text: str) -> str:
    """A message or URL without the credentials of the URLs in it."""
    return SECRET.sub(r"\1***", USER.sub("***@", text))


@dataclass(frozen=True)
class Listed:
    """A file that a listing found."""

    path: str  # below the listed directory
    size: int  # bytes
    modified: float  # seconds since 1970, by the clock of the store

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]


class Store:
    """Files under one root, local or remote.  Writes are atomic."""

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        self.url = text  # with credentials, if there are any: not for messages
        try:
            if "://" in text:
                self.fs, self.root = fs.FileSystem.from_uri(text)
            else:
                self.fs, self.root = fs.LocalFileSystem(), str(Path(text).absolute())
        except (OSError, ValueError) as error:
            raise CheckpointError(masked(f"cannot open storage '{text}': {error}")) from None

    @property
    def local(self) -> bool:
        """Whether files lie in directories of this machine, network drives included."""
        return isinstance(self.fs, fs.LocalFileSystem)

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
            raise _failed("read", path, error) from None

    def write(self, content: bytes, *parts: str) -> None:
        """Writes a file whole or not at all.  Raises CheckpointError."""
        path = self.path(*parts)
        target = f"{path}.{uuid.uuid4().hex[:8]}.tmp" if self.local else path
        try:
            self._make_parent(path)
            with self.fs.open_output_stream(target) as file:
                file.write(content)
            if self.local:
                os.replace(target, path)
        except OSError as error:
            if self.local:
                with contextlib.suppress(OSError):
                    Path(target).unlink()
            raise _failed("write", path, error) from None

    def create(self, content: bytes, *parts: str) -> bool:
        """Makes a file in a local store unless it is there.  Returns whether it did."""
        assert self.local, "only a file system can create a file exclusively"
        path = self.path(*parts)
        try:
            self._make_parent(path)
            with open(path, "xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        except OSError as error:
            raise _failed("write", path, error) from None
        return True

    def touch(self, *parts: str) -> bool:
        """Makes a file as if just written.  Returns False if it is gone.  Raises CheckpointError."""
        path = self.path(*parts)
        if self.local:
            try:
                os.utime(path)
            except FileNotFoundError:
                return False
            except OSError as error:
                raise _failed("write", path, error) from None
            return True
        content = self.read(*parts)
        if content is not None:
            self.write(content, *parts)
        return content is not None

    def modified(self, *parts: str) -> float | None:
        """When a file was last written, in seconds since 1970; None if there is none."""
        path = self.path(*parts)
        try:
            info = self.fs.get_file_info(path)
        except OSError as error:
            raise _failed("read", path, error) from None
        return info.mtime_ns / 1e9 if info.type == fs.FileType.File else None

    def files(self, *parts: str) -> list[Listed]:
        """All files below a directory, by path.  Raises CheckpointError."""
        path = self.path(*parts)
        try:
            found = self.fs.get_file_info(
                fs.FileSelector(path, recursive=True, allow_not_found=True)
            )
        except OSError as error:
            raise _failed("list", path, error) from None
        listed = (
            Listed(info.path[len(path) :].lstrip("/"), info.size, info.mtime_ns / 1e9)
            for info in found
            if info.type == fs.FileType.File and info.mtime_ns is not None
        )
        return sorted(listed, key=lambda file: file.path)

    def delete(self, *parts: str) -> None:
        """Removes a file or directory if it exists.  Raises CheckpointError."""
        path = self.path(*parts)
        try:
            kind = self.fs.get_file_info(path).type
            if kind == fs.FileType.Directory:
                self.fs.delete_dir(path)
            elif kind == fs.FileType.File:
                self.fs.delete_file(path)
        except FileNotFoundError:  # another process was faster
            return
        except OSError as error:
            raise _failed("delete", path, error) from None

    def _make_parent(self, path: str) -> None:
        if self.fs.type_name not in OBJECT_STORES:
            self.fs.create_dir(path.rsplit("/", 1)[0], recursive=True)


def _failed(what: str, path: str, error: OSError) -> CheckpointError:
    return CheckpointError(masked(f"cannot {what} '{path}': {error}"))
