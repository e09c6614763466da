"""What one worker says while it trains a trial: its warnings, its log records, its own error.

Ray keeps the output of a worker on the worker's node, by process and without the trial.  These lines go
to the board as reports of kind `worker`, so they are with the trial in the log of its study.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ucd_ray.errors import UcdRayError

MOST = 200  # lines of one worker about one trial
LONGEST = 4000  # characters of one line: the end of a traceback
WARNINGS = "py.warnings"  # the logger of Python's warnings

Send = Callable[[dict[str, Any]], None]


class WorkerLog(logging.Handler):
    """While open, sends this process' warnings and log records of that level and above.

    send: takes a report; must not wait
    """

    def __init__(self, send: Send, *, rank: int, node: str) -> None:
        super().__init__(logging.WARNING)
        self.send, self.rank, self.node = send, rank, node
        self._said = 0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if (cuda := _cuda()) is not None:
            cuda.reset_peak_memory_stats()
        logging.captureWarnings(True)
        logging.getLogger().addHandler(self)
        self.say(f"begins in process {os.getpid()}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        logging.getLogger().removeHandler(self)
        logging.captureWarnings(False)

    def emit(self, record: logging.LogRecord) -> None:
        """One log record of this process."""
        if record.name == WARNINGS:  # file:line: Category: text, then the line of code
            text = record.getMessage().strip().splitlines()[0]
        else:
            text = f"{record.name}: {record.getMessage()}"
        self.say(text, record.levelname.lower())

    def say(self, text: str, level: str = "info") -> None:
        """One line; the last that is sent says that no more are."""
        self._said += 1
        if self._said > MOST:
            return
        if self._said == MOST:
            text, level = f"said {MOST} lines about this trial; no more of them are kept", "warning"
        report = {"kind": "worker", "rank": self.rank, "node": self.node, "level": level}
        self.send({**report, "text": text[-LONGEST:]})

    def ends(self, how: str, error: BaseException | None = None) -> None:
        """The last line: how the trial ended here, after how long, and the peaks of memory."""
        if error is not None:
            trace = traceback.format_exception(error)
            known = isinstance(error, UcdRayError)  # says all itself
            self.say(str(error) if known else "".join(trace).strip(), "error")
        seconds = time.monotonic() - self._began
        self.say(f"{how} after {seconds:.1f} s; {_peak()}")


def _peak() -> str:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    host = f"at most {peak / 1e9:.2f} GB of memory since the process began"
    if (cuda := _cuda()) is None:
        return host
    return f"at most {cuda.max_memory_allocated() / 1e9:.2f} GB of its GPU; {host}"


def _cuda() -> Any:
    """PyTorch's module for the GPU that this process uses; None: it uses none."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
