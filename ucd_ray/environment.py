"""What beside a recipe decides the last digits of a run: versions, code and machine."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("ucd-ray", "torch", "torchvision", "timm", "torchmetrics", "numpy", "pillow", "pyarrow"),
    *("ray", "optuna"),
)
GIT_S = 10.0  # for one answer of git


def environment(*, precision: str) -> dict[str, Any]:
    """What this process trains with.  It is stored with every step that is trained.

    `python`, `packages` (versions by name), `commit` (of this code; null where it is no checkout),
    `hardware` (`cpu`, `instructions`, `device`), `threads` of one worker, `precision`.  Needs torch.
    """
    import torch

    return {**_here(), "threads": torch.get_num_threads(), "precision": precision}


@cache
def _here() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "commit": commit(),
        "hardware": {
            "cpu": _cpu(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "device": torch.cuda.get_device_name() if cuda else "CPU",
        },
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit(package: Path = Path(__file__).parent) -> str | None:
    """The git commit of `package`, `+changes` after it if files differ; None if it is in no checkout.

    A checkout is one that has the package at its top: others merely hold an installed copy.
    """
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != package.resolve().parent:
        return None
    found = _git(package, "rev-parse", "HEAD")
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", str(package))
    return f"{found}+changes" if found and changed else found


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_S, check=True, env=_plain()
        )
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, or somebody else's
        return None
    return done.stdout.strip()


def _plain() -> dict[str, str]:
    """The environment without git's own variables, which would name another repository."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}


def _cpu() -> str:
    """The processor's name as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Computes with so many threads inside the block: sums are split by them.  None: as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two environments differ in, one clause each: `torch 2.10.0 there, 2.11.0 here`.

    Threads and precision are left out: the first can be had again, the second is in the step's key.
    """
    found = [
        _clause(name, then["packages"].get(name), now["packages"].get(name))
        for name in sorted({*then["packages"], *now["packages"]})
    ]
    found += [_clause(name, then.get(name), now.get(name)) for name in ("python", "commit")]
    kinds = sorted({*then["hardware"], *now["hardware"]})
    found += [
        _clause(kind, then["hardware"].get(kind), now["hardware"].get(kind)) for kind in kinds
    ]
    return [clause for clause in found if clause]


def _clause(name: str, then: str | None, now: str | None) -> str:
    if then == now:
        return ""
    return f"{name} {then or 'unknown'} there, {now or 'unknown'} here"
