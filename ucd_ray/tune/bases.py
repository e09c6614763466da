"""Base steps of a study: whether its trials share one, and which trial must wait for another's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ucd_ray.checkpoint import StepCache
from ucd_ray.job import Job
from ucd_ray.recipe import Recipe
from ucd_ray.tune.domain import Domain
from ucd_ray.tune.names import METHOD
from ucd_ray.tune.reasons import STEP, Reason
from ucd_ray.tune.spec import StudySpec


def own_bases(spec: StudySpec) -> list[str]:
    """Searched keys that change step 0, so that trials with different values cannot share it."""
    domain = spec.domain()
    return [key for key in sorted(spec.search) if _changes_base(spec, domain, key)]


def num_bases(spec: StudySpec) -> int | None:
    """How many base steps the trials can have; None: perhaps each its own."""
    if set(own_bases(spec)) - {METHOD}:
        return None
    return len(_bases_of_methods(spec)) if METHOD in spec.search else 1


def shares_base(spec: StudySpec) -> bool:
    """Whether all trials start from one base step."""
    return num_bases(spec) == 1


def _changes_base(spec: StudySpec, domain: Domain, key: str) -> bool:
    if key == METHOD:
        return len(_bases_of_methods(spec)) > 1
    for method in spec.methods_with(key):
        beside = domain.beside(key, method)
        values = spec.search[key].samples()
        if len({_base(spec.trial_recipe({**beside, key: value})) for value in values}) > 1:
            return True
    return False


def _bases_of_methods(spec: StudySpec) -> set[str]:
    return {_base(spec.trial_recipe({METHOD: method})) for method in spec.methods}


def _base(recipe: Recipe) -> str:
    """What determines the base step of a recipe, as far as trials of one study can differ in it."""
    return json.dumps([recipe.acting_until(0), recipe.steps.steps[0]], sort_keys=True)


@dataclass
class BaseSteps:
    """Lets trials wait without workers while another one trains their base step."""

    cache: StepCache
    precision: str
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)  # keys of base steps, by trial
    placed: set[str] = field(default_factory=set)  # trials that have workers

    def waits(self, trial: str, job: Job) -> Reason | None:
        """Why a trial cannot have workers yet; None: its base step is there, or for it to train."""
        if trial not in self.steps:
            self.steps[trial] = job.step_key(0, precision=self.precision)
        step = self.steps[trial]
        if self.cache.has(step):
            return None
        other = next((t for t in sorted(self.placed) if self.steps[t] == step), None)
        holder = self.cache.holder(step) if other is None else f"trial {other}"
        if holder is None:
            return None
        return Reason(STEP, f"its base step is being trained by {holder}")

    def place(self, trial: str) -> None:
        """A trial has got workers: what waits says None for, it trains."""
        self.placed.add(trial)

    def ended(self, trial: str) -> None:
        """A trial has ended or stopped, so that it trains nothing."""
        self.placed.discard(trial)
