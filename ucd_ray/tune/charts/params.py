"""Params as axes: where their values lie, and which of them matter most."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from ucd_ray.drawing.chart import Axis
from ucd_ray.errors import NotDrawn
from ucd_ray.tune.charts.source import Source, thinned
from ucd_ray.tune.charts.words import unit_of
from ucd_ray.tune.progress import short

NEEDED = 4  # complete trials, for importances to mean anything
USED = 500  # trials that importances are computed from
RESAMPLES = 20
MOST = 12  # params in one chart


@dataclass(frozen=True)
class Param:
    """A searched key: its axis, and where values lie on it."""

    key: str
    axis: Axis
    choices: tuple[Any, ...]  # in the order of the axis' names

    def place(self, trial: FrozenTrial) -> float:
        """The trial's value on the axis; NaN if the trial does not have it."""
        if self.key not in trial.params:
            return math.nan
        value = trial.params[self.key]
        return float(self.choices.index(value)) if self.choices else float(value)


def params_of(trials: Sequence[FrozenTrial]) -> list[Param]:
    """All params that the trials have, by key; ranges are the widest that were searched."""
    found: dict[str, list[BaseDistribution]] = {}
    for trial in trials:
        for key, distribution in trial.distributions.items():
            known = found.setdefault(key, [])
            if distribution not in known:
                known.append(distribution)
    return [_param(key, found[key]) for key in sorted(found)]


def _param(key: str, distributions: list[Any]) -> Param:
    if isinstance(distributions[0], CategoricalDistribution):
        choices = tuple(dict.fromkeys(c for d in distributions for c in d.choices))
        names = tuple(short(choice) for choice in choices)
        return Param(
            key, Axis(key, unit_of(key), names=names, low=-0.5, high=len(names) - 0.5), choices
        )
    low, high = min(d.low for d in distributions), max(d.high for d in distributions)
    log = any(d.log for d in distributions)
    whole = all(isinstance(d, IntDistribution) for d in distributions) and not log
    return Param(key, Axis(key, unit_of(key), log=log, whole=whole, low=low, high=high), ())


@dataclass(frozen=True)
class Importance:
    """How much a param mattered: the share of all, with the interval of resampled trials."""

    key: str
    share: float  # percent
    low: float  # 10th percentile of the resamples
    high: float  # 90th


def importances(source: Source, objective: int = 0) -> list[Importance]:
    """The importance of every param for one objective, the most important first.

    PED-ANOVA as Optuna computes it: how far the params of the best tenth are from those of all
    complete trials.  It takes params that only some trials have.  Raises NotDrawn with too few trials.
    """
    known = source.shared.get(("importances", objective))
    if known is None:
        known = source.shared["importances", objective] = _importances(source, objective)
    return known


def _importances(source: Source, objective: int) -> list[Importance]:
    trials = [t for t in source.valued if t.number in source.even]
    if len(trials) < NEEDED:
        raise NotDrawn(f"importances need {NEEDED} complete trials; there are {len(trials)}")
    if not any(trial.params for trial in trials):
        raise NotDrawn("nothing was searched")
    trials = thinned(trials, USED)
    random = np.random.default_rng(0)
    shares = _shares(source, trials, objective)
    resampled: dict[str, list[float]] = {key: [] for key in shares}
    for _ in range(RESAMPLES):
        some = [trials[i] for i in random.integers(0, len(trials), len(trials))]
        for key, share in _shares(source, some, objective).items():
            resampled[key].append(share)
    return [
        Importance(key, share, *np.percentile(resampled[key] or [share], (10, 90)).tolist())
        for key, share in sorted(shares.items(), key=lambda item: -item[1])
    ]


def _shares(source: Source, trials: list[FrozenTrial], objective: int) -> dict[str, float]:
    """Percent by key."""
    maximized = source.objectives[objective].maximized
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of every study made in memory
    study = optuna.create_study(direction="maximize" if maximized else "minimize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                value=t.values[objective], params=t.params, distributions=t.distributions
            )
            for t in trials
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {key: 100 * share for key, share in found.items()}


def most_important(source: Source, params: Sequence[Param], objective: int = 0) -> list[Param]:
    """The params, the most important ones first; by key where importances cannot be had."""
    try:
        order = {found.key: place for place, found in enumerate(importances(source, objective))}
    except NotDrawn:
        return list(params)
    return sorted(params, key=lambda param: order.get(param.key, len(order)))
