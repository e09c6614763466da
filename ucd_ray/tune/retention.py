"""Which networks of a study stay on disk: its best trials', what open trials need, and base steps.

Every step that a trial trains is an entry of the step cache.  When a trial has ended and is not among the
best, the entries of its later steps go, unless another trial or run needs them.
"""

from __future__ import annotations

import contextlib
from typing import Any

from optuna.trial import FrozenTrial

from ucd_ray.errors import CheckpointError
from ucd_ray.step_eviction import delete_step, in_use, stored_steps
from ucd_ray.store import Store
from ucd_ray.tune.goals import Goals
from ucd_ray.tune.objectives import best_of, ranked

ENTRIES = "entries"  # user attribute: digests of the entries that a trial has stored


def tidy(study: Any, store: Store, goals: Goals, *, keep_best: int) -> list[str]:
    """Removes entries of finished trials that are not among the best.  Returns their digests.

    A store that fails is no reason to end a study: what stays is looked at again with the next trial.
    """
    trials = study.get_trials(deepcopy=False)
    kept = best_trials(trials, goals, keep_best)
    needed = {digest for trial in trials if trial.number in kept for digest in entries_of(trial)}
    unneeded = {digest for trial in trials for digest in entries_of(trial)} - needed
    removed: list[str] = []
    if not unneeded:  # listing a store is slow where it is far away
        return removed
    with contextlib.suppress(CheckpointError):
        there = [step for step in stored_steps(store) if step.digest in unneeded]
        used = in_use(store) if there else {}
        for step in there:
            if step.digest not in used:
                delete_step(store, step)
                removed.append(step.digest)
    return removed


def best_trials(trials: list[FrozenTrial], goals: Goals, count: int) -> set[int]:
    """Numbers of the best complete trials, all of a Pareto set among them, and of all that are open."""
    best = best_of(goals, trials)
    front = set(best.numbers) if best else set()
    kept = {trial.number for trial in ranked(goals, trials)[:count]}
    opened = {trial.number for trial in trials if not trial.state.is_finished()}
    return front | kept | opened


def entries_of(trial: FrozenTrial) -> list[str]:
    """The entries that a trial has stored, base steps left out."""
    return list(trial.user_attrs.get(ENTRIES, []))
