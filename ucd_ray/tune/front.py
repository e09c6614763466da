"""The Pareto set of trials that stream by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ucd_ray.tune.chunks import StoredTrial
from ucd_ray.tune.goals import Goals
from ucd_ray.tune.objectives import pareto


def pareto_set(trials: Iterable[StoredTrial], goals: Goals) -> set[int]:
    """Numbers of the complete trials that no other beats, of those that break no limit on results."""
    numbers, points = [], []
    for trial in trials:
        if trial.value is not None and not goals.broken(trial.results):
            numbers.append(trial.number)
            points.append([trial.results[name] for name in goals.objectives])
    values = np.array(points).reshape(-1, len(goals.objectives)) * goals.signs
    return {number for number, is_in in zip(numbers, pareto(values), strict=True) if is_in}
