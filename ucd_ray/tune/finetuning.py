"""What a trial is held against: its recipe without distillation, as a recipe and as a study of one trial.

Needs neither torch nor what draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ucd_ray.recipe import Recipe
from ucd_ray.tune.spec import StudySpec


def finetuned(recipe: Recipe) -> Recipe:
    """The same recipe without distillation: what it shares with the method is as in the trial."""
    return recipe.with_overrides({"method": "finetune"})


def finetuning_study(spec: StudySpec, params: Mapping[str, Any], *, name: str) -> StudySpec:
    """The study that trains it for a trial with these params, once and to its end.

    On workers as the trial's: the step cache keeps what other numbers of them trained apart.
    Raises ConfigError.
    """
    return StudySpec(
        name=name,
        recipe=finetuned(spec.trial_recipe(params)).flat(),
        trials=1,
        pruner="none",
        workers=spec.workers,
        cpus_per_worker=spec.cpus_per_worker,
        gpus_per_worker=spec.gpus_per_worker,
    )
