"""Replicates: the same params measured under several seeds and class orders.

Replicate 0 is the recipe as it stands.  Replicate k has a seed and a class order of its own, which depend
on the recipe and k alone: trials share its base step, and are compared with each other replicate by
replicate.  Orders change fastest, so that a trial soon has been measured under all of them.
Needs neither torch, Optuna nor Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ucd_ray.class_orders import count_orders, in_order
from ucd_ray.errors import ConfigError, DataError
from ucd_ray.job import Job
from ucd_ray.recipe import Recipe

if TYPE_CHECKING:
    from ucd_ray.tune.spec import StudySpec

SEEDS = 2**32
FEWEST = 2  # replicates before racing can drop a trial


@dataclass(frozen=True)
class Replicate:
    """Under what one of a trial's runs is measured."""

    number: int  # 0, 1, ...
    seed: int
    order: int  # of classes; 0: the published one

    def overrides(self, recipe: Recipe) -> dict[str, Any]:
        """What it changes in a recipe; nothing, if it is replicate 0.  Raises ScenarioError."""
        changed: dict[str, Any] = {} if self.seed == recipe.seed else {"seed": self.seed}
        if self.order:
            scenario = in_order(recipe.scenario, self.order)
            changed["scenario"] = scenario.model_dump(mode="json")
        return changed

    @property
    def label(self) -> str:
        """Under what, in words."""
        return f"seed {self.seed}" + (f", class order {self.order}" if self.order else "")


def replicates_of(stored: Mapping[str, Any]) -> list[Replicate]:
    """The replicates of a spec, as a mapping: every class order under every seed.

    Specs of earlier versions do not say; their trials have one replicate.
    """
    seeds, orders = (int(stored.get(name, 1)) for name in ("seeds", "class_orders"))
    first = stored.get("recipe", {}).get("seed", Recipe.model_fields["seed"].default)
    pairs = ((seed, order) for seed in range(seeds) for order in range(orders))
    return [Replicate(k, (first + seed) % SEEDS, order) for k, (seed, order) in enumerate(pairs)]


def check_replicates(spec: StudySpec, recipe: Recipe) -> None:
    """Raises ConfigError if a recipe cannot be measured under so many seeds and class orders."""
    if spec.seeds > 1 and "seed" in spec.search:
        raise ConfigError(
            f"key 'seed' is searched, but seeds ({spec.seeds}) gives each replicate its own; "
            "leave one out"
        )
    goals = spec.goals
    if spec.replicates > 1 and (not goals.plain or goals.limits or min(goals.signs) < 0):
        raise ConfigError(
            f"seeds ({spec.seeds}) and class_orders ({spec.class_orders}) need one objective that is "
            "maximised, without limits on results; leave them out, or use one such objective"
        )
    if spec.class_orders == 1:
        return
    orders, name = spec.class_orders, recipe.scenario.name
    if not isinstance(spec.recipe["scenario"], str):
        raise ConfigError(
            f"class_orders ({orders}): scenario '{name}' is a file that fixes the order of its "
            "classes; use a scenario by name, such as voc-15-1, or leave class orders out"
        )
    if orders > count_orders(recipe.scenario):
        raise ConfigError(
            f"class_orders ({orders}): the {len(recipe.scenario.steps)} step(s) of scenario '{name}' "
            f"have {count_orders(recipe.scenario)} class order(s)"
        )
    fixed = {"model.base": recipe.model.base, "data.split_lists": recipe.data.split_lists}
    for key, value in fixed.items():
        if value is not None:
            raise ConfigError(
                f"class_orders ({orders}): {key} ('{value}') is for the published order of classes "
                "alone; leave one out"
            )


def replicate_jobs(job: Job, spec: StudySpec) -> list[Job]:
    """The jobs of all replicates, from the study's.  Raises DataError if one has a step without images."""
    found = []
    for replicate in replicates_of(spec.model_dump()):
        if replicate.number == 0:
            found.append(job)
            continue
        overrides = replicate.overrides(job.recipe)
        own = replace(job, recipe=job.recipe.with_overrides(overrides))
        try:
            assert own.plan  # raises on bad input
        except DataError as error:
            raise DataError(f"replicate {replicate.number} ({replicate.label}): {error}") from None
        found.append(own)
    return found


def undroppable(count: int, racing: float | None) -> int:
    """How many replicates of a trial run in any case: racing cannot drop it before.

    racing: the p below which a trial is dropped; the least p of n pairs is one half to the power of n.
    """
    if racing is None:
        return count
    return next((n for n in range(FEWEST, count) if 0.5**n < racing), count)


def next_replicate(started: int, open_runs: int, *, count: int, surely: int) -> int | None:
    """The replicate of a trial to start now, while other trials could be started instead.

    Those that run in any case may run side by side; a further one waits for those before it, which may
    make it superfluous.  None: there is none now.
    """
    if started == count or (started >= surely and open_runs):
        return None
    return started
