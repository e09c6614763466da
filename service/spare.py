"""What a process that only serves does without, so that it stays small."""

from __future__ import annotations

import ctypes
import sys
from importlib.abc import MetaPathFinder

UNUSED = {"pandas", "pygments"}
"""Packages that others import if they are there, and that the service never uses.

PyArrow imports pandas when it is first given a list: 29 MB.  Mako, which Alembic writes its files with,
imports pygments: 5 MB.
"""
M_ARENA_MAX = -8  # of glibc's malloc.h


def spare_memory() -> None:
    """Before anything else is imported, and before any thread is started."""
    sys.meta_path.insert(0, _Absent())
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_ARENA_MAX, 1)  # else what one thread gives back is not another's to use

    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())  # the others keep 8 MB that they were given back


class _Absent(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> None:
        if name in UNUSED:
            raise ModuleNotFoundError(f"the service does without {name}", name=name)
