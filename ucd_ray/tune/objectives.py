"""The best of a study's trials, and the curves on which they are pruned.

Optuna takes no intermediate values in a study of several objectives.  The scalar that such a study
declares goes to one of its own beside it, `<study>/pruning`, a row per trial that has reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from ucd_ray.tune.goals import Goals, sign_of
from ucd_ray.tune.pruners import DROPS, drops_with, make_pruner

TRIAL = "trial"  # user attribute of a row of curves: the number of its trial
RESULTS = (
    "results"  # user attribute of a complete trial: the metrics that objectives and limits name
)
SHOWN = 5  # numbers of trials in a sentence


@dataclass(frozen=True)
class Best:
    """The best trial of a study or, with several objectives, its Pareto set."""

    numbers: tuple[int, ...]  # best first; in a Pareto set by the first objective
    text: str

    @property
    def newest(self) -> int:
        """The trial that improved on all before it."""
        return max(self.numbers)


def best_of(goals: Goals, trials: Sequence[FrozenTrial]) -> Best | None:
    """The best of the complete trials that break no limit; None if there is none."""
    feasible = [t for t in _complete(trials) if is_feasible(goals, t)]
    if not feasible:
        return None
    front = _front(goals, feasible)
    numbers = tuple(trial.number for trial in front)
    if not goals.several:
        return Best(numbers, f"{front[0].values[0]:.2f} (trial {numbers[0]})")
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    shown = ", ".join(map(str, numbers[:SHOWN]))
    return Best(numbers, f"Pareto set of {len(numbers)}: trial(s) {shown}{more}")


def ranked(goals: Goals, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials, best first: the best or the Pareto set, the others, those that break a limit."""
    feasible = [t for t in _complete(trials) if is_feasible(goals, t)]
    front = _front(goals, feasible)
    first = {trial.number for trial in front}
    rest = [t for t in _by_first(goals, feasible) if t.number not in first]
    broken = [t for t in _complete(trials) if not is_feasible(goals, t)]
    return [*front, *rest, *sorted(broken, key=lambda trial: _excess(goals, trial))]


def is_feasible(goals: Goals, trial: FrozenTrial) -> bool:
    """Whether a complete trial breaks no limit on results."""
    return _excess(goals, trial) <= 0


def pareto(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[N] which of N points no other point beats.

    values: [N, M], more is better.  A point beats another if it is no worse in any and better in one.
    """
    order = np.lexsort(-values.T[::-1])  # who is beaten is beaten by one before it
    kept = np.zeros(len(values), dtype=bool)
    front = values[:0]
    for index in order:
        point = values[index]
        beaten = (front >= point).all(axis=1) & (front > point).any(axis=1)
        if not beaten.any():
            kept[index] = True
            front = np.vstack([front, point])
    return kept


def _complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in trials if t.state == TrialState.COMPLETE and t.values]


def _excess(goals: Goals, trial: FrozenTrial) -> float:
    results = trial.user_attrs.get(RESULTS, {})
    return sum(max(goals.excess(limit, results), 0.0) for limit in goals.limits)


def _by_first(goals: Goals, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    sign = goals.signs[0]
    return sorted(trials, key=lambda trial: (-sign * trial.values[0], trial.number))


def _front(goals: Goals, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The best trial, or the Pareto set."""
    if not goals.several:
        return _by_first(goals, trials)[:1]
    ordered = _by_first(goals, trials)
    values = np.array([t.values for t in ordered]).reshape(-1, len(goals.signs)) * goals.signs
    return [trial for trial, is_in in zip(ordered, pareto(values), strict=True) if is_in]


def curves_study(name: str, goals: Goals) -> str:
    """The name of the Optuna study that holds the values after every epoch of the study `name`."""
    return name if goals.plain else f"{name}/pruning"


class Curves:
    """The scalar of each trial after every epoch, and the pruner that compares them."""

    def __init__(self, study: optuna.Study, goals: Goals, pruner: str) -> None:
        """study: with the trials, which its curves are kept beside if they cannot be in it."""
        self.beside = not goals.plain
        self.study = study
        if self.beside:
            self.study = optuna.create_study(
                storage=study._storage,
                study_name=curves_study(study.study_name, goals),
                direction="maximize" if sign_of(goals.scalar) > 0 else "minimize",
                pruner=make_pruner(pruner),
                load_if_exists=True,
            )
            self.rows = {t.user_attrs[TRIAL]: t.number for t in self._trials()}
            self._settle(study)

    def report(self, trial: optuna.Trial, rung: int, value: float, drop: float | None) -> bool:
        """Stores the value of a rung, unless it is known.  Returns whether the trial shall stop."""
        row = self._row(trial)
        if rung not in self._trials()[row.number].intermediate_values:
            if drop is not None:
                row.set_user_attr(DROPS, drops_with(row.user_attrs, rung, drop))
            row.report(value, rung)
        return bool(row.should_prune())

    def end(self, trial: optuna.Trial, state: TrialState, value: float | None) -> None:
        """A trial has ended, with its scalar if it is complete."""
        number = self.rows.get(trial.number) if self.beside else None
        if number is not None:
            self._tell(number, state, value)

    def _row(self, trial: optuna.Trial) -> optuna.Trial:
        if not self.beside:
            return trial
        if trial.number not in self.rows:
            attributes = {TRIAL: trial.number}
            self.study.add_trial(
                optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
            )
            self.rows[trial.number] = len(self._trials()) - 1
        return optuna.Trial(self.study, self._trials()[self.rows[trial.number]]._trial_id)

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _settle(self, study: optuna.Study) -> None:
        """Ends rows whose trial ended just before its driver died."""
        trials = study.get_trials(deepcopy=False)
        for row in self._trials():
            state = trials[row.user_attrs[TRIAL]].state
            if row.state == TrialState.RUNNING and state.is_finished():
                self._tell(row.number, state, None)

    def _tell(self, number: int, state: TrialState, value: float | None) -> None:
        row = self._trials()[number]
        if value is None and row.intermediate_values:
            value = row.intermediate_values[max(row.intermediate_values)]
        complete = state == TrialState.COMPLETE and value is not None
        state = state if complete or state == TrialState.PRUNED else TrialState.FAIL
        self.study.tell(
            optuna.Trial(self.study, row._trial_id), value if complete else None, state=state
        )
