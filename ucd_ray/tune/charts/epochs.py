"""The values of trials after every epoch, wherever a study keeps them.

A study of one objective has them in its trials; several objectives or replicates have them in studies of
their own beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from ucd_ray.tune.database import Database
from ucd_ray.tune.goals import Goals
from ucd_ray.tune.keys import TRIAL, study_of_replicate
from ucd_ray.tune.objectives import curves_study
from ucd_ray.tune.outcomes import read_attribute, read_trials


@dataclass(frozen=True)
class Curve:
    """One run of a trial, epoch after epoch."""

    number: int  # of the trial
    state: str  # Optuna's
    values: Mapping[int, float]  # by epochs since the end of step 0
    replicate: int | None = None  # None: the trial has one run

    @property
    def name(self) -> str:
        """What marks call it."""
        return f"trial {self.number}" + ("" if self.replicate is None else f"-r{self.replicate}")


def read_curves(
    database: Database, study: str, goals: Goals, replicates: int, trials: Sequence[FrozenTrial]
) -> list[Curve]:
    """The curves of trials that have one, by number and replicate."""
    if replicates == 1 and goals.plain:
        return [Curve(t.number, t.state.name, t.intermediate_values) for t in trials if _told(t)]
    beside: dict[int | None, str] = {None: curves_study(study, goals)}
    if replicates > 1:
        beside = {k: study_of_replicate(study, k) for k in range(replicates)}
    numbers = {trial.number for trial in trials}
    found = []
    for replicate, name in beside.items():
        rows = read_attribute(database, name, TRIAL)
        ids = [row for row, number in rows.items() if number in numbers]
        found += [
            Curve(t.user_attrs[TRIAL], t.state.name, t.intermediate_values, replicate)
            for t in read_trials(database, ids)
            if _told(t)
        ]
    return sorted(found, key=lambda curve: (curve.number, curve.replicate or 0))


def _told(trial: FrozenTrial) -> bool:
    return bool(trial.intermediate_values)
