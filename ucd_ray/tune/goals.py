"""What a study wants: objectives with their directions, limits on results, and the scalar that prunes.

Metrics, all on the images of `eval.select_on`, after the last step or, with `step<t>_` before the name,
after step t:

    miou_all|base|added|old|new   percent, each also as `*_bg` with background
    forgetting                    points, mean over old classes of the best earlier IoU minus the last
    drop                          points that `miou_base` lost since step 0
    seconds                       that the training of all steps took, cached or not; with `step<t>_` of one

Needs neither torch, Optuna nor Ray.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.recipe import Recipe
from ucd_ray.tune.constraints import Constraint, parse
from ucd_ray.tune.names import COSTS, EPOCHLY, OBJECTIVES

METRIC = re.compile(rf"(?:step(\d+)_)?({'|'.join(OBJECTIVES)})")
LATER = ("miou_old", "miou_added", "forgetting", "drop")  # need a second step


@dataclass(frozen=True)
class Goals:
    """Objectives, limits on results, and the scalar on which trials are pruned (null: nothing declared)."""

    objectives: tuple[str, ...]
    limits: tuple[Constraint, ...] = ()
    prune_on: str | None = None

    @property
    def several(self) -> bool:
        """Whether there is more than one objective."""
        return len(self.objectives) > 1

    @cached_property
    def signs(self) -> tuple[int, ...]:
        """1 for each objective of which more is better, else -1."""
        return tuple(sign_of(name) for name in self.objectives)

    @property
    def directions(self) -> list[str]:
        """The same in Optuna's words."""
        return ["maximize" if sign > 0 else "minimize" for sign in self.signs]

    @property
    def scalar(self) -> str:
        """What is measured after every epoch: what trials are pruned on, if they are."""
        first = self.objectives[0]
        usual = first if not self.several and first in EPOCHLY else "miou_all"
        return self.prune_on or usual

    @property
    def plain(self) -> bool:
        """Whether the scalar is the one and only objective."""
        return self.objectives == (self.scalar,)

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics that decide about trials."""
        limited = [name for limit in self.limits for name in limit.names]
        return tuple(dict.fromkeys([*self.objectives, *limited]))

    def place_of(self, metric: str, *, study: str) -> int:
        """Which of the objectives a metric is.  Raises ConfigError, naming the study, if it is none."""
        if metric not in self.objectives:
            hint = did_you_mean(metric, self.objectives)
            raise ConfigError(f"study '{study}' has no objective '{metric}'; {hint}")
        return self.objectives.index(metric)

    def missing(self, measured: Mapping[str, float]) -> str | None:
        """The first metric that has no number."""
        return next((m for m in self.metrics if math.isnan(measured.get(m, math.nan))), None)

    def broken(self, measured: Mapping[str, float]) -> list[str]:
        """The limits that results break; what was not measured keeps none."""
        return [limit.text for limit in self.limits if self.excess(limit, measured) > 0]

    def excess(self, limit: Constraint, measured: Mapping[str, float]) -> float:
        """By how much results break a limit; zero or less if they keep it."""
        return limit.excess(measured) if limit.applies(measured) else math.inf

    def merit(self, value: float, results: Mapping[str, float]) -> tuple[bool, float]:
        """What orders trials, the best last: no broken limit, then the first objective's value."""
        return not self.broken(results), self.signs[0] * value

    def said(self, values: list[float]) -> str:
        """The values of all objectives in words."""
        pairs = zip(self.objectives, values, strict=True)
        return ", ".join(f"{name} {value:.2f}" for name, value in pairs)

    @property
    def words(self) -> str:
        """All of it in words."""
        wanted = zip(self.objectives, self.signs, strict=True)
        text = ", ".join(
            f"{'maximises' if sign > 0 else 'minimises'} {name}" for name, sign in wanted
        )
        text += "".join(f", with {limit.text}" for limit in self.limits)
        return text + ("" if self.plain else f"; after every epoch {self.scalar} is measured")

    def check(self, recipe: Recipe) -> None:
        """Raises ConfigError if a run of `recipe` cannot measure what is wanted."""
        steps = len(recipe.steps.steps)
        for name in dict.fromkeys([*self.metrics, self.scalar]):
            found = METRIC.fullmatch(name)
            assert found is not None, "names are checked before"
            step, metric = int(found[1] or steps - 1), found[2]
            if step >= steps:
                raise ConfigError(
                    f"'{name}' needs step {step}, but a run of method '{recipe.method}' in scenario "
                    f"'{recipe.scenario.name}' has steps 0 to {steps - 1}"
                )
            if step == 0 and metric.removesuffix("_bg") in LATER:
                raise ConfigError(f"objective '{name}' needs a second step; there is one")
            if metric.endswith("_bg") and not recipe.steps.background:
                dataset = recipe.scenario.dataset
                raise ConfigError(f"objective '{name}': {dataset} does not score background")


def sign_of(metric: str) -> int:
    """1 if more of a metric is better, else -1."""
    found = METRIC.fullmatch(metric)
    return -1 if found and found[2] in COSTS else 1


def unit_of(metric: str) -> str:
    """The unit of a metric, in the words of tables."""
    found = METRIC.fullmatch(metric)
    units = {"forgetting": "points", "drop": "points", "seconds": "s"}
    return units.get(found[2], "percent") if found else "percent"


def is_metric(name: str) -> bool:
    """Whether there is such a metric."""
    return METRIC.fullmatch(name) is not None


def check_metric(name: str, what: str) -> None:
    """Raises ConfigError unless there is such a metric."""
    if not is_metric(name):
        raise ConfigError(f"unknown {what} '{name}'; {did_you_mean(name, OBJECTIVES)}")


def goals_of(spec: Mapping[str, Any]) -> Goals:
    """The goals of a spec, also of a stored one of an earlier version."""
    constraints = tuple(map(parse, spec.get("constraints", ())))
    return Goals(
        tuple(spec.get("objectives") or [spec["objective"]]),
        tuple(c for c in constraints if all(map(is_metric, c.names))),
        spec.get("prune_on"),
    )


def measured_with(measured: Mapping[str, float], report: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a run with those of one more step, from its report; steps come in order.

    NaN where they need what is not known.
    """
    means, step = report["select"]["means"], report["step"]
    now = {**means, "seconds": report["seconds"]}
    if step > 0:
        now["drop"] = measured.get("step0_miou_base", math.nan) - means.get("miou_base", math.nan)
    of_step = {f"step{step}_{name}": value for name, value in now.items()}
    earlier = (measured.get(f"step{one}_seconds", math.nan) for one in range(step))
    return {**measured, **of_step, **now, "seconds": sum(earlier) + report["seconds"]}
