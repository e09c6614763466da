"""What a record holds of a row: its metrics over seeds, and how it differs from another row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ucd_ray.tune.statistics import Comparison, Spread, paired, spread

Record = dict[str, Any]
TUNED, PUBLISHED = "mib+ucd, tuned", "mib+ucd, published"
SHOWN = ("miou_base", "miou_added", "miou_all", "forgetting")


@dataclass(frozen=True)
class Difference:
    """One row minus another over the seeds that both have; no test of a single seed."""

    mean: float
    count: int
    test: Comparison | None

    @property
    def is_distinguishable(self) -> bool:
        """Whether it is more than chance explains; never of a single seed."""
        return self.test is not None and self.test.is_distinguishable

    @property
    def doubt(self) -> str:
        """What a sentence must add; empty if the difference is more than chance explains."""
        if self.test is None:
            return ", one seed"
        return "" if self.is_distinguishable else ", not distinguishable from 0"

    @property
    def half(self) -> float:
        """Half of the interval: the smallest mean difference that would have been told from chance."""
        assert self.test is not None
        return (self.test.high - self.test.low) / 2

    @property
    def p(self) -> str:
        """The p of the paired test in words; empty without one."""
        if self.test is None:
            return ""
        return "p < 0.001" if self.test.p < 0.001 else f"p = {self.test.p:.3f}"

    def __str__(self) -> str:
        if self.test is None:
            return f"{self.mean:+.1f}"
        return f"{self.mean:+.1f} [{self.test.low:+.1f}, {self.test.high:+.1f}]"


def by_seed(record: Record, row: str, metric: str, step: int = -1) -> dict[int, float]:
    """Seed -> a metric of a row after a step; seeds without a value are left out."""
    runs = (run for run in record["runs"] if run["row"] == row)
    found = {run["seed"]: run["steps"][step][metric] for run in runs}
    return {seed: value for seed, value in found.items() if value is not None}


def of_row(record: Record, row: str, metric: str, step: int = -1) -> Spread | None:
    """A row's metric over its seeds; None: it has none yet."""
    values = by_seed(record, row, metric, step)
    return spread(list(values.values())) if values else None


def difference(record: Record, row: str, other: str, metric: str) -> Difference | None:
    """Row minus other; None: no seed has both."""
    mine, theirs = by_seed(record, row, metric), by_seed(record, other, metric)
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return None
    first, second = [mine[seed] for seed in seeds], [theirs[seed] for seed in seeds]
    test = paired(first, second) if len(seeds) > 1 else None
    return Difference((sum(first) - sum(second)) / len(seeds), len(seeds), test)


def kept(record: Record, row: str) -> Spread | None:
    """Percent of the base step's mIoU that its classes still have after the last step."""
    before, after = by_seed(record, row, "miou_base", 0), by_seed(record, row, "miou_base")
    shares = [100 * after[seed] / before[seed] for seed in sorted(after) if before.get(seed)]
    return spread(shares) if shares else None


def complete_trials(record: Record) -> list[dict[str, Any]]:
    """The trials of the study that were trained to their end."""
    return [trial for trial in record["study"]["trials"] if trial["state"] == "COMPLETE"]


def size(record: Record) -> tuple[int, int]:
    """Classes of step 0, and of each later step."""
    _, base, later = record["scenario"].split("-")
    return int(base), int(later)


def groups(record: Record) -> tuple[str, str]:
    """Names of the classes of step 0 and of all later ones."""
    base, later = size(record)
    last = base + later * (num_steps(record) - 1)
    return f"classes 1-{base}", f"classes {base + 1}-{last}"


def num_steps(record: Record) -> int:
    """Steps of the scenario, step 0 included."""
    return int(record["steps"])
