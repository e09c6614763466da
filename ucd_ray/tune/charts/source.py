"""What charts are drawn from: the outcome of every trial, and all of a part of the trials.

A study may have a hundred thousand trials, a chart shows a few thousand marks.  So outcomes (state and
objectives) are read for all trials, params and intermediate values for `DRAWN` of them: the best, and
others evenly over the study.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import ArrayLike, NDArray
from optuna.trial import FrozenTrial

from ucd_ray.errors import NotDrawn
from ucd_ray.recipe import Recipe
from ucd_ray.tune.charts.epochs import Curve, read_curves
from ucd_ray.tune.charts.words import Measure, images_of, measure_of
from ucd_ray.tune.database import Database
from ucd_ray.tune.goals import Goals, goals_of
from ucd_ray.tune.objectives import pareto
from ucd_ray.tune.outcomes import AT_A_TIME, Outcome, read_outcomes, read_trials
from ucd_ray.tune.replicates import replicates_of
from ucd_ray.tune.tables import metric_table

DRAWN = 2000  # trials whose params are drawn
BEST = 100  # of them
LOADED = ("COMPLETE", "PRUNED")  # trials with values


@dataclass(frozen=True)
class Objective:
    """One objective of a study."""

    metric: str
    measure: Measure
    maximized: bool

    def better(self, values: ArrayLike) -> NDArray[np.float64]:
        """The values with a sign that makes higher ones better."""
        return np.asarray(values, float) * (1 if self.maximized else -1)


class Source:
    """The trials of one study, read once for all of its charts.  Raises StudyError without a study."""

    def __init__(self, database: Database, study: str) -> None:
        self.database, self.study = database, study
        self.spec = database.stored_spec(study)
        self.about = database.about(study)
        self.shared: dict[tuple[str, int], Any] = {}  # what several charts need and is slow to get

    # What the study is.

    @cached_property
    def goals(self) -> Goals:
        """What the study is after."""
        return goals_of(self.spec)

    @cached_property
    def objectives(self) -> tuple[Objective, ...]:
        """Its objectives."""
        pairs = zip(self.goals.objectives, self.goals.signs, strict=True)
        return tuple(Objective(metric, measure_of(metric), sign > 0) for metric, sign in pairs)

    def place_of(self, metric: str) -> int:
        """Which of the objectives a metric is.  Raises ConfigError if it is none."""
        return self.goals.place_of(metric, study=self.study)

    @cached_property
    def replicates(self) -> int:
        """How often a trial's params are measured."""
        return len(replicates_of(self.spec))

    @property
    def images(self) -> str:
        """The images that the objectives are measured on."""
        return images_of(self.about.get("select_on", "holdout"))

    def subtitle(self, images: str | None = None) -> str:
        """Study, scenario, setting, method and the images that a chart's numbers are from."""
        facts = (str(self.about.get(fact, "")) for fact in ("scenario", "setting", "method"))
        return f"{self.study}: {', '.join(facts)}; on {images or self.images}"

    @property
    def num_steps(self) -> int:
        """Steps of the scenario."""
        return int(self.about.get("steps", 0))

    # Its classes.

    @cached_property
    def groups(self) -> list[list[int]]:
        """Ids of the classes that each step learns, background left out."""
        stored = self.about.get("step_classes")
        return stored or [list(ids) for ids in Recipe.from_flat(self.spec["recipe"]).steps.steps]

    @property
    def class_order(self) -> list[int]:
        """Ids in channel order after the last step: 0, then the classes in learning order."""
        return [0, *(c for group in self.groups for c in group)]

    def learned(self, class_id: int) -> int:
        """The step that learns a class; background belongs to step 0."""
        return next((step for step, ids in enumerate(self.groups) if class_id in ids), 0)

    def class_name(self, class_id: int) -> str:
        """The name of a class, its id where the study has none."""
        names = self.about.get("classes") or ()
        return names[class_id] if class_id < len(names) else f"class {class_id}"

    # Its trials.

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """The outcome of every trial by number; none if no driver came so far."""
        return read_outcomes(self.database, self.study, self.goals)

    @cached_property
    def complete(self) -> list[Outcome]:
        """Those with a value of each objective."""
        return [o for o in self.outcomes if o.state == "COMPLETE" and o.values]

    def ranked(self, index: int = 0) -> list[Outcome]:
        """The complete ones, the best in one objective first; those that break a limit last.

        Of equal ones that which is better in the other objectives, so that the first is of the Pareto set.
        """
        if ("ranked", index) not in self.shared:
            values = np.array([o.values for o in self.complete]).reshape(-1, len(self.objectives))
            worse = -values * self.goals.signs
            broken = np.array([not o.keeps_limits for o in self.complete])
            order = np.lexsort((*worse.T[::-1], worse[:, index], broken))
            self.shared["ranked", index] = [self.complete[i] for i in order]
        found: list[Outcome] = self.shared["ranked", index]
        return found

    def best_in(self, index: int) -> Outcome:
        """The best trial in one objective.  Raises NotDrawn if none is complete and keeps the limits."""
        found = self.ranked(index)
        if not found or not found[0].keeps_limits:
            limits = f" that keeps {' and '.join(limit.text for limit in self.goals.limits)}"
            raise NotDrawn(f"study '{self.study}' has no complete trial{limits if found else ''}")
        return found[0]

    @property
    def best(self) -> Outcome:
        """The best trial, of a Pareto set the best in the first objective.  Raises NotDrawn."""
        return self.best_in(0)

    @property
    def best_name(self) -> str:
        """What titles call it."""
        if not self.goals.several:
            return f"trial {self.best.number}, the best"
        return f"trial {self.best.number}, of the Pareto set the best in {self.goals.objectives[0]}"

    @cached_property
    def front(self) -> list[Outcome]:
        """The best trial or, with several objectives, the Pareto set, the best in the first one first."""
        kept = [outcome for outcome in self.ranked() if outcome.keeps_limits]
        if not self.goals.several or not kept:
            return kept[:1]
        values = np.array([outcome.values for outcome in kept]) * self.goals.signs
        return [o for o, is_in in zip(kept, pareto(values), strict=True) if is_in]

    @cached_property
    def even(self) -> set[int]:
        """Numbers of the drawn trials without regard to their values: all, or evenly over the study."""
        found = [o.number for o in self.outcomes if o.state in LOADED]
        return set(thinned(found, DRAWN - BEST if len(found) > DRAWN else DRAWN))

    @cached_property
    def drawn(self) -> list[FrozenTrial]:
        """The trials with a value or intermediate values that are drawn, by number."""
        several = range(len(self.objectives))
        numbers = self.even | {o.number for i in several for o in self.ranked(i)[:BEST]}
        numbers |= {o.number for o in thinned(self.front, BEST)}
        ids = [o.id for o in self.outcomes if o.number in numbers]
        return read_trials(self.database, ids)

    @cached_property
    def valued(self) -> list[FrozenTrial]:
        """The drawn ones that are complete.  Raises NotDrawn if there is none."""
        found = [t for t in self.drawn if t.state.name == "COMPLETE" and t.values]
        if not found:
            raise NotDrawn(f"study '{self.study}' has no complete trial")
        return found

    @cached_property
    def curves(self) -> list[Curve]:
        """What the drawn ones measured after every epoch, a curve for each of their runs."""
        return read_curves(self.database, self.study, self.goals, self.replicates, self.drawn)

    def measured(self, trial: FrozenTrial) -> list[float]:
        """The values of a trial's replicates that were finished; none where trials have one."""
        told = trial.intermediate_values if self.replicates > 1 else {}
        return [told[replicate] for replicate in sorted(told)]

    @property
    def left_out(self) -> str:
        """A sentence about trials that are not drawn, empty if all are."""
        there = sum(o.state in LOADED for o in self.outcomes)
        if there <= len(self.drawn):
            return ""
        return (
            f"{len(self.drawn):,} of {there:,} trials are drawn: the best {BEST}"
            f"{' in each objective' if self.goals.several else ''}, and others evenly over the study."
        )

    def means(self, metrics: Sequence[str], images: str) -> dict[tuple[int, int, str], float]:
        """(trial, step, metric) -> mean over its replicates, of the drawn trials where there is one.

        images: select or val
        """
        c = metric_table.c
        found: dict[tuple[int, int, str], float] = {}
        numbers = [trial.number for trial in self.drawn]

        def rows(connection: sa.Connection, start: int) -> Sequence[Any]:
            mean = sa.func.avg(c.value).label("value")
            query = (
                sa.select(c.number, c.step, c.metric, mean)
                .where(
                    c.study == self.study,
                    c.images == images,
                    c.number.in_(numbers[start : start + AT_A_TIME]),
                    c.metric.in_(metrics),
                    c.value.is_not(None),
                )
                .group_by(c.number, c.step, c.metric)
            )
            return connection.execute(query).all()

        for start in range(0, len(numbers), AT_A_TIME):
            for row in self.database.read(partial(rows, start=start)):
                found[row.number, row.step, row.metric] = row.value
        return found


def thinned(items: Sequence[Any], count: int) -> list[Any]:
    """All items, or `count` of them at even distances, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]
