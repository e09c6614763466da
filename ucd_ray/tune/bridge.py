"""Ray Tune on one Optuna study: what is tried, what is reported, what is stopped.

`TrialBook` is the only writer of the study.  Tune sees two thin classes over it: a `Searcher` that hands
out trials and a `TrialScheduler` that passes reports on.  All state is in the database: a driver that
opens the same study goes on, and trials left running by a dead driver are handed out again first.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ucd_ray.tune.database import Database
from ucd_ray.tune.executors import unpack
from ucd_ray.tune.pruners import DROPS, PRUNED_CODES, drops_with, make_pruner, why_code, why_pruned
from ucd_ray.tune.samplers import make_sampler
from ucd_ray.tune.space import Parameter, StudySpec

FINISHED_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
OnEvent = Callable[[str, int, dict[str, Any]], None]


def distribution(parameter: Parameter) -> optuna.distributions.BaseDistribution:
    """The Optuna distribution of a parameter."""
    if parameter.choices is not None:
        return optuna.distributions.CategoricalDistribution(parameter.choices)
    low, high, log = parameter.low, parameter.high, parameter.log
    assert low is not None and high is not None
    if parameter.type == "int":
        step = int(parameter.step or 1)
        return optuna.distributions.IntDistribution(int(low), int(high), log=log, step=step)
    return optuna.distributions.FloatDistribution(low, high, log=log, step=parameter.step)


class TrialBook:
    """Reads and writes the trials of one study."""

    def __init__(
        self, spec: StudySpec, database: Database, on_event: OnEvent = lambda *_: None
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.spec, self.database, self.on_event = spec, database, on_event
        self.study = optuna.create_study(
            storage=database.optuna_storage(),
            study_name=spec.name,
            direction="maximize",
            pruner=make_pruner(spec.pruner),
            load_if_exists=True,
        )
        self.distributions = {key: distribution(p) for key, p in sorted(spec.search.items())}
        trials = self.study.get_trials(deepcopy=False)
        self.adopted = [t.number for t in trials if t.state == TrialState.RUNNING]
        if not trials and spec.first:
            self.study.enqueue_trial(dict(spec.first))
        self.open: dict[int, optuna.Trial] = {}
        self.values: dict[int, float] = {}  # objective after the last step, once it is reported
        self.reasons: dict[int, tuple[str, str]] = {}  # why a trial failed or was pruned

    @property
    def wanted(self) -> int:
        """Trials of the whole study: what the spec asks for, or all points of an exhaustive sampler."""
        points = self.spec.num_points
        return self.spec.trials if points is None else min(self.spec.trials, points)

    def finished(self) -> int:
        """Trials that count: COMPLETE, PRUNED and FAIL."""
        return len(self.study.get_trials(deepcopy=False, states=FINISHED_STATES))

    def finished_numbers(self) -> list[int]:
        """Numbers of the finished trials."""
        trials = self.study.get_trials(deepcopy=False, states=FINISHED_STATES)
        return [trial.number for trial in trials]

    def states(self) -> Counter[str]:
        """Finished trials by state."""
        trials = self.study.get_trials(deepcopy=False, states=FINISHED_STATES)
        return Counter(trial.state.name for trial in trials)

    def best(self) -> tuple[float, int] | None:
        """Value and number of the best complete trial."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return max(((t.values[0], t.number) for t in complete if t.values), default=None)

    def next_trial(self) -> tuple[int, dict[str, Any]] | None:
        """Number and params of the next trial; None when enough are finished or open."""
        if self.adopted:
            number = self.adopted.pop(0)
            trial = optuna.Trial(self.study, self.study.trials[number]._trial_id)
        elif self.finished() + len(self.open) < self.wanted:
            trial = self._ask()
        else:
            return None
        self.open[trial.number] = trial
        trial.set_user_attr("started", time.time())
        self.on_event("started", trial.number, dict(trial.params))
        return trial.number, dict(trial.params)

    def _ask(self) -> optuna.Trial:
        trials = self.study.get_trials(deepcopy=False)
        waiting = [t.number for t in trials if t.state == TrialState.WAITING]
        number = waiting[0] if waiting else len(trials)
        spec = self.spec
        self.study.sampler = make_sampler(spec.sampler, spec.search, seed=spec.seed, number=number)
        return self.study.ask(self.distributions)

    def report(self, number: int, report: dict[str, Any]) -> bool:
        """Stores one report of a trial.  Returns whether the trial shall stop here."""
        trial, kind = self.open[number], report["kind"]
        stop = False
        if kind == "epoch" and report["value"] is not None and report["value"] == report["value"]:
            rung = report["rung"]
            if rung not in self.study.trials[number].intermediate_values:
                if (drop := report.get("drop")) is not None:
                    trial.set_user_attr(DROPS, drops_with(trial.user_attrs, rung, drop))
                trial.report(report["value"], rung)
            stop = trial.should_prune()
            if stop:
                self.reasons[number] = (
                    why_code(self.spec.pruner),
                    why_pruned(self.spec.pruner, rung),
                )
        elif kind == "step":
            self.database.add_step(self.spec.name, number, report)
            trial.set_user_attr("last_step", report["step"])
        elif kind == "done":
            self.values[number] = report["value"]
        elif kind == "failed":
            self.reasons[number] = (report["code"], report["reason"])
        self.on_event(kind, number, report)
        return stop

    def close(self, number: int, *, lost: bool = False) -> None:
        """Tells Optuna how a trial ended.

        lost: its driver ended without telling why
        """
        trial = self.open.pop(number)
        value = self.values.get(number)
        code, reason = self.reasons.get(number, (None, None))
        if code is None and lost:
            code, reason = "LOST_DRIVER", "the process that drove the trial ended"
        if code is None and (value is None or value != value):
            code, reason = "NO_VALUE", f"{self.spec.objective} has no class with truth pixels"
        state = TrialState.COMPLETE if code is None else TrialState.FAIL
        state = TrialState.PRUNED if code in PRUNED_CODES else state
        started = trial.user_attrs.get("started", time.time())
        seconds = trial.user_attrs.get("seconds", 0.0) + time.time() - started
        trial.set_user_attr("seconds", seconds)
        if code is not None:
            trial.set_user_attr("code", code)
            trial.set_user_attr("reason", reason)
        self.study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
        self.on_event("finished", number, {"state": state.name, "value": value, "reason": reason})


class NotSaved:
    """Tune pickles its searcher and scheduler as its own state; ours is in the database."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class BookSearcher(NotSaved, Searcher):
    """Hands out the trials of a book."""

    def __init__(self, book: TrialBook) -> None:
        super().__init__(metric=None, mode=None)
        self.book = book
        self.number_of: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Number and params of the next trial."""
        chosen = self.book.next_trial()
        if chosen is None:
            return self.FINISHED
        self.number_of[trial_id], params = chosen
        return {"number": chosen[0], "params": params}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial ended, by itself, by the scheduler or by an error."""
        self.book.close(self.number_of.pop(trial_id), lost=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the database is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class BookScheduler(NotSaved, FIFOScheduler):
    """Passes reports to a book and stops the trials that it wants stopped."""

    def __init__(self, searcher: BookSearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """One report of one trial."""
        number = self.searcher.number_of.get(trial.trial_id)
        report = unpack(result)
        if number is None or report is None:
            return TrialScheduler.CONTINUE
        stop = self.searcher.book.report(number, report)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE
