"""Why a trial waits: a sentence for people with a code for programs."""

from __future__ import annotations

from typing import Self

NEEDS_CPUS, NEEDS_GPUS = "NEEDS_CPUS", "NEEDS_GPUS"
NEEDS_NODE = "NEEDS_NODE"  # enough in all, but not on one node for each worker
TURN = "TURN"  # another study has waited longer
BUSY = "GANGS_BUSY"  # the study's own gangs have other trials
PAUSED = "PAUSED"
STARTING = "WORKERS_START"  # placed, but its workers do not come up
STEP = "STEP"  # somebody else trains a step that it needs


class Reason(str):
    """A sentence that knows its code."""

    code: str

    def __new__(cls, code: str, text: str) -> Self:
        """The sentence `text` under `code`."""
        reason = super().__new__(cls, text)
        reason.code = code
        return reason

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # for copies, pickles
        return self.code, str(self)


def code_of(reason: str | None) -> str | None:
    """The code of a reason; None for a sentence without one."""
    return getattr(reason, "code", None)
