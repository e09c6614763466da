"""Studies with made-up results, of any size and without training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from tests.conftest import TINY
from ucd_ray.confusion import pack
from ucd_ray.scenarios import parse_scenario
from ucd_ray.tune.database import Database
from ucd_ray.tune.space import StudySpec

SEARCH: dict[str, Any] = {
    "kd.weight": {"low": 1, "high": 200, "log": True},
    "optim.lr_new": {"low": 0.001, "high": 0.1, "log": True},
    "ucd.max_old": {"choices": [256, 1024, None]},
    "ucd.weight": {"low": 0.0, "high": 0.1},
}
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "kd.weight": FloatDistribution(1, 200, log=True),
    "optim.lr_new": FloatDistribution(0.001, 0.1, log=True),
    "optim.epochs_new": IntDistribution(1, 9),
    "ucd.max_old": CategoricalDistribution([256, 1024, None]),
}
CONDITIONAL = ("ucd.weight", FloatDistribution(0.0, 0.1))  # only where ucd.max_old is None
NAMES = ["background", *(f"shape {i}" for i in range(1, 13))]


def make_study(
    folder: Path,
    trials: int = 40,
    *,
    scenario: str = "shapes-8-2",
    confusion: bool = True,
    name: str = "study",
    seed: int = 0,
) -> Database:
    """A study in a new database: of ten trials seven complete, two pruned, one failed."""
    database = Database(f"sqlite:///{folder}/studies.db")
    fill(database, trials, scenario=scenario, confusion=confusion, name=name, seed=seed)
    return database


def fill(
    database: Database,
    trials: int,
    *,
    scenario: str = "shapes-8-2",
    confusion: bool = True,
    name: str = "study",
    seed: int = 0,
) -> None:
    """The same in a database that is there."""
    random = np.random.default_rng(seed)
    classes = parse_scenario(scenario)
    spec = StudySpec.model_validate(
        {"name": name, "recipe": {**TINY, "scenario": scenario}, "search": SEARCH}
    )
    about = {
        **{"scenario": scenario, "setting": "overlapped", "method": "mib+ucd"},
        **{"objective": "miou_all", "select_on": "holdout", "background": True},
        **{"steps": len(classes.steps), "classes": NAMES},
        "step_classes": [list(ids) for ids in classes.steps],
    }
    database.save_spec(name, spec.model_dump_json(), about)
    study = optuna.create_study(
        storage=database.optuna_storage(), study_name=name, direction="maximize"
    )
    study.add_trials([_trial(random, number) for number in range(trials)])
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.COMPLETE:
            for report in _reports(random, trial.values[0], classes.steps, confusion=confusion):
                database.add_step(name, trial.number, report)


def _trial(random: np.random.Generator, number: int) -> FrozenTrial:
    params = {
        "kd.weight": float(math.exp(random.uniform(0, math.log(200)))),
        "optim.lr_new": float(10 ** random.uniform(-3, -1)),
        "optim.epochs_new": int(random.integers(1, 10)),
        "ucd.max_old": [256, 1024, None][random.integers(3)],
    }
    distributions = dict(DISTRIBUTIONS)
    if params["ucd.max_old"] is None:
        params[CONDITIONAL[0]] = float(random.uniform(0, 0.1))
        distributions[CONDITIONAL[0]] = CONDITIONAL[1]
    loss = abs(math.log10(params["optim.lr_new"]) + 2) + 0.2 * abs(
        math.log(params["kd.weight"] / 10)
    )
    value = 45 - 8 * loss + random.normal(0, 1.5)
    state = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL][
        {3: 1, 6: 1, 8: 2}.get(number % 10, 0)
    ]
    epochs = 8 if state == TrialState.COMPLETE else 3
    told = {e: value * (1 - 0.7**e) + random.normal(0, 0.5) for e in range(1, epochs + 1)}
    attributes: dict[str, Any] = {"seconds": 60.0}
    if state == TrialState.FAIL:
        attributes |= {"code": "NAN", "reason": f"loss term 'kd' became nan (iteration {number})"}
    if state == TrialState.PRUNED:
        attributes |= {"code": "PRUNER", "reason": "weaker than the median at epoch 3"}
    return create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        params=params,
        distributions=distributions,
        intermediate_values=told if state != TrialState.FAIL else {},
        user_attrs=attributes,
    )


def _reports(
    random: np.random.Generator,
    value: float,
    steps: tuple[tuple[int, ...], ...],
    *,
    confusion: bool,
) -> list[dict[str, Any]]:
    """Reports of all steps: old classes get worse, new ones start low."""
    reports = []
    for step in range(len(steps)):
        seen = [0, *(c for ids in steps[: step + 1] for c in ids)]
        iou = {
            str(c): float(np.clip(value + 20 - 9 * (step - k) + random.normal(0, 6), 0, 100))
            for k, ids in enumerate([[0], *steps[: step + 1]])
            for c in ids
        }
        iou[str(seen[1])] = math.nan
        old = seen[1 : len(seen) - len(steps[step])] if step else []
        groups = {"all": seen[1:], "base": seen[1 : 1 + len(steps[0])], "old": old}
        groups |= {"new": steps[step], "added": seen[1 + len(steps[0]) :]}
        means = {
            f"miou_{group}": _mean([iou[str(c)] for c in ids]) for group, ids in groups.items()
        }
        means |= {f"{metric}_bg": mean for metric, mean in means.items()}
        means["forgetting"] = 9.0 * step if step else math.nan
        measured = {"means": means, "iou": iou, "forgetting": {}}
        counts = random.integers(0, 2000, (len(seen), len(seen))) ** 2 // 4000
        np.fill_diagonal(counts, random.integers(2000, 9000, len(seen)))
        counts[1] = 0  # a class without truth pixels
        reports.append(
            {
                **{"kind": "step", "step": step, "cached": step == 0, "seconds": 20.0},
                **{"images": 40, "iterations": 28, "select": measured, "val": measured},
                **{"entries": [], "confusion": pack(counts) if step and confusion else None},
            }
        )
    return reports


def _mean(values: list[float]) -> float:
    found = [value for value in values if not math.isnan(value)]
    return sum(found) / len(found) if found else math.nan
