"""What ends a study before all its trials have run: time, GPU hours, no improvement, the same failure.

Running trials are finished first.  A study that goes on with a larger budget goes on where it was.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import TrialState

from ucd_ray.errors import StudyError
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.ledger import Ledger, held, totals

LOOK_S = 5.0  # between looks: each reads the trials
USERS = ("USER_ERROR", "ERROR", "OUT_OF_MEMORY")  # failures that trials can have in common
TERMINATOR_AFTER = 10  # complete trials before Optuna's terminator is asked


@dataclass
class Budgets:
    """The budgets of one study."""

    book: TrialBook
    ledger: Ledger
    started: float = field(default_factory=time.monotonic)
    _next: float = 0.0
    _complete: int = -1
    _said: str | None = None

    def exhausted(self) -> str | None:
        """Why no more trials shall start, None if they may.  Raises StudyError for a repeated failure."""
        if time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + LOOK_S
        return self.look()

    def look(self) -> str | None:
        """As `exhausted`, at once."""
        self._check_failures()
        return self._time() or self._gpu_hours() or self._no_better() or self._terminator()

    def _check_failures(self) -> None:
        limit = self.book.spec.same_failures
        repeated = same_failure(self.book.study.get_trials(deepcopy=False), limit)
        if repeated is not None:
            raise StudyError(
                f"{limit} trials of study '{self.book.spec.name}' failed alike, so it stops: {repeated}"
            )

    def _time(self) -> str | None:
        hours = self.book.spec.max_hours
        if hours is None or self.ledger.wall_seconds() < hours * 3600:
            return None
        return f"budget: {hours:g} h of wall time are used up"

    def _gpu_hours(self) -> str | None:
        limit = self.book.spec.max_gpu_hours
        if limit is None:
            return None
        used = held(totals(self.ledger.database, self.ledger.study)).gpu / 3600
        return f"budget: {used:.2f} of {limit:g} GPU hours are used up" if used >= limit else None

    def _no_better(self) -> str | None:
        patience, best = self.book.spec.patience, self.book.best()
        if patience is None or best is None:
            return None
        since = sum(1 for number in self.book.finished_numbers() if number > best.newest)
        if since < patience:
            return None
        return f"budget: nothing better than {best.text} in {since} trials"

    def _terminator(self) -> str | None:
        if not self.book.spec.terminator:
            return None
        trials = self.book.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(trials) < TERMINATOR_AFTER or len(trials) == self._complete:
            return self._said
        self._complete = len(trials)
        if terminates(self.book.study):
            self._said = "budget: Optuna's terminator expects no further improvement"
        return self._said


def terminates(study: Any) -> bool:
    """Whether Optuna's terminator, on a Gaussian process of the results, would stop a study."""
    import warnings

    import optuna
    from optuna.terminator import EMMREvaluator, MedianErrorEvaluator, Terminator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)  # it leaves Optuna with version 6
        improvement = EMMREvaluator(min_n_trials=TERMINATOR_AFTER, seed=0)
        error = MedianErrorEvaluator(improvement, n_initial_trials=TERMINATOR_AFTER)
        return bool(Terminator(improvement, error, TERMINATOR_AFTER).should_terminate(study))


def same_failure(trials: list[Any], limit: int) -> str | None:
    """The reason that at least `limit` trials failed for, with equal tracebacks; None if there is none."""
    counts: Counter[str] = Counter()
    for trial in trials:
        attributes = trial.user_attrs
        if trial.state != TrialState.FAIL or attributes.get("code") not in USERS:
            continue
        text = attributes.get("traceback") or attributes.get("reason") or ""
        digest = hashlib.sha256(text.encode()).hexdigest()
        counts[digest] += 1
        if counts[digest] >= limit:
            return str(attributes.get("reason"))
    return None
