"""Ray Tune on one Optuna study: what is tried, what is reported, what is stopped.

`TrialBook` is the only writer of the study.  Tune sees two thin classes over it: a `Searcher` that hands
out trials and a `TrialScheduler` that passes reports on.  All state is in the database: a driver that
opens the same study goes on, and trials left running by a dead driver are handed out again first.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ucd_ray.errors import UcdRayError
from ucd_ray.recipe import Recipe
from ucd_ray.tune.database import Database
from ucd_ray.tune.dispatch import Dispatcher
from ucd_ray.tune.executors import trial_jobs, unpack
from ucd_ray.tune.keys import trial_of
from ucd_ray.tune.names import EXHAUSTIVE
from ucd_ray.tune.objectives import Best, best_of
from ucd_ray.tune.proposals import Proposer
from ucd_ray.tune.revisions import OUTSIDE, REVISION, history
from ucd_ray.tune.run_book import OnEvent, RunBook
from ucd_ray.tune.seen import (
    CANCELLED,
    STOPPED_BY_USER,
    Fit,
    cancel_queued,
    open_study,
    points_wanted,
    see,
)
from ucd_ray.tune.spec import StudySpec

FINISHED_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class TrialBook(RunBook):
    """Reads and writes the trials of one study."""

    def __init__(
        self, spec: StudySpec, database: Database, on_event: OnEvent = lambda *_: None
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        super().__init__(spec, database, open_study(spec, database), on_event)
        self.revise(spec)

    def revise(self, spec: StudySpec) -> None:
        """From now on the stored study has this spec, and sampler and pruner see it so."""
        self.spec, self.goals = spec, spec.goals
        self.fit = Fit(history(self.database, spec))
        self.seen = see(self.database, spec, self.fit)
        self.seen.pruner = self.study.pruner
        storage, study_id = self.seen._storage, self.seen._study_id
        self.proposer = Proposer(
            self.seen, self.fit.domain, spec.sampler, spec.seed, lambda: storage.earlier(study_id)
        )
        for trial in self.open.values():
            trial.study = self.seen

    @property
    def wanted(self) -> int:
        """Trials of the whole study: what the spec asks for, or all points of an exhaustive sampler."""
        if self.spec.sampler not in EXHAUSTIVE:
            return self.spec.trials
        return min(self.spec.trials, points_wanted(self.fit.domain, self.seen))

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

    def best(self) -> Best | None:
        """The best complete trial, or the Pareto set."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return best_of(self.goals, complete)

    def next_trial(self) -> tuple[int, dict[str, Any]] | None:
        """Number and params of the next trial; None when enough are finished or open."""
        if self.adopted:
            trial = self._adopt(self.adopted.pop(0))
        elif not self.is_full():
            trial = self._marked(self.proposer.ask())
        else:
            return None
        self.open[trial.number] = trial
        trial.set_user_attr("started", time.time())
        self.on_event("started", trial.number, dict(trial.params))
        return trial.number, dict(trial.params)

    def _adopt(self, number: int) -> optuna.Trial:
        """An open trial of a dead driver.  One that died before it wrote the params asks for them now."""
        found = self.study.get_trials(deepcopy=False)[number]
        trial = self.proposer.adopt(found._trial_id)
        return trial if found.params else self._marked(trial)

    def _marked(self, trial: optuna.Trial) -> optuna.Trial:
        """A trial that has just got its params, with what the search space is to it."""
        if self.fit.history.number:
            trial.set_user_attr(REVISION, self.fit.history.number)  # in one write with the params
        if outside := self.fit.domain.outside(trial.params):
            trial.set_user_attr(OUTSIDE, outside)
        return trial

    def recipe_of(self, number: int) -> Recipe:
        """The recipe of an open trial.  Raises ConfigError if it has params that cannot be."""
        trial = self.open[number]
        if trial.user_attrs.get(REVISION, 0) == self.fit.history.number:
            ranges = OUTSIDE not in trial.user_attrs
            self.fit.domain.check(trial.params, "value", ranges=ranges)
        return self.spec.trial_recipe(trial.params)

    def is_full(self) -> bool:
        """Whether all trials of the study are finished or open."""
        return not self.adopted and self.finished() + len(self.open) >= self.wanted

    # As a book of runs: each trial has one, which is the trial.

    def next_begun(self) -> None:
        """No further run of a trial that has begun."""

    def has_begun(self, number: int) -> bool:
        """Whether other runs of its trial run or have ended."""
        return False

    def has_more(self, *, begun: bool = False) -> bool:
        """Whether open trials have runs to hand out."""
        return False

    def cancel_open(self, reason: str) -> None:
        """Ends all trials that are open or would be adopted."""
        for number in list(self.adopted):
            self.cancel_adopted(number, reason)
        for number in list(self.open):
            self.fail(number, STOPPED_BY_USER, reason)

    def cancel_adopted(self, number: int, reason: str) -> None:
        """Ends a trial that would be handed out again."""
        self.adopted.remove(number)
        self.open[number] = self._adopt(number)
        self.fail(number, STOPPED_BY_USER, reason)

    def cancel_unplaced(self, number: int) -> bool:
        """Ends a trial that is queued or would be handed out again.  Returns whether it is one."""
        if number in self.adopted:
            self.cancel_adopted(number, CANCELLED)
            return True
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        queued = [trial for trial in trials if trial.number == number]
        for trial in queued:
            cancel_queued(self.study._storage, trial)
            told = {"state": "FAIL", "value": None, "reason": CANCELLED, "code": STOPPED_BY_USER}
            self.on_event("finished", number, told)
        return bool(queued)


