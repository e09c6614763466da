"""What a check finds, and how checks are run: side by side, each for some seconds, none raises."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from ucd_ray.errors import UcdRayError

LIMIT_S = 15.0  # for the slowest check: torch takes its time to load


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    state: Literal["ok", "note", "wrong"]
    found: str
    mend: str = ""  # one line; empty if there is nothing to mend

    def content(self) -> dict[str, str]:
        """As JSON."""
        return asdict(self)


Check = Callable[[], Iterable[Finding]]


def examine(checks: Mapping[str, Check], *, limit_s: float = LIMIT_S) -> list[Finding]:
    """What all checks find, in their order.  One that does not end is a finding itself."""
    found: dict[str, list[Finding]] = {}

    def run(name: str, check: Check) -> None:
        found[name] = _outcome(name, check)

    threads = [
        threading.Thread(target=run, args=item, name=item[0], daemon=True)
        for item in checks.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    silent = "what it reads does not answer: look at the disk or network that it is about"
    return [
        finding
        for name in checks
        for finding in found.get(
            name, [Finding(name, "wrong", f"not done within {limit_s:g} s", silent)]
        )
    ]


def _outcome(name: str, check: Check) -> list[Finding]:
    try:
        return list(check())
    except UcdRayError as error:  # its sentence says what would work, after a semicolon
        said, _, mend = str(error).partition("; ")
        return [Finding(name, "wrong", said, mend or "mend what the message names")]
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        return [
            Finding(name, "wrong", f"{type(error).__name__}: {told}", "see what the message names")
        ]
