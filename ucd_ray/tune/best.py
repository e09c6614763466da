"""The best trial of a study, or another one: its recipe, what it measured, what trained it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ucd_ray.errors import StudyError
from ucd_ray.recipe import Recipe
from ucd_ray.tune.database import Database
from ucd_ray.tune.executors import MICRO_BATCH
from ucd_ray.tune.formats import replaced
from ucd_ray.tune.keys import TRIAL, study_of_replicate
from ucd_ray.tune.outcomes import Outcome, read_attribute, read_outcomes, read_trials
from ucd_ray.tune.progress import short, show_params
from ucd_ray.tune.recipe_file import Measured, RecipeFile, Trained
from ucd_ray.tune.registration import stored_spec
from ucd_ray.tune.replicates import Replicate, replicates_of
from ucd_ray.tune.spec import StudySpec
from ucd_ray.tune.tables import environment_table, metric_table, step_table

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Means = dict[str, float | None]  # percent by metric; None: no class with truth pixels
COLUMNS = ("miou_old", "miou_new", "miou_all", "miou_base", "miou_added", "forgetting")


@dataclass(frozen=True)
class MeasuredStep:
    """One step of a trial, as the database has it."""

    step: int
    cached: bool  # trained by another trial or run
    seconds: float
    entry: str | None  # of the step cache; None: stored by a version that did not tell
    environment: dict[str, Any] | None  # likewise
    means: dict[str, Means]  # by images: select, val


@dataclass(frozen=True)
class MeasuredTrial:
    """A complete trial."""

    spec: StudySpec
    number: int
    values: tuple[float, ...]  # of the objectives
    params: dict[str, Any]
    recipe: Recipe  # as it was trained, with a smaller micro-batch if memory asked for it
    steps: list[MeasuredStep]
    replicate: Replicate | None = (
        None  # which of several this is: values, recipe and steps are its own
    )
    mean: float | None = None  # over all replicates

    @property
    def value(self) -> float:
        """The value of the objective, of several the first."""
        return self.values[0]

    @property
    def name(self) -> str:
        """What sentences call it."""
        if self.replicate is None:
            return f"trial {self.number}"
        which = f"replicate {self.replicate.number} of {self.spec.replicates}"
        return f"trial {self.number}, {which} ({self.replicate.label})"

    @property
    def last(self) -> MeasuredStep:
        """What was measured at the end."""
        return self.steps[-1]

    def content(self) -> dict[str, Any]:
        """All of it as JSON."""
        named = {"study": self.spec.name, "trial": self.number, "objective": self._objective}
        numbers = {"value": self.value, "params": self.params, "recipe": self.recipe.flat()}
        steps = [asdict(step) for step in self.steps]
        return {**named, **self._more(), **numbers, "steps": steps}

    @property
    def _objective(self) -> str:
        return ", ".join(self.spec.goals.objectives)

    def _more(self) -> dict[str, Any]:
        """What only trials with several objectives or replicates have."""
        found: dict[str, Any] = {}
        if self.spec.goals.several:
            found["values"] = dict(zip(self.spec.goals.objectives, self.values, strict=True))
        if self.replicate is not None:
            found |= {"replicate": asdict(self.replicate), "mean": self.mean}
        return found

    def recipe_file(self) -> RecipeFile:
        """What trains it again."""
        inputs = (self.last.environment or {}).get("inputs")
        return RecipeFile.model_validate(
            {
                "study": self.spec.name,
                "trial": self.number,
                "objective": f"{self._objective} on {self.recipe.eval.select_on}",
                "value": self.value,
                **self._more(),
                "workers": self.spec.workers,
                "recipe": self.recipe.flat(),
                "inputs": inputs,
                "trained": _trained(self.steps),
                "measured": [Measured(step=s.step, **s.means) for s in self.steps],
            }
        )


def _trained(steps: list[MeasuredStep]) -> list[Trained]:
    """What trained the steps; those that were trained alike together."""
    alike: dict[str, list[MeasuredStep]] = {}
    for step in steps:
        if step.environment is not None:
            alike.setdefault(json.dumps(step.environment, sort_keys=True), []).append(step)
    return [
        Trained.model_validate(
            {
                "steps": [step.step for step in group],
                **{k: v for k, v in json.loads(text).items() if k != "inputs"},
            }
        )
        for text, group in alike.items()
    ]


def measured_trial(
    database: Database, study: str, number: int | None = None, *, replicate: int = 0
) -> MeasuredTrial:
    """The best trial of a study, or trial `number`; one of its replicates, if it has several.

    Raises StudyError if there is none, or it has not run to its end.
    """
    spec = stored_spec(study, database)
    trial = _whole_trial(database, spec, number)
    recipe, run, one = spec.trial_recipe(trial.params), trial, _replicate(spec, replicate)
    if one is not None:
        recipe = recipe.with_overrides(one.overrides(recipe))
        run = _run(database, study_of_replicate(study, replicate), trial.number)
    if (micro := run.user_attrs.get(MICRO_BATCH)) != recipe.data.micro_batch_new:
        recipe = recipe.with_overrides({"data.micro_batch_new": micro})
    return MeasuredTrial(
        spec,
        trial.number,
        tuple(run.values),
        dict(trial.params),
        recipe,
        _steps(database, study, trial.number, replicate),
        one,
        None if one is None else trial.values[0],
    )


def _replicate(spec: StudySpec, number: int) -> Replicate | None:
    """One of the replicates of a study's trials; None if they have one.  Raises StudyError."""
    if not 0 <= number < spec.replicates:
        which = f"0 to {spec.replicates - 1}" if spec.replicates > 1 else "0 alone"
        raise StudyError(f"trials of study '{spec.name}' have no replicate {number}, but {which}")
    return replicates_of(spec.model_dump())[number] if spec.replicates > 1 else None


