"""Racing: a trial that is weaker than the best one over its first replicates is not measured further.

The test is Wilcoxon's, in Optuna's pruner.  It sees the replicates that both trials have, as its safeguard
compares plain means: over other replicates they would tell hard seeds from easy ones, not trials.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping

import optuna
from optuna.trial import TrialState, create_trial

from ucd_ray.tune.replicates import FEWEST


def is_hopeless(values: Mapping[int, float], best: Mapping[int, float], *, p: float) -> bool:
    """Whether a trial is weaker than the best one, with a p below the one given.

    values, best: by replicate; larger is better
    """
    shared = sorted(values.keys() & best.keys())
    if len(shared) < FEWEST:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=p, n_startup_steps=FEWEST)
    study = optuna.create_study(direction="maximize")
    theirs = {k: best[k] for k in shared}
    mean = statistics.fmean(theirs.values())
    study.add_trial(create_trial(value=mean, intermediate_values=theirs))
    mine = {k: values[k] for k in shared}
    return pruner.prune(study, create_trial(state=TrialState.RUNNING, intermediate_values=mine))
