"""The Optuna study of a spec: with all its trials, and as its sampler and pruner see it.

A sampler must only see values of the present search space.  Optuna keeps the distributions of old trials,
refuses other choices within one study, and leaves params out whose ranges changed.  So samplers look at
the study through `Seen`: trials of earlier revisions, and those taken over from other studies, have the
present distributions if their values fit and are not there if not.  Numbers and rows stay as they are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from ucd_ray.tune.database import Database
from ucd_ray.tune.domain import Domain
from ucd_ray.tune.explain import show_range, show_value
from ucd_ray.tune.names import EXHAUSTIVE
from ucd_ray.tune.objectives import RESULTS
from ucd_ray.tune.proposals import contains, distribution
from ucd_ray.tune.pruners import make_pruner
from ucd_ray.tune.revisions import OUTSIDE, REVISION, History, history
from ucd_ray.tune.samplers import point_of
from ucd_ray.tune.spec import StudySpec
from ucd_ray.tune.storage import StudyStorage, changed
from ucd_ray.tune.taken import taken_trials

STOPPED_BY_USER, CANCELLED = "STOPPED_BY_USER", "stopped by command"  # code and reason
PARENTS = ":parent:"  # in the key of a genetic sampler's note
BEGUN = tuple(state for state in TrialState if state != TrialState.WAITING)
CONSTRAINTS = "constraints"  # begins the keys of how far a trial broke limits on results
OF_ALL_SAMPLERS = ("fixed_params", CONSTRAINTS)  # what else is noted with a trial is of one space


def open_study(spec: StudySpec, database: Database) -> optuna.Study:
    """The Optuna study of a spec with all its trials; a new one has its first trials queued."""
    study = optuna.create_study(
        storage=database.optuna_storage(),
        study_name=spec.name,
        directions=spec.goals.directions,
        pruner=make_pruner(spec.pruner if spec.goals.plain else "none"),
        load_if_exists=True,
    )
    for first in spec.firsts[len(study.get_trials(deepcopy=False)) :]:
        study.enqueue_trial(dict(first))
    return study


def cancel_queued(storage: StudyStorage, trial: FrozenTrial) -> None:
    """Ends a trial that has not begun."""
    storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)  # Optuna's order of states
    storage.set_trial_user_attr(trial._trial_id, "code", STOPPED_BY_USER)
    storage.set_trial_user_attr(trial._trial_id, "reason", CANCELLED)
    storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def see(database: Database, spec: StudySpec, fit: Fit) -> optuna.Study:
    """The study as its sampler and pruner see it.  Raises KeyError if no driver ever opened it."""
    seen = Seen(database.optuna_storage(), fit, taken_trials(database, spec.name))
    return optuna.load_study(study_name=spec.name, storage=seen)


def wanted(database: Database, spec: StudySpec) -> int:
    """Trials of a whole stored study: what its spec asks for, or all points of an exhaustive sampler."""
    if spec.sampler not in EXHAUSTIVE:
        return spec.trials
    fit = Fit(history(database, spec))
    with contextlib.suppress(KeyError):
        seen = see(database, spec, fit)
        return min(spec.trials, points_wanted(fit.domain, seen))
    return min(spec.trials, len(fit.domain.points))


def points_wanted(domain: Domain, seen: optuna.Study) -> int:
    """Trials after which all points are tried: those begun, and one for each point that no trial has.

    seen: the study as its sampler sees it
    """
    tried = {point_of(trial.params) for trial in seen.get_trials(deepcopy=False)}
    left = {point_of(point) for point in domain.points} - tried
    return seen._storage.begun(seen._study_id) + len(left)


class Misfit(Exception):  # noqa: N818
    """A trial is not of a search space.  key: whose value tells"""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class Fit:
    """The present search space of a study, and which trials lie in it."""

    def __init__(self, history: History) -> None:
        self.history, self.domain = history, history.spec.domain()
        self.distributions = {
            key: distribution(self.domain.search[key]) for key in self.domain.order
        }

    def params(self, trial: FrozenTrial) -> dict[str, Any]:
        """A trial's values under the present keys.  Raises Misfit."""
        return self.fitted(self.history.values(trial.user_attrs.get(REVISION, 0), trial.params))

    def misfit(self, values: Mapping[str, Any]) -> Misfit | None:
        """Why values are not of the present search space; None if they are."""
        try:
            self.fitted(values)
        except Misfit as misfit:
            return misfit
        return None

    def fitted(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of all values that are params now.  Raises Misfit."""
        params: dict[str, Any] = {}
        for key, one in self.distributions.items():
            if not self.domain.exists(key, params):
                continue
            if key not in values:
                raise Misfit(key, f"{key} is not in its recipe")
            if not contains(one, values[key]):
                parameter = self.domain.search[key]
                raise Misfit(key, f"{key} is searched in {show_range(parameter)}")
            params[key] = one.to_external_repr(one.to_internal_repr(values[key]))
        for key, value in self.history.defaults(params).items():
            if key not in params and key in values and values[key] != value:
                raise Misfit(key, f"{key} is fixed at {show_value(value)}")
        if (broken := self.domain.broken(params)) is not None:
            raise Misfit(broken.names[0], f"'{broken.text}' must hold")
        return params


class Seen(StudyStorage):
    """A storage as the sampler and pruner of one study see it: see the module."""

    def __init__(self, storage: StudyStorage, fit: Fit, taken: Sequence[FrozenTrial] = ()) -> None:
        self.__dict__.update(storage.__dict__)  # the same rows, mirrors and pending writes
        self.fit = fit
        self.limits = fit.history.spec.goals.limits
        shown = (self._limited(self._fitted(trial)) for trial in taken)
        self.taken = [trial for trial in shown if trial is not None]
        self._shown: dict[int, tuple[FrozenTrial, FrozenTrial | None]] = {}

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """The trials that fit, by number, after those taken over.  Raises KeyError."""
        own = super().get_all_trials(study_id, deepcopy, states)
        shown = [found for trial in own if (found := self._look(trial)) is not None]
        return [t for t in self.taken if states is None or t.state in states] + shown

    # A genetic sampler notes the parents of each generation with the study; they are of one space.

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Sets an attribute of Optuna's own.  Raises KeyError."""
        super().set_study_system_attr(study_id, self._of_space(key), value)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """All attributes of Optuna's own that are of the present search space.  Raises KeyError."""
        found = super().get_study_system_attrs(study_id)
        keys = {key.rpartition("@")[0] if PARENTS in key else key for key in found}
        known = {key: self._of_space(key) for key in keys}
        return {key: found[stored] for key, stored in known.items() if stored in found}

    def _of_space(self, key: str) -> str:
        return f"{key}@{self.fit.history.since}" if PARENTS in key else key

    def begun(self, study_id: int) -> int:
        """How many trials the study has beside those in its queue, whether they fit or not."""
        return len(super().get_all_trials(study_id, False, BEGUN))

    def earlier(self, study_id: int) -> list[FrozenTrial]:
        """The complete trials that another search space or study made."""
        complete = super().get_all_trials(study_id, False, (TrialState.COMPLETE,))
        seen = (self._look(trial) for trial in complete if self._is_other(trial))
        found = [trial for trial in seen if trial is not None]
        return [t for t in self.taken if t.state == TrialState.COMPLETE] + found

    def check_kind(self, trial_id: int, name: str, found: BaseDistribution) -> None:
        """Nothing: choices may change from revision to revision."""

    def _look(self, trial: FrozenTrial) -> FrozenTrial | None:
        known = self._shown.get(trial._trial_id)
        if known is None or known[0] is not trial:
            known = self._shown[trial._trial_id] = (trial, self._as_seen(trial))
        return known[1]

    def _as_seen(self, trial: FrozenTrial) -> FrozenTrial | None:
        if not trial.params:  # it has not begun; or was cancelled before
            gone = trial.state.is_finished() and self.fit.distributions
            return None if gone else trial
        return self._limited(self._fitted(trial) if self._is_other(trial) else trial)

    def _is_other(self, trial: FrozenTrial) -> bool:
        """Whether a trial was made under another search space, or outside of it."""
        attributes = trial.user_attrs
        return attributes.get(REVISION, 0) < self.fit.history.since or OUTSIDE in attributes

    def _limited(self, trial: FrozenTrial | None) -> FrozenTrial | None:
        """A trial held against the present limits on results; None if it was not measured for them."""
        if trial is None or trial.state != TrialState.COMPLETE:
            return trial
        if trial.constraints.keys() == {limit.text for limit in self.limits}:
            return trial
        twin, goals = changed(trial), self.fit.history.spec.goals
        notes = twin.system_attrs.items()
        twin.system_attrs = {k: v for k, v in notes if not k.startswith(CONSTRAINTS)}
        for limit in self.limits:
            excess = goals.excess(limit, trial.user_attrs.get(RESULTS, {}))
            if excess == math.inf:
                return None
            twin.set_constraint(limit.text, excess)
        return twin

    def _fitted(self, trial: FrozenTrial) -> FrozenTrial | None:
        try:
            params = self.fit.params(trial)
        except Misfit:
            return None
        twin = changed(trial)
        twin.params = params
        twin.distributions = {key: self.fit.distributions[key] for key in params}
        notes = trial.system_attrs.items()
        twin.system_attrs = {k: v for k, v in notes if k.startswith(OF_ALL_SAMPLERS)}
        return twin
