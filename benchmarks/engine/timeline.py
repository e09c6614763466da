"""When the trials of a study started and ended, one at a time."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks.engine.memory import Memory


@dataclass
class Timeline:
    """First and last batch of each trial, seconds of the whole study, its memory."""

    trials: int
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    seconds: float = 0.0
    memory: Memory = field(default_factory=Memory)

    def gaps(self) -> list[float]:
        """Seconds from the end of each trial to the start of the next."""
        return [start - end for start, end in zip(self.starts[1:], self.ends, strict=False)]

    def gap(self) -> float:
        """Their median."""
        return statistics.median(self.gaps())

    def seconds_of(self, trials: int) -> float:
        """Seconds of a study of so many trials: more trials than there were add their mean period."""
        period = (self.starts[-1] - self.starts[0]) / (len(self.starts) - 1)
        return self.seconds + (trials - self.trials) * period

    def megabytes(self, *parts: str) -> float:
        """The sum of the parts' peaks."""
        return sum(self.memory.peak[part] for part in parts) / 1e6


def our_timeline(address: str, name: str, trials: int, spec: Any) -> Timeline:
    """Runs a study of ours; its log has the times."""
    import time

    from ucd_ray import run_study
    from ucd_ray.tune.database import Database
    from ucd_ray.tune.events import events
    from ucd_ray.tune.places import places

    line = Timeline(trials)
    with Memory() as line.memory:
        started = time.monotonic()
        run_study(spec, address=address)
        line.seconds = time.monotonic() - started
    for row in events(Database(places().database), name):
        if row.text.startswith("trial") and "has its workers" in row.text:
            line.starts.append(row.time)
        if row.text.startswith("trial") and "step 1 done" in row.text:
            line.ends.append(row.time)
    return line
