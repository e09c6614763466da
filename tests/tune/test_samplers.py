"""Samplers propose what Optuna's own would."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState

from ucd_ray.tune.domain import Domain
from ucd_ray.tune.samplers import STARTUP, derived_seed, make_sampler


def plain_tpe(number: int) -> BaseSampler:
    return TPESampler(
        multivariate=True,
        constant_liar=True,
        n_startup_trials=STARTUP,
        seed=derived_seed(7, number),
    )


def our_tpe(number: int) -> BaseSampler:
    return make_sampler("tpe", Domain({}), seed=7, number=number)


def space_of(number: int, changes: bool) -> dict[str, BaseDistribution]:
    """What is searched; some params may come late, go or get another range."""
    space: dict[str, BaseDistribution] = {
        "x": FloatDistribution(-1.0, 1.0),
        "y": FloatDistribution(1e-3, 1.0, log=True),
        "single": FloatDistribution(2.0, 2.0),
        "choice": CategoricalDistribution(["a", None]),
    }
    if changes and number > 12:
        space["late"] = FloatDistribution(0.0, 1.0)
        space["y"] = FloatDistribution(1e-2, 1.0, log=True)
    if changes and number > 18:
        del space["choice"]
    return space


@pytest.mark.parametrize("changes", [False, True])
def test_tpe_proposes_what_optunas_own_proposes(changes: bool) -> None:
    found = []
    for make in (plain_tpe, our_tpe):
        study = optuna.create_study(direction="maximize")
        waiting = []
        for number in range(26):
            study.sampler = make(number)
            waiting.append(study.ask(space_of(number, changes)))
            if len(waiting) < 3:
                continue
            trial = waiting.pop(number % 2)  # not in the order of their numbers
            trial.report(trial.params["x"], 1)
            if trial.number % 5 == 0:
                study.tell(trial, state=TrialState.PRUNED)
            elif trial.number % 7 == 0:
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, trial.params["x"] - trial.params["y"])
        found.append([t.params for t in study.get_trials()])
    assert found[0] == found[1]
    assert len({p["x"] for p in found[0]}) == 26
