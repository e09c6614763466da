"""Samplers by name: how new params are proposed.  All but grid and brute-force are Optuna's.

A sampler is made anew for every trial, and its random state follows from study seed and trial number alone:
a study that goes on proposes what it would have proposed.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any
from weakref import WeakKeyDictionary

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial

from ucd_ray.tune.domain import Domain

STARTUP = 5  # trials before a model of the objective is made
WARM = 10  # complete trials of another search space or study, from which CMA-ES starts
POPULATION = 16  # trials of a generation; Optuna's 50 are more than most studies have


def make_sampler(
    name: str,
    domain: Domain,
    *,
    seed: int,
    number: int,
    attempt: int = 0,
    earlier: Sequence[FrozenTrial] = (),
) -> BaseSampler:
    """The sampler called `name` for trial `number` of a study.

    attempt: 0, and one more each time that what it proposed broke a constraint
    earlier: complete trials that no sampler of this search space proposed
    """
    with warnings.catch_warnings():  # some options are marked experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        own = derived_seed(seed, number, attempt)
        if name == "cmaes":
            return _cmaes(domain, seed, own, earlier)
        return MAKERS[name](domain, seed, own)


def derived_seed(seed: int, number: int, attempt: int = 0) -> int:
    """A 32-bit seed for one trial of a study."""
    text = f"{seed}:{number}" + (f":{attempt}" if attempt else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


class _Tpe(optuna.samplers.TPESampler):
    """Finds the params that all trials share without looking at each of them for each trial.

    Only what is new since the last trial is looked at, as in a sampler that is kept: the same result.
    """

    spaces: WeakKeyDictionary[optuna.Study, IntersectionSearchSpace] = WeakKeyDictionary()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The params that are proposed together."""
        space = self.spaces.setdefault(study, IntersectionSearchSpace(include_pruned=True))
        shared = space.calculate(study, use_cache=True)
        return {name: one for name, one in shared.items() if not one.single()}


def _tpe(domain: Domain, study_seed: int, seed: int) -> BaseSampler:
    """Params that not all trials have are proposed in groups of those that occur together."""
    grouped = any(domain.conditions.values())
    kind = optuna.samplers.TPESampler if grouped else _Tpe
    return kind(
        multivariate=True, group=grouped, constant_liar=True, n_startup_trials=STARTUP, seed=seed
    )


def _random(domain: Domain, study_seed: int, seed: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _gp(domain: Domain, study_seed: int, seed: int) -> BaseSampler:
    return optuna.samplers.GPSampler(
        seed=seed,
        n_startup_trials=STARTUP,
        independent_sampler=optuna.samplers.RandomSampler(seed=seed),
    )


def _cmaes(
    domain: Domain, study_seed: int, seed: int, earlier: Sequence[FrozenTrial] = ()
) -> BaseSampler:
    """Choices, of which CMA-ES knows nothing, come from TPE."""
    return optuna.samplers.CmaEsSampler(
        seed=seed,
        independent_sampler=_tpe(domain, study_seed, seed),
        warn_independent_sampling=False,
        source_trials=_numbers(domain, earlier) or None,
    )


def _numbers(domain: Domain, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials with what CMA-ES searches: ranges, of keys that all trials have.  None if they are too few."""
    if len(trials) < WARM:
        return []
    keys = [
        key
        for key, one in domain.search.items()
        if one.choices is None and one.count != 1 and not domain.conditions[key]
    ]
    found = [copy.copy(trial) for trial in trials]
    for twin in found:
        twin.distributions = {key: twin.distributions[key] for key in keys}
        twin.params = {key: twin.params[key] for key in keys}
    return found if keys else []


def _nsga2(domain: Domain, study_seed: int, seed: int) -> BaseSampler:
    return optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)


def _nsga3(domain: Domain, study_seed: int, seed: int) -> BaseSampler:
    return optuna.samplers.NSGAIIISampler(population_size=POPULATION, seed=seed)


def _qmc(domain: Domain, study_seed: int, seed: int) -> BaseSampler:
    """The study's seed scrambles one sequence, of which each trial takes the next point."""
    return optuna.samplers.QMCSampler(
        scramble=True,
        seed=study_seed,
        independent_sampler=optuna.samplers.RandomSampler(seed=seed),
        warn_independent_sampling=False,
        warn_asynchronous_seeding=False,
    )


class _Points(BaseSampler):
    """Tries all points that conditions and constraints leave, each once, in an order of chance.

    Optuna's own grid and brute force would try points that differ only in keys without effect, and those
    that a constraint forbids.
    """

    def __init__(self, domain: Domain, seed: int) -> None:
        self.domain, self.seed = domain, seed
        self.chosen: dict[str, Any] = {}

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """None: keys depend on one another."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The value of one key at the point that is this trial's."""
        if param_name not in self.chosen:
            self.chosen = self._choose(study, trial, param_name)
        return self.chosen[param_name]

    def _choose(self, study: optuna.Study, trial: FrozenTrial, key: str) -> dict[str, Any]:
        """The first point that agrees best with what is given and that no other trial has."""
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        taken = {point_of(given_params(other)) for other in others}
        given = given_params(trial)
        points = [point for point in self.domain.points if key in point]
        Random(self.seed).shuffle(points)
        return max(
            points,
            key=lambda point: (
                sum(point.get(k, not v) == v for k, v in given.items()),
                point_of(point) not in taken,
            ),
        )


def point_of(params: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    """Params so that equal ones are equal: the numbers of a range are sums of its steps."""
    return frozenset(
        (key, float(f"{value:.12g}") if isinstance(value, int | float) else value)
        for key, value in params.items()
    )


def given_params(trial: FrozenTrial) -> dict[str, Any]:
    """The params that a trial has, or will have because they were queued."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _points(domain: Domain, study_seed: int, seed: int) -> BaseSampler:
    return _Points(domain, study_seed)


MAKERS: dict[str, Callable[[Domain, int, int], BaseSampler]] = {
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "qmc": _qmc,
    "random": _random,
    "grid": _points,
    "brute-force": _points,
}
