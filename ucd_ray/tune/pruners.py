"""Pruners by name: when a weak trial is stopped.  All but `forgetting` are Optuna's.

A pruner is written as its name with options: `median`, `percentile:percentile=25,warmup=3`.  It sees the
objective after every epoch of the steps after 0; the rung counts these epochs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ucd_ray.errors import ConfigError
from ucd_ray.tune.names import pruner_options

RACING = "RACING"  # code of a trial that was weaker than the best one in its first replicates
PRUNED_CODES = ("PRUNER", "FORGETTING", RACING)
DROPS = "drops"  # user attribute of a trial: {rung: drop of old-class mIoU since its base step}


def make_pruner(text: str) -> BasePruner:
    """The pruner that `text` describes.  Raises ConfigError."""
    name, options = pruner_options(text)
    try:
        return MAKERS[name](options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"pruner '{text}': {error}") from None


def why_code(text: str) -> str:
    """The reason code of a trial that this pruner stops."""
    return "FORGETTING" if pruner_options(text)[0] == "forgetting" else "PRUNER"


def why_pruned(text: str, rung: int) -> str:
    """Why a pruner stopped a trial, in words."""
    name, _ = pruner_options(text)
    return f"{WORDS[name]} at epoch {rung}"


@dataclass
class ForgettingPruner(BasePruner):
    """Stops a trial that forgets too much: the drop of its old-class mIoU since its own base step.

    limit: percent points that may be lost; startup: trials before drops are compared; warmup: rungs
    without a decision.  A drop is too large above the limit, or above `factor` times the median drop of
    the finished trials at the same rung.
    """

    limit: float
    startup: int
    warmup: int
    factor: float

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the last reported drop is too large."""
        drops = trial.user_attrs.get(DROPS, {})
        rung = trial.last_step
        if rung is None or rung <= self.warmup or str(rung) not in drops:
            return False
        drop = drops[str(rung)]
        if drop > self.limit:
            return True
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [
            other.user_attrs[DROPS][str(rung)]
            for other in finished
            if str(rung) in other.user_attrs.get(DROPS, {})
        ]
        return len(others) >= self.startup and drop > self.factor * max(
            statistics.median(others), 1
        )


Options = Mapping[str, float]

MAKERS: dict[str, Callable[[Options], BasePruner]] = {
    "none": lambda options: optuna.pruners.NopPruner(),
    "median": lambda options: optuna.pruners.MedianPruner(*_common(options)),
    "percentile": lambda options: optuna.pruners.PercentilePruner(
        options["percentile"], *_common(options)
    ),
    "successive-halving": lambda options: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=int(options["first"]), reduction_factor=int(options["reduction"])
    ),
    "hyperband": lambda options: optuna.pruners.HyperbandPruner(
        min_resource=int(options["first"]),
        max_resource=int(options["last"]) or "auto",
        reduction_factor=int(options["reduction"]),
    ),
    "patient": lambda options: optuna.pruners.PatientPruner(
        optuna.pruners.MedianPruner(*_common(options)), patience=int(options["patience"])
    ),
    "threshold": lambda options: optuna.pruners.ThresholdPruner(
        lower=options["lower"], n_warmup_steps=int(options["warmup"])
    ),
    "forgetting": lambda options: ForgettingPruner(
        options["limit"], int(options["startup"]), int(options["warmup"]), options["factor"]
    ),
}
WORDS = {
    "median": "weaker than the median of earlier trials",
    "percentile": "weaker than the percentile of earlier trials",
    "successive-halving": "not among the best of its rung (successive halving)",
    "hyperband": "not among the best of its rung (hyperband)",
    "patient": "no better for a while and weaker than the median of earlier trials",
    "threshold": "below the threshold",
    "forgetting": "forgot too much of the base step",
}


def _common(options: Options) -> tuple[int, int]:
    return int(options["startup"]), int(options["warmup"])


def drops_with(attributes: Mapping[str, Any], rung: int, drop: float) -> dict[str, float]:
    """The drops of a trial with one more."""
    return {**attributes.get(DROPS, {}), str(rung): drop}
