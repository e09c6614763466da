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
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ucd_ray.errors import StudyError, UcdRayError
from ucd_ray.tune.board import STORAGE
from ucd_ray.tune.database import Database
from ucd_ray.tune.dispatch import Dispatcher
from ucd_ray.tune.executors import trial_jobs, unpack
from ucd_ray.tune.pruners import DROPS, PRUNED_CODES, drops_with, make_pruner, why_code, why_pruned
from ucd_ray.tune.retention import ENTRIES
from ucd_ray.tune.samplers import make_sampler
from ucd_ray.tune.space import Parameter, StudySpec

FINISHED_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
CANCELLED = "stopped by command"
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
            trial = self._adopt(self.adopted.pop(0))
        elif not self.is_full():
            trial = self._ask()
        else:
            return None
        self.open[trial.number] = trial
        trial.set_user_attr("started", time.time())
        self.on_event("started", trial.number, dict(trial.params))
        return trial.number, dict(trial.params)

    def _adopt(self, number: int) -> optuna.Trial:
        """An open trial of a dead driver.  One that died before it wrote the params asks for them now."""
        spec = self.spec
        self.study.sampler = make_sampler(spec.sampler, spec.search, seed=spec.seed, number=number)
        trial = optuna.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)
        for key, found in self.distributions.items():
            trial._suggest(key, found)
        return trial

    def is_full(self) -> bool:
        """Whether all trials of the study are finished or open."""
        return not self.adopted and self.finished() + len(self.open) >= self.wanted

    def has_ended(self, number: int) -> bool:
        """Whether an open trial has told its value, or why it has none."""
        return number in self.values or number in self.reasons

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
            # Its own from before it was interrupted, or another trial's: the ledger wants to know.
            report = {**report, "own": trial.user_attrs.get("last_step", -1) >= report["step"]}
            self.database.add_step(self.spec.name, number, report)
            if not report["cached"] and report["step"] > 0:
                entries = {*trial.user_attrs.get(ENTRIES, ()), *report["entries"]}
                trial.set_user_attr(ENTRIES, sorted(entries))
            trial.set_user_attr("last_step", report["step"])
        elif kind == "start":
            self.say_waiting(number, None)
        elif kind == "done":
            self.values[number] = report["value"]
        elif kind == "failed" and report["code"] == STORAGE:  # the next driver adopts the trial
            raise StudyError(f"trial {number} cannot go on: {report['reason']}")
        elif kind == "failed":
            self.reasons[number] = (report["code"], report["reason"])
            if "traceback" in report:
                trial.set_user_attr("traceback", report["traceback"])
        elif kind == "smaller":
            trial.set_user_attr("memory", report["reason"])
        elif kind == "lost":
            trial.set_user_attr("lost", [*trial.user_attrs.get("lost", []), report["nodes"]])
        self.on_event(kind, number, report)
        return stop

    def open_number(self, key: str) -> int | None:
        """The number of an open trial by its key on the board."""
        return int(key) if key.isdigit() and int(key) in self.open else None

    def say_waiting(self, number: int, reason: str | None) -> None:
        """Stores why a trial waits for its gang; None: it waits no longer."""
        trial = self.open[number]
        if trial.user_attrs.get("waiting") != reason:
            trial.set_user_attr("waiting", reason)
            self.on_event("waiting", number, {"kind": "waiting", "reason": reason})

    def fail(self, number: int, code: str, reason: str) -> None:
        """Ends a trial that cannot be trained."""
        self.reasons[number] = (code, reason)
        self.close(number)

    def give_back(self, number: int) -> None:
        """A trial stops where its checkpoint is and will be handed out again, with its number."""
        trial = self.open.pop(number)
        trial.set_user_attr("waiting", "it stopped at its checkpoint and goes on later")
        self._add_seconds(trial)
        self.adopted.append(number)
        self.on_event("paused", number, {"kind": "paused"})

    def close(self, number: int, *, lost: bool = False) -> None:
        """Tells Optuna how a trial ended.

        lost: its process ended without telling why
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
        self._add_seconds(trial)
        if code is not None:
            trial.set_user_attr("code", code)
            trial.set_user_attr("reason", reason)
        self.study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
        shown = {"state": state.name, "value": value, "reason": reason, "code": code}
        self.on_event("finished", number, shown)

    def cancel_open(self, reason: str) -> None:
        """Ends all trials that are open or would be adopted."""
        for number in list(self.adopted):
            self.cancel_adopted(number, reason)
        for number in list(self.open):
            self.fail(number, "STOPPED_BY_USER", reason)

    def cancel_adopted(self, number: int, reason: str) -> None:
        """Ends a trial that would be handed out again."""
        self.adopted.remove(number)
        self.open[number] = self._adopt(number)
        self.fail(number, "STOPPED_BY_USER", reason)

    def _add_seconds(self, trial: optuna.Trial) -> None:
        started = trial.user_attrs.get("started", time.time())
        seconds = trial.user_attrs.get("seconds", 0.0) + time.time() - started
        trial.set_user_attr("seconds", seconds)


class NotSaved:
    """Tune pickles its searcher and scheduler as its own state; ours is in the database."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class BookSearcher(NotSaved, Searcher):
    """Hands out the trials of a book, each once a gang has room for it."""

    def __init__(self, book: TrialBook, dispatcher: Dispatcher) -> None:
        super().__init__(metric=None, mode=None)
        self.book, self.dispatcher = book, dispatcher
        self.number_of: dict[str, int] = {}
        self.waiting: tuple[int, dict[str, Any]] | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial; None while it waits for its gang."""
        self.dispatcher.tick()  # without open trials Tune only asks, and has no turns of its loop
        if self.waiting is None and not self._ask():
            return self.FINISHED if self._is_over() else None
        assert self.waiting is not None
        if self.dispatcher.mode != "run":
            number, self.waiting = self.waiting[0], None
            self.book.give_back(number)
            return None
        number, params = self.waiting
        try:
            jobs = trial_jobs(self.dispatcher.job, number, params, self.dispatcher.oom_retries)
        except UcdRayError as error:
            self.waiting = None
            self.book.fail(number, "USER_ERROR", str(error))
            return None
        reason = self.dispatcher.place(str(number), jobs)
        self.book.say_waiting(number, reason)
        if reason is not None:
            return None
        self.waiting = None
        self.number_of[trial_id] = number
        return {"key": str(number)}

    def _ask(self) -> bool:
        if self.dispatcher.may_ask():
            self.waiting = self.book.next_trial()
        return self.waiting is not None

    def cancel(self, number: int) -> bool:
        """Ends a trial that no gang has.  Returns whether it waits for one."""
        if self.waiting is not None and self.waiting[0] == number:
            self.waiting = None
            self.book.fail(number, "STOPPED_BY_USER", CANCELLED)
        elif number in self.book.adopted:
            self.book.cancel_adopted(number, CANCELLED)
        else:
            return False
        return True

    def _is_over(self) -> bool:
        """Whether nothing will ever be handed out again."""
        if self.dispatcher.ends:
            return True
        return self.dispatcher.mode == "run" and self.book.is_full()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial ended, by itself, by the scheduler or by an error."""
        with self.dispatcher.fatal_errors():
            self._end(self.number_of.pop(trial_id), lost=error)

    def _end(self, number: int, *, lost: bool) -> None:
        key = str(number)
        paused = self.dispatcher.ended(key)
        if key in self.dispatcher.cancelled:
            self.book.fail(number, "STOPPED_BY_USER", CANCELLED)
        elif paused and not self.book.has_ended(number):
            self.book.give_back(number)
        else:
            self.book.close(number, lost=lost)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the database is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class BookScheduler(NotSaved, FIFOScheduler):
    """Passes reports to a book and its verdicts back to the gang."""

    def __init__(self, searcher: BookSearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """One report of one trial.  The trial ends itself when it is told to stop."""
        number = self.searcher.number_of.get(trial.trial_id)
        report = unpack(result)
        if number is not None and report is not None:
            with self.searcher.dispatcher.fatal_errors():
                stop = self.searcher.book.report(number, report)
            self.searcher.dispatcher.answer(str(number), result["place"], stop=stop)
        return TrialScheduler.CONTINUE


class Ticks(NotSaved, Callback):
    """Ticks the dispatcher in Tune's loop, and says which trials wait for workers to start."""

    def __init__(self, searcher: BookSearcher) -> None:
        self.searcher = searcher

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Once per turn of Tune's loop."""
        dispatcher, book = self.searcher.dispatcher, self.searcher.book
        dispatcher.tick()
        for key, reason in dispatcher.waiting_reasons().items():
            number = book.open_number(key)
            if number is not None:
                book.say_waiting(number, reason)
