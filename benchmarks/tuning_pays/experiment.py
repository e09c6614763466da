"""What the experiment runs: a study, then every row over seeds; and the record of what was measured."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from benchmarks.tuning_pays.rows import PUBLISHED, TUNED, Record

ROWS = (TUNED, PUBLISHED, "mib", "lwf", "ilt", "frozen", "finetune", "joint")
METRICS = ("miou_base", "miou_added", "miou_old", "miou_new", "miou_all", "forgetting")
NORMS = ("batch", "frozen")  # searched here beside what the search space has
# The default fifth holds one to three images of some new classes and hardly sees whether they are learned.
HOLDOUT = 0.35
PRUNER = "median:warmup=6"  # of 18 epochs: at the second, who learns slowly looks worse than it is
console = Console(width=140)


@dataclass(frozen=True)
class Plan:
    """How much is run."""

    trials: int
    seeds: int
    recipe: dict[str, Any]  # fixed for all rows, instead of the search space's values
    quick: bool = False


FULL = Plan(16, 3, {})
QUICK = Plan(4, 2, {"optim.iterations_base": 60, "optim.iterations_new": 30}, quick=True)


def measure(
    scenario: str, plan: Plan, given: dict[str, Any], before: Record | None = None
) -> Iterator[Record]:
    """The record after the study and after every run.

    before: one that is not finished, of the same plan, perhaps from another machine: it is continued
    """
    from ucd_ray import load_search_space

    record = before if before and continues(before, plan) else after_study(scenario, plan, given)
    yield record
    space, done = load_search_space(scenario), {(run["row"], run["seed"]) for run in record["runs"]}
    for seed in range(1, plan.seeds + 1):
        for row in [row for row in ROWS if (row, seed) not in done]:
            values = row_values(row, space, record["study"], plan)
            console.print(f"{row}, seed {seed}", highlight=False)
            record["runs"].append(run_row(row, {**values, **given, "seed": seed}))
            yield record


def continues(before: Record, plan: Plan) -> bool:
    """Whether a record is one of this plan, so that its study and its runs count."""
    study = before["study"]
    asked = {"quick": plan.quick, "seeds": plan.seeds, "rows": [*ROWS]}
    asked_study = {"pruner": PRUNER, "holdout": HOLDOUT}
    return (
        asked.items() <= before.items()
        and asked_study.items() <= study.items()
        and len(study["trials"]) == plan.trials
    )


def after_study(scenario: str, plan: Plan, given: dict[str, Any]) -> Record:
    """Runs the study.  Returns a record without rows."""
    from ucd_ray import run_study

    spec = study_spec(scenario, plan, given)
    run_study(spec, console=console)
    return {
        "scenario": scenario,
        "quick": plan.quick,
        "steps": len(spec.base_recipe().steps.steps),
        "seeds": plan.seeds,
        "rows": [*ROWS],
        "machine": machine(),
        "study": study_record(spec),
        "runs": [],
    }


def study_spec(scenario: str, plan: Plan, given: dict[str, Any]) -> Any:
    """mib+ucd over the scenario's search space and the mode of batch normalisation."""
    from ucd_ray import load_search_space
    from ucd_ray.tune.parameter import Parameter
    from ucd_ray.tune.space import build_spec

    space = load_search_space(scenario)
    search = {**space.search, "model.norm": Parameter(choices=NORMS)}
    first = {**space.first, "model.norm": NORMS[0]}
    return build_spec(
        space.model_copy(update={"search": search, "first": first}),
        name=f"pays-{scenario}{'-quick' if plan.quick else ''}",
        overrides={**plan.recipe, **given, "data.holdout": HOLDOUT},
        trials=plan.trials,
        pruner=PRUNER,
        max_concurrent=1,
    )


def study_record(spec: Any) -> dict[str, Any]:
    """What was searched, every trial, the best one, and the importances of the params."""
    import optuna

    from ucd_ray.tune.database import Database
    from ucd_ray.tune.places import places
    from ucd_ray.tune.prepare import prepare_job
    from ucd_ray.tune.results import trials_table

    database = Database(places().database)
    study = optuna.load_study(study_name=spec.name, storage=database.optuna_storage())
    recipe = spec.base_recipe()
    images = prepare_job(recipe, places(), name=(spec.name, "record"), workers=1).plan[-1]
    return {
        "name": spec.name,
        "objective": spec.objective,
        "pruner": spec.pruner,
        "holdout": HOLDOUT,
        "sampler": spec.sampler,
        "seed": recipe.seed,
        "iterations": [recipe.optim.iterations_base, recipe.optim.iterations_new],
        "network": recipe.model.backbone,
        "crops": [recipe.data.batch_size, recipe.data.crop],
        "images": {"holdout": len(images.holdout), "val": len(images.val)},  # of the last step
        "search": {
            key: value.model_dump(exclude_defaults=True) for key, value in spec.search.items()
        },
        "first": spec.first,
        "trials": trials_table(database, spec.name).to_pylist(),
        "curves": {
            trial.number: trial.intermediate_values for trial in study.get_trials(deepcopy=False)
        },
        "best": {"number": study.best_trial.number, "params": study.best_params},
        "importances": optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        ),
    }


def row_values(row: str, space: Any, study: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The flat recipe of a row, scored on val; joint gets the updates of all steps."""
    method = row.split(",")[0]
    part = space.part(method)
    values = {"scenario": space.scenario, "method": method, **part.recipe, **part.first}
    values |= {**plan.recipe, "eval.select_on": "val", "eval.max_images": 1}
    if row == TUNED:
        values |= study["best"]["params"]
    if method == "joint":
        from ucd_ray.scenarios import parse_scenario

        later = len(parse_scenario(space.scenario).steps) - 1
        base, new = study["iterations"]
        values["optim.iterations_base"] = base + later * new
    return values


def run_row(row: str, values: dict[str, Any]) -> dict[str, Any]:
    """Trains one row with one seed, or reads it back."""
    from ucd_ray import Recipe, run

    result = run(Recipe.from_flat(values), console=console)
    steps = [
        {key: finite(means[key]) for key in METRICS}
        for means in (result.means(step) for step in range(len(result.steps)))
    ]
    seconds = [round(step["seconds"], 1) for step in result.steps]
    return {"row": row, "seed": values["seed"], "steps": steps, "seconds": seconds}


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return round(value, 4) if value == value else None


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "threads": 1}
