"""The runs of one replicate of a study: a book over the Optuna study of its own, `<study>/r<k>`.

It has one row per run, with its curve and its end; the pruner compares it with other runs under the same
seed and class order.
"""

from __future__ import annotations

import time
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.database import Database
from ucd_ray.tune.keys import TRIAL, Run, study_of_replicate
from ucd_ray.tune.pruners import make_pruner
from ucd_ray.tune.run_book import RunBook
from ucd_ray.tune.spec import StudySpec


class ReplicateRuns(RunBook):
    """The runs of one replicate, one row per trial that came so far."""

    def __init__(self, spec: StudySpec, database: Database, replicate: int, trials: TrialBook):
        study = optuna.create_study(
            storage=database.optuna_storage(),
            study_name=study_of_replicate(spec.name, replicate),
            direction="maximize",
            pruner=make_pruner(spec.pruner),
            load_if_exists=True,
        )
        super().__init__(spec, database, study)
        self.replicate, self.trials = replicate, trials
        self.rows = {t.user_attrs[TRIAL]: t.number for t in study.get_trials(deepcopy=False)}

    def row(self, number: int) -> FrozenTrial | None:
        """The run of a trial; None: it was never started."""
        row = self.rows.get(number)
        return None if row is None else self.study.get_trials(deepcopy=False)[row]

    def start(self, number: int) -> int:
        """The row of a trial's run, new or left by an earlier driver, which is open now."""
        if number in self.adopted_trials():
            self.adopted.remove(self.rows[number])
        else:
            trial = self.trials.study.get_trials(deepcopy=False)[number]
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.RUNNING,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs={TRIAL: number},
                )
            )
            self.rows[number] = len(self.study.get_trials(deepcopy=False)) - 1
        row = self.row(number)
        assert row is not None
        self.open[row.number] = optuna.Trial(self.study, row._trial_id)
        self.open[row.number].set_user_attr("started", time.time())
        return row.number

    def adopted_trials(self) -> list[int]:
        """The trials whose runs wait to be handed out again."""
        return [number for number, row in self.rows.items() if row in self.adopted]

    def drop(self, number: int, code: str, reason: str) -> None:
        """Ends a trial's run that waits to be handed out again, and never will be; nobody is told."""
        row = self.row(number)
        assert row is not None
        self.adopted.remove(row.number)
        trial = optuna.Trial(self.study, row._trial_id)
        trial.set_user_attr("code", code)
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def trial_of(self, row: int) -> int:
        """The number of the trial that a row belongs to."""
        number: int = self.study.get_trials(deepcopy=False)[row].user_attrs[TRIAL]
        return number

    def add_step(self, number: int, report: dict[str, Any]) -> None:
        """Stores what was measured after a step, under the trial's number."""
        name, trial = self.spec.name, self.trial_of(number)
        self.database.add_step(name, trial, report, replicate=self.replicate)

    def add_entries(self, number: int, digests: list[str]) -> None:
        """Stores the entries with the trial: they stay as long as it is among the best."""
        self.trials.add_entries(self.trial_of(number), digests)

    def who(self, number: int) -> str:
        """What messages call it."""
        return f"trial {Run(self.trial_of(number), self.replicate)}"
