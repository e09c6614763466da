"""How a trial gets its params: from a sampler, key after key, as far as each exists beside the others.

A proposal that breaks a constraint leaves no trace: the sampler is asked again with another random state,
and after `PROPOSALS` times params are drawn at random until some fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from ucd_ray.tune.domain import Domain
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.samplers import derived_seed, given_params, make_sampler

PROPOSALS = 20  # of a sampler for one trial, before params are drawn at random


def distribution(parameter: Parameter) -> BaseDistribution:
    """The Optuna distribution of a parameter."""
    if parameter.choices is not None:
        return CategoricalDistribution(parameter.choices)
    low, high, log = parameter.low, parameter.high, parameter.log
    assert low is not None and high is not None
    if parameter.type == "int":
        step = int(parameter.step or 1)
        return IntDistribution(int(low), int(high), log=log, step=step)
    return FloatDistribution(low, high, log=log, step=parameter.step)


class Unwritten:
    """A storage as a draft of a trial sees it: the params that it sets are not written."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage

    def set_trial_param(self, *param: Any) -> None:
        """Nothing: the draft itself keeps it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)


def contains(found: BaseDistribution, value: Any) -> bool:
    """Whether a value lies in a range, on its steps, or is a choice."""
    try:
        return bool(found._contains(found.to_internal_repr(value)))
    except (ValueError, TypeError):  # it is none of the choices, or no number
        return False


def holding(found: BaseDistribution, value: Any) -> BaseDistribution:
    """A distribution like this one that has a value outside of it too."""
    if contains(found, value):
        return found
    if isinstance(found, CategoricalDistribution):
        return CategoricalDistribution((*found.choices, value))
    if not isinstance(value, int | float):
        return CategoricalDistribution((value,))
    kind = type(found) if isinstance(value, int) else FloatDistribution
    return kind(min(found.low, value), max(found.high, value), log=found.log and value > 0)


class Proposer:
    """Asks the sampler of a study, with the same answer for the same study, trial and history.

    earlier: complete trials that no sampler of this search space proposed
    """

    def __init__(
        self,
        study: optuna.Study,
        domain: Domain,
        sampler: str,
        seed: int,
        earlier: Callable[[], Sequence[FrozenTrial]] = tuple,
    ) -> None:
        self.study, self.domain, self.sampler, self.seed = study, domain, sampler, seed
        self.earlier = earlier
        self.distributions = {key: distribution(domain.search[key]) for key in domain.order}

    def ask(self) -> optuna.Trial:
        """The next trial of the study with its params: one that waits, else a new one."""
        self._rest()
        return self.fill(self.study.ask())

    def adopt(self, trial_id: int) -> optuna.Trial:
        """A trial that another driver left."""
        self._rest()
        return self.fill(optuna.Trial(self.study, trial_id))

    def _rest(self) -> None:
        """A trial that is made or opened asks the sampler of its study: it has one for each trial later."""
        self.study.sampler = optuna.samplers.RandomSampler(seed=0)

    def fill(self, trial: optuna.Trial) -> optuna.Trial:
        """A trial with params, which are all written at once; those that it was queued with stay.

        They break a constraint only if those that were given do.
        """
        found = self.study._storage.get_trial(trial._trial_id)
        given = given_params(found)
        if found.params:
            return trial
        earlier = self.earlier() if self.sampler == "cmaes" else ()
        if self.domain.broken(given) is None:
            for attempt in range(PROPOSALS):
                self.study.sampler = make_sampler(
                    self.sampler,
                    self.domain,
                    seed=self.seed,
                    number=trial.number,
                    attempt=attempt,
                    earlier=earlier,
                )
                params = self._draft(trial, given)
                if self.domain.broken(params) is None:
                    return self._write(trial, params)
        random = Random(derived_seed(self.seed, trial.number, PROPOSALS))
        return self._write(trial, self.domain.draw_fitting(random, given))

    def _draft(self, trial: optuna.Trial, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the sampler proposes for a trial beside what it was given."""
        draft = optuna.Trial(self.study, trial._trial_id)
        draft.storage = Unwritten(draft.storage)
        for key in self.domain.order:
            if self.domain.exists(key, draft.params):
                draft._suggest(key, self._range(key, given))
        return dict(draft.params)

    def _range(self, key: str, given: Mapping[str, Any]) -> BaseDistribution:
        """What a key is drawn from, widened to what a user gave outside of it."""
        found = self.distributions[key]
        return holding(found, given[key]) if key in given else found

    def _write(self, trial: optuna.Trial, params: Mapping[str, Any]) -> optuna.Trial:
        storage = self.study._storage
        for key, value in params.items():
            found = self._range(key, params)
            storage.set_trial_param(trial._trial_id, key, found.to_internal_repr(value), found)
        self._rest()
        return optuna.Trial(self.study, trial._trial_id)
