"""Tables that explain: a scenario's recipe and search space, the studies of a database."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.table import Table

from ucd_ray.config import NEVER, SECTIONS, Config
from ucd_ray.recipe import Recipe
from ucd_ray.tune.database import Database, is_driven
from ucd_ray.tune.progress import short
from ucd_ray.tune.space import Parameter, StudySpec


def config_table(spec: StudySpec, *, explain: bool) -> Table:
    """Every key of a study's recipe: value, what is searched, and with `explain` its meaning."""
    recipe = spec.base_recipe()
    table = Table(title=f"{recipe.scenario.name}, method {recipe.method}")
    columns = ["key", "value", "searched", "first trial"]
    for column in columns + (["from step", "meaning"] if explain else []):
        table.add_column(column)
    for key, value in recipe.flat().items():
        parameter = spec.search.get(key)
        cells = [
            key,
            "" if parameter else _show(value),
            show_range(parameter) if parameter else "",
            short(spec.first[key]) if key in spec.first else "",
        ]
        table.add_row(*cells, *(_explanation(recipe, key) if explain else ()))
    return table


def show_range(parameter: Parameter) -> str:
    """A parameter's range or choices in a few characters."""
    if parameter.choices is not None:
        return "{" + ", ".join(short(choice) for choice in parameter.choices) + "}"
    log = " log" if parameter.log else ""
    return f"{short(parameter.low)} .. {short(parameter.high)}{log}"


def _show(value: Any) -> str:
    return "" if value is None else short(value)


def _explanation(recipe: Recipe, key: str) -> tuple[str, str]:
    owner, field, first = _owner(recipe, key)
    text = " ".join((owner.model_fields[field].description or "").split())
    return ("none" if first == NEVER else str(first)), text


def _owner(recipe: Recipe, key: str) -> tuple[type[Config], str, int]:
    section, _, field = key.rpartition(".")
    if not section:
        return Recipe, field, 0
    if section in SECTIONS:
        return SECTIONS[section], field, SECTIONS[section].acts_from(field)
    term = next(term for term in recipe.terms if term.section == section)
    return type(term), field, type(term).first_step


def studies_table(database: Database) -> Table:
    """All studies: scenario, method, setting, trials by state, best value, whether one runs."""
    import optuna

    storage = database.optuna_storage()
    table = Table(title=f"studies in {database.shown}")
    for column in ("study", "scenario", "method", "setting", "trials", "best", "driver", "started"):
        table.add_column(column)
    summaries = {s.study_name: s for s in optuna.get_all_study_summaries(storage)}
    for row in database.studies():
        about, spec, summary = json.loads(row.about), json.loads(row.spec), summaries.get(row.name)
        best = summary.best_trial if summary else None
        done = summary.n_trials if summary else 0
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.created))
        table.add_row(
            row.name,
            about["scenario"],
            about["method"],
            about["setting"],
            f"{done} of {spec['trials']}",
            f"{best.value:.2f} (trial {best.number})" if best and best.value is not None else "",
            "running" if is_driven(row.driver, row.heartbeat) else "",
            started,
        )
    return table
