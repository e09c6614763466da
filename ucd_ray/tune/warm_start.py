"""Warm start: what other studies have measured of the same question is given to a study's sampler.

The question is scenario, setting, objective, images and class orders.  A trial is taken over if it is a
point of the study's search space, and has the same values under all keys that the study does not search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.tune.database import Database
from ucd_ray.tune.explain import show_value
from ucd_ray.tune.names import METHOD
from ucd_ray.tune.objectives import RESULTS
from ucd_ray.tune.pruners import DROPS
from ucd_ray.tune.replicates import Replicate, replicates_of
from ucd_ray.tune.results import stored_trials
from ucd_ray.tune.revisions import REVISION, History, history
from ucd_ray.tune.seen import Fit, Misfit
from ucd_ray.tune.spec import StudySpec, parsed
from ucd_ray.tune.taken import Taken, add_taken, taken

KEPT = (DROPS, RESULTS, "seconds")  # user attributes that sampler, pruner and tables read
# What may differ: noise that averages out, what cannot change a number, how it is computed.
FREE = ("seed", "data.source", "data.loader_workers", "eval.max_images", "compute.")


@dataclass
class WarmStart:
    """What becomes of the finished trials of one other study."""

    source: str
    trials: list[Taken] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # that do not fit, by reason
    before: int = 0  # trials of this study that were taken over earlier

    def __str__(self) -> str:
        if self.before:
            return f"{self.before} trial(s) of study '{self.source}' were taken over before"
        finished = len(self.trials) + self.others.total()
        if not finished:
            return f"study '{self.source}' has no finished trial to take over"
        text = f"{len(self.trials)} of {finished} finished trials of study '{self.source}' are taken over"
        reasons = [f"{count} where {reason}" for reason, count in self.others.most_common()]
        return f"{text}; not: {'; '.join(reasons)}" if reasons else text


def check_sources(database: Database, spec: StudySpec, sources: Sequence[str]) -> None:
    """Raises ConfigError, StudyError unless all `sources` are other studies of the same question."""
    known = {trial.source for trial in taken(database, spec.name)}
    for source in sources:
        if source == spec.name:
            raise ConfigError(f"--from {source}: a study learns from its own trials anyway")
        if source not in known:  # what was taken over is kept though its study may be gone
            _check_question(spec, parsed(database.stored_spec(source)))


def _check_question(spec: StudySpec, other: StudySpec) -> None:
    here, there = spec.base_recipe(), other.base_recipe()
    pairs = {
        "scenario": (here.scenario, there.scenario),
        "setting": (here.setting, there.setting),
        "objective": (_goals(spec), _goals(other)),
        "select_on": (here.eval.select_on, there.eval.select_on),
        "number of class orders": (spec.class_orders, other.class_orders),
    }
    for what, (mine, its) in pairs.items():
        if mine != its:
            shown = [getattr(value, "name", value) for value in (its, mine)]
            raise StudyError(
                f"--from {other.name}: its {what} is {shown[0]}, that of study '{spec.name}' is "
                f"{shown[1]}; only trials of the same question can be taken over"
            )


def _runs(spec: StudySpec) -> list[Replicate] | None:
    """The replicates of trials that have several."""
    return replicates_of(spec.model_dump()) if spec.replicates > 1 else None


def _goals(spec: StudySpec) -> str:
    """Objectives and limits on results in words."""
    limits = [limit.text for limit in spec.goals.limits]
    return " and ".join([*spec.goals.objectives, *limits])


def check_images(
    database: Database, spec: StudySpec, sources: Sequence[str], fingerprint: str
) -> None:
    """Raises StudyError unless all `sources` were measured on the study's images.

    fingerprint: of those; a study of an earlier version has none, and is known by where its images lie
    """
    before = {trial.source for trial in taken(database, spec.name)}
    for source in [source for source in sources if source not in before]:
        known = database.about(source).get("fingerprint")
        its = parsed(database.stored_spec(source)).base_recipe().data.source
        mine = spec.base_recipe().data.source
        if known != fingerprint if known else mine != its:
            raise StudyError(
                f"--from {source}: it was measured on other images ({its or 'generated'}) than study "
                f"'{spec.name}' ({mine or 'generated'})"
            )


def warm_start(database: Database, spec: StudySpec, source: str, *, dry: bool = False) -> WarmStart:
    """Gives the fitting trials of another study to the sampler of a stored one, once.

    dry: nothing is stored
    """
    found = WarmStart(source, before=sum(t.source == source for t in taken(database, spec.name)))
    if found.before:
        return found
    other = history(database, parsed(database.stored_spec(source)))
    mine = Candidates(history(database, spec), other)
    for trial in stored_trials(database, source):
        if not trial.state.is_finished():
            continue
        try:
            found.trials.append(mine.take(trial))
        except Misfit as misfit:
            found.others[str(misfit)] += 1
    if not dry:
        add_taken(database, spec.name, found.trials)
    return found


class Candidates:
    """Holds trials of another study against a study.  mine, other: their histories"""

    def __init__(self, mine: History, other: History) -> None:
        self.mine, self.other, self.fit = mine, other, Fit(mine)
        # What intermediate values are of: epochs, or the same replicates.
        self.same_curves = _runs(mine.spec) == _runs(other.spec)
        self._flat: dict[Any, dict[str, Any]] = {}

    def take(self, trial: FrozenTrial) -> Taken:
        """What is stored of a trial.  Raises Misfit."""
        curve = trial.intermediate_values if self.same_curves else {}
        has_value = (
            trial.values if trial.state == TrialState.COMPLETE else trial.intermediate_values
        )
        if trial.state == TrialState.FAIL or not has_value:
            raise Misfit("", "there is no value")
        if trial.state == TrialState.PRUNED and not curve:
            raise Misfit("", "the trial was stopped early, under other replicates")
        revision = trial.user_attrs.get(REVISION, 0)
        spec = self.other.specs[revision]
        values = {**self._recipe(spec, revision, trial.params), **trial.params}
        params = self.fit.fitted(values)
        self._compare(spec, values, params)
        attributes = {key: trial.user_attrs[key] for key in KEPT if key in trial.user_attrs}
        return Taken(
            source=self.other.spec.name,
            number=trial.number,
            state=trial.state.name,
            values=trial.values,
            params=params,
            curve=curve,
            attributes={**attributes, REVISION: self.mine.number},
            notes={k: v for k, v in trial.system_attrs.items() if k.startswith("constraints")},
        )

    def _compare(self, spec: StudySpec, its: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        """Raises Misfit if a value differs that the study does not search."""
        here = self._recipe(self.mine.spec, None, params)
        pairs = {key: (its.get(key), here.get(key)) for key in sorted({*its, *here} - {*params})}
        for key, (there, own) in {
            **pairs,
            "workers": (spec.workers, self.mine.spec.workers),
        }.items():
            if there != own and not key.startswith(FREE):
                raise Misfit(key, f"{key} is {show_value(there)} and not {show_value(own)}")

    def _recipe(
        self, spec: StudySpec, revision: int | None, params: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What trials of one method have under all keys, searched ones at their defaults."""
        method = params.get(METHOD)
        if (revision, method) not in self._flat:
            recipe = spec.trial_recipe({} if method is None else {METHOD: method})
            self._flat[revision, method] = recipe.flat()
        return self._flat[revision, method]
