"""Samplers by name: how new params are proposed.  All are Optuna's.

A sampler is made anew for every trial, and its random state follows from study seed and trial number alone:
a study that goes on proposes what it would have proposed.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace

from ucd_ray.tune.space import Parameter

Search = Mapping[str, Parameter]

STARTUP = 5  # trials before a model of the objective is made


def make_sampler(name: str, search: Search, *, seed: int, number: int) -> BaseSampler:
    """The sampler called `name` for trial `number` of a study."""
    with warnings.catch_warnings():  # some options are marked experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return MAKERS[name](search, seed, derived_seed(seed, number))


def derived_seed(seed: int, number: int) -> int:
    """A 32-bit seed for one trial of a study."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4])


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


def _tpe(search: Search, study_seed: int, seed: int) -> BaseSampler:
    return _Tpe(multivariate=True, constant_liar=True, n_startup_trials=STARTUP, seed=seed)


def _random(search: Search, study_seed: int, seed: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _gp(search: Search, study_seed: int, seed: int) -> BaseSampler:
    return optuna.samplers.GPSampler(
        seed=seed,
        n_startup_trials=STARTUP,
        independent_sampler=optuna.samplers.RandomSampler(seed=seed),
    )


def _cmaes(search: Search, study_seed: int, seed: int) -> BaseSampler:
    """Choices, of which CMA-ES knows nothing, come from TPE."""
    return optuna.samplers.CmaEsSampler(
        seed=seed,
        independent_sampler=_tpe(search, study_seed, seed),
        warn_independent_sampling=False,
    )


def _qmc(search: Search, study_seed: int, seed: int) -> BaseSampler:
    """The study's seed scrambles one sequence, of which each trial takes the next point."""
    return optuna.samplers.QMCSampler(
        scramble=True,
        seed=study_seed,
        independent_sampler=optuna.samplers.RandomSampler(seed=seed),
        warn_independent_sampling=False,
        warn_asynchronous_seeding=False,
    )


class _Grid(optuna.samplers.GridSampler):
    """Ends no study: the book does, when all points are tried."""

    def after_trial(self, *args: object) -> None:
        """Nothing."""


class _BruteForce(optuna.samplers.BruteForceSampler):
    """As _Grid."""

    def after_trial(self, *args: object) -> None:
        """Nothing."""


def _grid(search: Search, study_seed: int, seed: int) -> BaseSampler:
    return _Grid(
        {key: list(parameter.points() or ()) for key, parameter in search.items()}, study_seed
    )


def _brute_force(search: Search, study_seed: int, seed: int) -> BaseSampler:
    return _BruteForce(seed=seed)


MAKERS: dict[str, Callable[[Search, int, int], BaseSampler]] = {
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "qmc": _qmc,
    "random": _random,
    "grid": _grid,
    "brute-force": _brute_force,
}