class NotSaved:
    """Tune pickles its searcher and scheduler as its own state; ours is in the database."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Book(Protocol):
    """What runs are handed out from: `TrialBook`, or `ReplicateBook` where trials have several.

    A run is what the book calls it, a trial's number or a `Run`; as text it is its key on the board.
    """

    def next_trial(self) -> tuple[Any, dict[str, Any]] | None:
        """The next run and its params; None when enough are finished or open."""

    def next_begun(self) -> tuple[Any, dict[str, Any]] | None:
        """The next run of a trial of which others run or ended."""

    def recipe_of(self, number: Any) -> Recipe:
        """The recipe of a run.  Raises ConfigError."""

    def has_begun(self, number: Any) -> bool:
        """Whether other runs of its trial run or have ended."""

    @property
    def open(self) -> Any:
        """The open trials, by number."""

    def has_more(self, *, begun: bool = False) -> bool:
        """Whether open trials have runs to hand out; begun: only those that `next_begun` would."""

    def is_full(self) -> bool:
        """Whether all runs of the study are finished or handed out."""

    def has_ended(self, number: Any) -> bool:
        """Whether a run has told its value, or why it has none."""

    def report(self, number: Any, report: dict[str, Any]) -> bool:
        """Stores one report.  Returns whether the run shall stop here."""

    def open_number(self, key: str) -> Any | None:
        """An open run by its key on the board."""

    def say_waiting(self, number: Any, reason: str | None) -> None:
        """Stores why a run waits for its gang."""

    def fail(self, number: Any, code: str, reason: str) -> None:
        """Ends a run that cannot be trained."""

    def give_back(self, number: Any) -> None:
        """A run stops where its checkpoint is and will be handed out again."""

    def close(self, number: Any, *, lost: bool = False) -> None:
        """A run has ended."""

    def cancel_unplaced(self, number: int) -> bool:
        """Ends a trial none of whose runs is at work.  Returns whether there is one."""


class BookSearcher(NotSaved, Searcher):
    """Hands out the runs of a book, each once a gang has room for it."""

    def __init__(self, book: Book, dispatcher: Dispatcher) -> None:
        super().__init__(metric=None, mode=None)
        self.book, self.dispatcher = book, dispatcher
        self.number_of: dict[str, Any] = {}  # runs by Tune's id
        self.waiting: tuple[Any, dict[str, Any]] | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial; None while it waits for its gang."""
        self.dispatcher.tick()  # without open trials Tune only asks, and has no turns of its loop
        if self.waiting is None and not self._ask():
            return self.FINISHED if self._is_over() else None
        assert self.waiting is not None
        number, _ = self.waiting
        if self.book.has_ended(number):  # its trial was dropped meanwhile
            self.waiting = None
            self.book.close(number)
            return None
        if not self._goes_on(number):
            self.waiting = None
            self.book.give_back(number)
            return None
        try:
            recipe = self.book.recipe_of(number)
            jobs = trial_jobs(self.dispatcher.job, number, recipe, self.dispatcher.oom_retries)
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
        elif self._finishes() and self.dispatcher.has_room():
            self.waiting = self.book.next_begun()
        return self.waiting is not None

    def _goes_on(self, number: Any) -> bool:
        """Whether a run that waits may start; a study that ends finishes the trials that run."""
        mode = self.dispatcher.mode
        return mode == "run" or (mode == "drain" and self.book.has_begun(number))

    def _finishes(self) -> bool:
        """Whether trials that run have further runs, and nothing else will start."""
        return self.dispatcher.mode == "drain" and self.book.has_more(begun=True)

    def cancel(self, number: int) -> bool:
        """Ends a trial that no gang has.  Returns whether it waits for one."""
        if self.waiting is not None and trial_of(str(self.waiting[0])) == number:
            run, self.waiting = self.waiting[0], None
            self.book.fail(run, STOPPED_BY_USER, CANCELLED)
            return True
        return self.book.cancel_unplaced(number)

    def _is_over(self) -> bool:
        """Whether nothing will ever be handed out again: while a trial runs, an edit may add some."""
        if self.dispatcher.ends:
            return not self._finishes()
        return self.dispatcher.mode == "run" and self.book.is_full() and not self.book.open

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial ended, by itself, by the scheduler or by an error."""
        with self.dispatcher.fatal_errors():
            self._end(self.number_of.pop(trial_id), lost=error)

    def _end(self, number: Any, *, lost: bool) -> None:
        key = str(number)
        paused = self.dispatcher.ended(key)
        if key in self.dispatcher.cancelled:
            self.book.fail(number, STOPPED_BY_USER, CANCELLED)
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
        self.heard: dict[str, int] = {}  # reports of a trial by Tune's id

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The newest trial, so that a process that has become free goes to the one without any.

        Given to an older trial it would end the process that is just starting for that one.
        """
        for trial in reversed(tune_controller.get_trials()):
            if trial.status == Trial.PENDING:
                return trial
        return super().choose_trial_to_run(tune_controller)  # one whose process was lost is paused

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """One report of one trial.  The trial ends itself when it is told to stop.

        The process that passes reports on begins anew with the first if its node was lost.
        """
        number = self.searcher.number_of.get(trial.trial_id)
        report = unpack(result)
        if number is None or report is None:
            return TrialScheduler.CONTINUE
        place = result["place"]
        if place >= self.heard.get(trial.trial_id, 0):
            with self.searcher.dispatcher.fatal_errors():
                stop = self.searcher.book.report(number, report)
            self.searcher.dispatcher.answer(str(number), place, stop=stop)
            self.heard[trial.trial_id] = place + 1
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
