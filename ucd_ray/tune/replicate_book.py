"""The book of a study whose trials are measured several times: runs are handed out, trials are told.

Every replicate has a book of its own (`ReplicateRuns`).  The study itself gets the values of finished runs
as intermediate values, step k for replicate k, and their mean as the trial's value.
Whatever a dead driver left half told is made up for when its trial is adopted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ucd_ray.recipe import Recipe
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.keys import Run, trial_of
from ucd_ray.tune.pruners import RACING
from ucd_ray.tune.racing import is_hopeless
from ucd_ray.tune.reasons import Reason
from ucd_ray.tune.replicate_runs import ReplicateRuns
from ucd_ray.tune.replicates import next_replicate, replicates_of, undroppable
from ucd_ray.tune.run_book import OnEvent
from ucd_ray.tune.seen import CANCELLED, STOPPED_BY_USER

VERDICT = "verdict"  # user attribute of a trial whose runs are being stopped: code and reason


@dataclass
class Measured:
    """An open trial and its runs."""

    params: dict[str, Any]
    started: int = 0  # runs, the first replicates
    paused: list[int] = field(default_factory=list)  # replicates that wait to go on
    running: set[int] = field(default_factory=set)  # replicates that are handed out
    values: dict[int, float] = field(default_factory=dict)  # of finished replicates
    verdict: tuple[str, str] | None = None  # code and reason, once the trial cannot be complete

    @property
    def is_begun(self) -> bool:
        """Whether something of it runs or was measured."""
        return bool(self.values or self.running)


class ReplicateBook:
    """Hands out the runs of a book's trials, and tells a trial once its runs have ended."""

    def __init__(
        self, trials: TrialBook, on_stop: Callable[[str], None] = lambda key: None
    ) -> None:
        """on_stop: is told the keys of runs whose trial has ended without them."""
        spec, database = trials.spec, trials.database
        self.on_stop = on_stop
        self.trials, self.on_event = trials, trials.on_event
        trials.on_event = self._on_trial
        self.replicates = replicates_of(spec.model_dump())
        self.surely = undroppable(len(self.replicates), spec.racing)
        self.books = [ReplicateRuns(spec, database, r.number, trials) for r in self.replicates]
        for book in self.books:
            book.on_event = self._on_run(book)
        self.open: dict[int, Measured] = {}
        self._drop_orphans()

    # Handing out.

    def next_trial(self) -> tuple[Run, dict[str, Any]] | None:
        """The next run with the params of its trial; None when there is none to start."""
        self._adopt()
        run = self._next_of_open(self.surely)
        if run is None and (fresh := self.trials.next_trial()) is not None:
            number, params = fresh
            self.open[number] = Measured(params)
            run = Run(number, 0)
        run = run or self._next_of_open(len(self.replicates))  # rather than let a gang idle
        return self._hand_out(run) if run else None

    def next_begun(self) -> tuple[Run, dict[str, Any]] | None:
        """The next run of a trial of which others run or ended: no trial begins any more."""
        run = self._next_of_open(len(self.replicates), begun=True)
        return self._hand_out(run) if run else None

    def _next_of_open(self, surely: int, *, begun: bool = False) -> Run | None:
        count = len(self.replicates)
        surely = surely if self.trials.best() else count
        for number, trial in self.open.items():
            if trial.verdict is not None or (begun and not trial.is_begun):
                continue
            if trial.paused:
                return Run(number, trial.paused[0])
            found = next_replicate(trial.started, len(trial.running), count=count, surely=surely)
            if found is not None:
                return Run(number, found)
        return None

    def _hand_out(self, run: Run) -> tuple[Run, dict[str, Any]]:
        trial, replicate = self.open[run.number], self.replicates[run.replicate]
        self.books[run.replicate].start(run.number)
        if run.replicate in trial.paused:
            trial.paused.remove(run.replicate)
        else:
            trial.started += 1
        trial.running.add(run.replicate)
        self.on_event("run", run.number, {"replicate": run.replicate, "label": replicate.label})
        return run, trial.params

    def recipe_of(self, run: Run) -> Recipe:
        """The recipe of a run.  Raises ConfigError if its trial has params that cannot be."""
        recipe = self.trials.recipe_of(run.number)
        return recipe.with_overrides(self.replicates[run.replicate].overrides(recipe))

    def is_full(self) -> bool:
        """Whether all runs of the study are finished or handed out."""
        return self.trials.is_full() and not self.has_more()

    def has_more(self, *, begun: bool = False) -> bool:
        """Whether open trials have runs to hand out; begun: only those that `next_begun` would."""
        return any(
            trial.verdict is None
            and (trial.paused or trial.started < len(self.replicates))
            and (trial.is_begun or not begun)
            for trial in self.open.values()
        )

    # What runs say.

    def report(self, run: Run, report: dict[str, Any]) -> bool:
        """Stores one report of a run.  Returns whether it shall stop here."""
        stop = self._book(run).report(self._row(run), report)
        return stop or self.open[run.number].verdict is not None

    def has_ended(self, run: Run) -> bool:
        """Whether a run has told its value, or why it has none, or is not wanted any more."""
        ended = self._book(run).has_ended(self._row(run))
        return ended or self.open[run.number].verdict is not None

    def has_begun(self, run: Run) -> bool:
        """Whether other runs of its trial run or have ended."""
        trial = self.open[run.number]
        return bool(trial.values or trial.running - {run.replicate})

    def open_number(self, key: str) -> Run | None:
        """An open run by its key on the board."""
        number = trial_of(key)
        if number not in self.open:
            return None
        runs = (Run(number, k) for k in self.open[number].running)
        return next((run for run in runs if str(run) == key), None)

    def say_waiting(self, run: Run, reason: str | None) -> None:
        """Stores why a run waits for its gang; None: it waits no longer."""
        self._book(run).say_waiting(self._row(run), reason)

    def give_back(self, run: Run) -> None:
        """A run stops where its checkpoint is and will be handed out again."""
        self._book(run).give_back(self._row(run))
        trial = self.open[run.number]
        trial.running.discard(run.replicate)
        trial.paused = sorted([*trial.paused, run.replicate])
        self._note_waiting(run.number)

    def fail(self, run: Run, code: str, reason: str) -> None:
        """Ends a run that cannot be trained, and with it its trial."""
        self._book(run).reasons[self._row(run)] = (code, reason)
        self.close(run)

    def close(self, run: Run, *, lost: bool = False) -> None:
        """A run has ended; and so has its trial, if it was the last one.

        lost: its process ended without telling why
        """
        book, row, trial = self._book(run), self._row(run), self.open[run.number]
        if trial.verdict is not None and not book.has_ended(row):
            code, reason = trial.verdict
            book.reasons[row] = (code, f"its trial had ended: {reason}")
        book.close(row, lost=lost)
        trial.running.discard(run.replicate)
        self._note_waiting(run.number)
        self._settle(run.number)

    # What becomes of trials.

    def _settle(self, number: int) -> None:
        """Tells the study what the runs of a trial have told so far, and ends it if that is enough."""
        trial, whole = self.open[number], self.trials.open[number]
        known = self.trials.study.get_trials(deepcopy=False)[number].intermediate_values
        for replicate, row in self._rows(number):
            if row.state == TrialState.COMPLETE:
                trial.values[replicate] = row.values[0]
                if replicate not in known:
                    whole.report(row.values[0], replicate)
        if trial.verdict is None and (found := self._failure(number) or self._dropped(number)):
            trial.verdict = found
            whole.set_user_attr(VERDICT, found)
        if trial.verdict is not None:
            for replicate in trial.running:
                self.on_stop(str(Run(number, replicate)))
        elif len(trial.values) < len(self.replicates):
            return
        if trial.running:
            return
        del self.open[number]
        self._drop_paused(number, "its trial had ended")
        if trial.verdict is None:
            mean = statistics.fmean(trial.values.values())
            self.trials.results[number] = {self.trials.goals.scalar: mean}
        else:
            self.trials.reasons[number] = trial.verdict
        self.trials.close(number)

    def _failure(self, number: int) -> tuple[str, str] | None:
        """Code and reason of the first run that ended without a value."""
        for replicate, row in self._rows(number):
            if row.state not in (TrialState.FAIL, TrialState.PRUNED):
                continue
            if (text := row.user_attrs.get("traceback")) is not None:
                self.trials.open[number].set_user_attr("traceback", text)
            code, reason = row.user_attrs["code"], row.user_attrs["reason"]
            return code, reason if code == STOPPED_BY_USER else f"replicate {replicate}: {reason}"
        return None

    def _dropped(self, number: int) -> tuple[str, str] | None:
        """Code and reason, if the best trial was better under the same seeds and class orders."""
        values, best, p = self.open[number].values, self.trials.best(), self.trials.spec.racing
        if p is None or best is None or len(values) == len(self.replicates):
            return None
        theirs = self.trials.study.get_trials(deepcopy=False)[best.numbers[0]].intermediate_values
        if not is_hopeless(values, theirs, p=p):
            return None
        replicates = f"{len(values)} of {len(self.replicates)} replicates"
        return RACING, f"weaker than trial {best.numbers[0]} over {replicates} (racing)"

    def cancel_unplaced(self, number: int) -> bool:
        """Ends a trial none of whose runs is at work.  Returns whether there is one."""
        if number in self.open:
            self._cancel(number, CANCELLED)
            return True
        is_one = self.trials.cancel_unplaced(number)
        self._drop_paused(number, CANCELLED)
        return is_one

    def cancel_open(self, reason: str) -> None:
        """Ends all trials that are open or would be adopted."""
        for number in list(self.trials.adopted):
            self.trials.cancel_adopted(number, reason)
            self._drop_paused(number, reason)
        for number in list(self.open):
            self._cancel(number, reason)

    def _cancel(self, number: int, reason: str) -> None:
        self.open[number].verdict = (STOPPED_BY_USER, reason)
        for replicate in list(self.open[number].running):
            self.close(Run(number, replicate))
        if number in self.open:
            self._settle(number)

    # After a crash.

    def _adopt(self) -> None:
        """Takes over the trials that a dead driver left, before anything else is handed out."""
        while self.trials.adopted:
            adopted = self.trials.next_trial()
            assert adopted is not None
            number, params = adopted
            rows = dict(self._rows(number))
            paused = [k for k, row in rows.items() if not row.state.is_finished()]
            verdict = self.trials.open[number].user_attrs.get(VERDICT)
            self.open[number] = Measured(
                params, started=len(rows), paused=paused, verdict=verdict and tuple(verdict)
            )
            self._settle(number)

    def _drop_orphans(self) -> None:
        """Ends runs whose trial was ended while nobody drove the study."""
        states = [trial.state for trial in self.trials.study.get_trials(deepcopy=False)]
        for book in self.books:
            for number in book.adopted_trials():
                if states[number].is_finished():
                    book.drop(number, STOPPED_BY_USER, "its trial had ended")

    def _drop_paused(self, number: int, reason: str) -> None:
        """Ends the runs of a trial that would have gone on later."""
        for book in self.books:
            if number in book.adopted_trials():
                book.drop(number, STOPPED_BY_USER, reason)

    # Between the books.

    def _book(self, run: Run) -> ReplicateRuns:
        return self.books[run.replicate]

    def _row(self, run: Run) -> int:
        return self._book(run).rows[run.number]

    def _rows(self, number: int) -> Iterator[tuple[int, FrozenTrial]]:
        """The runs of a trial that were started, by replicate."""
        for book in self.books:
            if (row := book.row(number)) is not None:
                yield book.replicate, row

    def _on_run(self, book: ReplicateRuns) -> OnEvent:
        """What is done with events of the runs of one replicate: they are the trial's, with its number."""

        def forward(kind: str, row: int, report: dict[str, Any]) -> None:
            number = book.trial_of(row)
            if kind == "waiting":
                self._note_waiting(number)
            name = "measured" if kind == "finished" else kind
            self.on_event(name, number, {**report, "replicate": book.replicate})

        return forward

    def _on_trial(self, kind: str, number: int, report: dict[str, Any]) -> None:
        if kind != "waiting":  # its runs have said so
            self.on_event(kind, number, report)

    def _note_waiting(self, number: int) -> None:
        """A trial waits if none of its runs is at work, for what the first of them waits for."""
        trial = self.open[number]
        rows = dict(self._rows(number))
        runs = [rows[k].user_attrs for k in sorted(trial.running) or trial.paused]
        waits = [
            Reason(run.get("waiting_code"), run["waiting"]) for run in runs if run.get("waiting")
        ]
        self.trials.say_waiting(number, waits[0] if waits and len(waits) == len(runs) else None)
