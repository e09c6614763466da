"""A study as the paper table sees it: its protocol, its best trials, their means by group of classes."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from ucd_ray.class_orders import in_order
from ucd_ray.published import Protocol, protocol_of
from ucd_ray.recipe import Recipe
from ucd_ray.scenarios import Scenario
from ucd_ray.tune.chunks import StoredTrial, trial_chunks
from ucd_ray.tune.database import Database
from ucd_ray.tune.front import pareto_set
from ucd_ray.tune.goals import Goals, goals_of
from ucd_ray.tune.groups import Group, groups_of
from ucd_ray.tune.replicates import replicates_of
from ucd_ray.tune.statistics import Spread, spread
from ucd_ray.tune.tables import class_table

BEST = 3  # trials of a study, unless another number is asked for


@dataclass(frozen=True)
class Measured:
    """A study, and whether means count background.  sets: Pareto sets found so far, by trial"""

    database: Database
    name: str
    background: str
    sets: dict[int, int] = field(default_factory=dict, compare=False)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What tables say about the study."""
        return self.database.about(self.name)

    @cached_property
    def stored(self) -> dict[str, Any]:
        """Its spec."""
        return self.database.stored_spec(self.name)

    @cached_property
    def recipe(self) -> Recipe:
        """What its trials share, with the defaults of when it ran."""
        return Recipe.from_flat(self.about.get("recipe") or self.stored["recipe"])

    @cached_property
    def goals(self) -> Goals:
        """What it was after."""
        return goals_of(self.stored)

    @cached_property
    def class_orders(self) -> int:
        """Over how many orders of classes the means of its trials go."""
        return len({replicate.order for replicate in replicates_of(self.stored)})

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The groups of classes that have a column."""
        by_step = self.class_orders > 1
        background = self.background == "with"
        return groups_of(self.recipe.scenario, background=background, by_step=by_step)

    def protocol(self, recipe: Recipe | None = None) -> Protocol:
        """What its trials, or one with another recipe, were measured on; the joint bound is left out."""
        return protocol_of(
            recipe or self.recipe,
            images=self.about.get("images"),
            background=self.background,
            class_orders=self.class_orders,
        )

    def recipe_of(self, trial: StoredTrial) -> Recipe:
        """The recipe of a trial."""
        return self.recipe.with_overrides(trial.params)

    def methods(self) -> set[str]:
        """The methods of its trials."""
        return set(str(self.about.get("method", "")).split(", "))

    # Its best trials.

    def best(self, count: int | None, *, joint: bool = False) -> list[StoredTrial]:
        """Its best complete trials, of all other methods or of `joint`, at most `count`.

        With several objectives the Pareto set of the trials that break no limit, by the first of them.
        """
        if not self.goals.several:
            assert count is not None
            return heapq.nlargest(count, self._complete(joint), key=self._merit)
        numbers = pareto_set(self._complete(joint), self.goals)
        self.sets.update(dict.fromkeys(numbers, len(numbers)))
        found = [trial for trial in self._complete(joint) if trial.number in numbers]
        return sorted(found, key=self._merit, reverse=True)[:count]

    def _complete(self, joint: bool) -> Iterator[StoredTrial]:
        for trials in trial_chunks(self.database, self.name):
            for trial in trials:
                method = trial.params.get("method", self.recipe.method)
                if trial.value is not None and (method == "joint") == joint:
                    yield trial

    def _merit(self, trial: StoredTrial) -> tuple[bool, float]:
        return self.goals.merit(trial.value or 0.0, trial.results)

    def broken(self, trial: StoredTrial) -> list[str]:
        """The limits on results that a trial breaks."""
        return self.goals.broken(trial.results)

    def set_of(self, trial: StoredTrial) -> str | None:
        """In which Pareto set a trial of `best` is, in words; None with one objective."""
        if trial.number not in self.sets:
            return None
        metrics = ", ".join(self.goals.objectives)
        return f"in the Pareto set of {self.sets[trial.number]} for {metrics}"

    # Their means.

    def means(self, trial: StoredTrial) -> dict[str, Spread]:
        """mIoU of each group over a trial's replicates, in percent on val after the last step."""
        c = class_table.c
        last = len(self.recipe_of(trial).steps.steps) - 1
        of_trial = (c.study == self.name) & (c.number == trial.number) & (c.step == last)
        query = sa.select(c.replicate, c.class_id, c.iou).where(of_trial, c.images == "val")
        replicates: dict[int, dict[int, float | None]] = {}
        for row in self.database.read(lambda connection: connection.execute(query).all()):
            place = self._places.get(row.replicate, {}).get(row.class_id, row.class_id)
            replicates.setdefault(row.replicate, {})[place] = row.iou
        found = {}
        for group in self.groups:
            means = [mean for iou in replicates.values() if (mean := group.mean(iou)) is not None]
            if means:
                found[group.name] = spread(means)
        return found

    @cached_property
    def _places(self) -> dict[int, Mapping[int, int]]:
        """By replicate, the class that has the place of each of its classes in the published order."""
        scenario = self.recipe.scenario
        return {
            replicate.number: dict(
                zip(_learned(in_order(scenario, replicate.order)), _learned(scenario), strict=True)
            )
            for replicate in replicates_of(self.stored)
            if replicate.order
        }


def _learned(scenario: Scenario) -> list[int]:
    return [class_id for step in scenario.steps for class_id in step]