def _run(database: Database, runs: str, number: int) -> FrozenTrial:
    """The run of a complete trial.  runs: the Optuna study of its replicate"""
    rows = read_attribute(database, runs, TRIAL)
    return read_trials(database, [row for row, of in rows.items() if of == number])[0]


def _whole_trial(database: Database, spec: StudySpec, number: int | None) -> FrozenTrial:
    """The best trial, or trial `number`, read alone.  Raises StudyError if it has not run to its end."""
    outcomes = read_outcomes(database, spec.name, spec.goals)
    complete = [o for o in outcomes if o.state == "COMPLETE" and o.values]
    chosen = _best(spec, complete) if number is None else _numbered(outcomes, spec.name, number)
    if chosen not in complete:
        hint = ", ".join(str(o.number) for o in complete[:10])
        raise StudyError(
            f"trial {number} of study '{spec.name}' is {chosen.state}: it has no result of a whole "
            f"run; {f'complete ones: {hint}' if hint else 'none is complete yet'}"
        )
    return read_trials(database, [chosen.id])[0]


def _best(spec: StudySpec, complete: list[Outcome]) -> Outcome:
    """The best complete one, of a Pareto set the one best in the first objective."""
    goals = spec.goals

    def rank(outcome: Outcome) -> tuple[float, ...]:
        signed = (s * v for s, v in zip(goals.signs, outcome.values, strict=True))
        return (*signed, -outcome.number)

    best = max((o for o in complete if o.keeps_limits), key=rank, default=None)
    if best is None:
        limits = " that keeps the limits" if goals.limits else ""
        raise StudyError(
            f"study '{spec.name}' has no complete trial{limits} yet, so none is the best; "
            f"`ucd-ray study show {spec.name}` says where it stands"
        )
    return best


def _numbered(outcomes: list[Outcome], study: str, number: int) -> Outcome:
    if not 0 <= number < len(outcomes):
        which = f"0 to {len(outcomes) - 1}" if outcomes else "none so far"
        raise StudyError(f"study '{study}' has no trial {number}; its trials: {which}")
    return outcomes[number]


def _steps(database: Database, study: str, number: int, replicate: int) -> list[MeasuredStep]:
    def rows(table: sa.Table, **where: Any) -> list[sa.Row[Any]]:
        wanted = {"study": study, **where}
        query = sa.select(table).where(*(table.c[name] == value for name, value in wanted.items()))
        return database.read(lambda connection: list(connection.execute(query)))

    of_trial = {"number": number, "replicate": replicate}
    environments = {row.digest: json.loads(row.content) for row in rows(environment_table)}
    means: dict[tuple[int, str], Means] = {}
    for row in rows(metric_table, **of_trial):
        means.setdefault((row.step, row.images), {})[row.metric] = row.value
    return [
        MeasuredStep(
            step=row.step,
            cached=row.cached,
            seconds=row.seconds,
            entry=row.entry,
            environment=environments.get(row.environment),
            means={images: means.get((row.step, images), {}) for images in ("select", "val")},
        )
        for row in sorted(rows(step_table, **of_trial), key=lambda r: r.step)
    ]


def export(trial: MeasuredTrial, path: Path) -> None:
    """Writes the file that trains a trial again.  Raises ConfigError if it cannot be written."""
    with replaced(path) as sink:
        sink.write(trial.recipe_file().text().encode())


def best_view(trial: MeasuredTrial) -> RenderableType:
    """A trial for a terminal."""
    spec, recipe = trial.spec, trial.recipe
    on = recipe.eval.select_on
    table = Table(caption=f"mIoU in percent without background: {on} (what search saw) | val")
    table.add_column("step", justify="right")
    for column in COLUMNS:
        table.add_column(column.removeprefix("miou_"), justify="right")
    table.add_column("seconds", justify="right")
    for step in trial.steps:
        cells = [
            " | ".join(_cell(step.means[images].get(c)) for images in ("select", "val"))
            for c in COLUMNS
        ]
        table.add_row(str(step.step), *cells, "cached" if step.cached else f"{step.seconds:.0f}")
    mean = "" if trial.mean is None else f" (mean over replicates: {trial.mean:.2f})"
    head = (
        f"study {spec.name}, {trial.name}: {spec.goals.said(list(trial.values))} on {on}{mean}; "
        f"{recipe.scenario.name}, {recipe.setting}, method {recipe.method}, seed {recipe.seed}"
    )
    lines = [show_params(trial.params), *_trained_lines(trial)]
    return Group(Text(head, style="bold"), *map(Text, lines), table)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _commit(commit: str | None) -> str:
    if commit is None:
        return ""
    number, plus, changes = commit.partition("+")
    return f" ({number[:12]}{plus}{changes})"


def _trained_lines(trial: MeasuredTrial) -> list[str]:
    """What trained it, a line for each kind."""
    return [
        f"trained with ucd-ray {part.packages.get('ucd-ray')}"
        f"{_commit(part.commit)}, torch {part.packages.get('torch')}, "
        f"{part.precision}, {trial.spec.workers} worker(s) of {short(part.threads)} thread(s) on "
        f"{part.hardware.get('device')}, {part.hardware.get('cpu')}"
        + (
            f" (steps {', '.join(map(str, part.steps))})"
            if len(part.steps) < len(trial.steps)
            else ""
        )
        for part in _trained(trial.steps)
    ]
