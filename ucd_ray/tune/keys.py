"""What runs are called on the board, in stores and in logs.

The only run of trial 3 is called `3`; one of several replicates `3-r1`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TRIAL = "trial"  # user attribute of a row in the study of a replicate: the number of its trial


class Run(NamedTuple):
    """One of the runs of a trial that is measured several times."""

    number: int  # of the trial
    replicate: int

    def __str__(self) -> str:
        return f"{self.number}-r{self.replicate}"


def trial_of(key: str) -> int | None:
    """The number of the trial that a run belongs to; None: it is no trial's, such as `base`."""
    match = re.fullmatch(r"(\d+)(-r\d+)?", key)
    return int(match[1]) if match else None


def run_keys(number: int, replicates: int) -> list[str]:
    """What the runs of a trial are called."""
    if replicates == 1:
        return [str(number)]
    return [str(Run(number, k)) for k in range(replicates)]


def study_of_replicate(study: str, replicate: int) -> str:
    """The name of the Optuna study that holds the runs of a replicate; no study of a user has it."""
    return f"{study}/r{replicate}"
