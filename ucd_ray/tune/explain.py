"""Tables that explain: a scenario's recipe and search space, the studies of a database."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ucd_ray.config import NEVER, SECTIONS, Config
from ucd_ray.recipe import Recipe
from ucd_ray.tune import commands
from ucd_ray.tune.cache import show_size
from ucd_ray.tune.database import Database, is_driven
from ucd_ray.tune.domain import Domain
from ucd_ray.tune.goals import goals_of
from ucd_ray.tune.ledger import ledger_view
from ucd_ray.tune.names import METHOD
from ucd_ray.tune.objectives import Best, best_of
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.progress import short, show_params
from ucd_ray.tune.spec import StudySpec

if TYPE_CHECKING:
    from ucd_ray.tune.overview import Budget, OpenTrial, Overview


def config_table(spec: StudySpec, *, explain: bool) -> Table:
    """Every key of a study's recipe: value, what is searched, and with `explain` its meaning."""
    recipe, first, domain = spec.base_recipe(), spec.first_params, spec.domain()
    table = Table(title=f"{recipe.scenario.name}, method {', '.join(spec.methods)}")
    columns = ["key", "value", "searched", "first trial"]
    for column in columns + (["from step", "meaning"] if explain else []):
        table.add_column(column)
    flat = recipe.flat()
    for key in (*flat, *(key for key in domain.order if key not in flat)):
        parameter = spec.search.get(key)
        cells = [
            key,
            "" if parameter else _show(flat[key]),
            show_range(parameter) + show_conditions(domain, key) if parameter else "",
            short(first[key]) if key in first else "",
        ]
        table.add_row(*cells, *(explanation(recipe_with(spec, key), key) if explain else ()))
    for constraint in domain.constraints:
        table.add_row("constraint", "", constraint.text)
    return table


def recipe_with(spec: StudySpec, key: str) -> Recipe:
    """The recipe of a method of the study that has `key`."""
    methods = spec.methods_with(key)
    return spec.trial_recipe({METHOD: methods[0]} if methods else {})


def show_conditions(domain: Domain, key: str) -> str:
    """Where a searched key exists, if not always."""
    return "".join(
        f" where {parent} is {' or '.join(map(short, values))}"
        for parent, values in domain.conditions[key].items()
    )


def show_range(parameter: Parameter) -> str:
    """A parameter's range or choices in a few characters."""
    if parameter.choices is not None:
        return "{" + ", ".join(short(choice) for choice in parameter.choices) + "}"
    log = " log" if parameter.log else ""
    step = f" step {short(parameter.step)}" if parameter.step else ""
    return f"{short(parameter.low)} .. {short(parameter.high)}{log}{step}"


def show_value(value: Any) -> str:
    """A value as YAML spells it, numbers short."""
    return "null" if value is None else short(value)


def _show(value: Any) -> str:
    return "" if value is None else short(value)


def first_step(recipe: Recipe, key: str) -> int:
    """The first step at which a key of a recipe acts; NEVER: it changes no number."""
    return _owner(recipe, key)[2]


def explanation(recipe: Recipe, key: str) -> tuple[str, str]:
    """The step from which a key of a recipe acts, and its meaning."""
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
        best = _best(storage, spec, summary) if summary else None
        done = summary.n_trials if summary else 0
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.created))
        table.add_row(
            row.name,
            about["scenario"],
            about["method"],
            about["setting"],
            f"{done} of {spec['trials']}",
            best.text if best else "",
            _driver(row, paused=commands.is_paused(database, row.name)),
            started,
        )
    return table


def _best(storage: Any, spec: dict[str, Any], summary: Any) -> Best | None:
    """The best of a study: with one objective and no limits the database finds it."""
    goals = goals_of(spec)
    if goals.several or goals.limits:
        return best_of(goals, storage.get_all_trials(summary._study_id, deepcopy=False))
    return best_of(goals, [summary.best_trial] if summary.best_trial else [])


def _driver(row: Any, *, paused: bool) -> str:
    running = is_driven(row.driver, row.heartbeat)
    return "paused" if paused else "running" if running else ""


def overview_view(found: Overview) -> RenderableType:
    """Where a study stands, for a terminal."""
    about = found.about
    lines = [
        f"study {found.name}: {_state_line(found)}",
        f"{about.get('scenario')}, {about.get('setting')}, method {about.get('method')}",
        f"{found.goals}, on {about.get('select_on')}",
        "trials: " + ("  ".join(f"{s} {n}" for s, n in sorted(found.states.items())) or "none yet"),
        f"best: {found.best.text if found.best else 'no result yet'}",
        "budgets: " + ", ".join(_budget_line(budget) for budget in found.budgets),
        f"disk: {_size(found.checkpoint_bytes)} checkpoints of open trials, "
        f"{_size(found.step_bytes)} in the step cache by its trials",
        *(
            f"taken over: {count} trial(s) of study {source}"
            for source, count in found.taken.items()
        ),
        *([f"base step: {found.base.removeprefix('base step ')}"] if found.base else []),
        *([f"last: {found.said}"] if found.said else []),
    ]
    text = Text("\n".join(lines))
    tables = [_open_table(found.open)] if found.open else []
    tables += [_revisions_table(found.revisions)] if found.revisions else []
    return Group(text, *tables, *([ledger_view(found.ledger)] if found.ledger else []))


def _state_line(found: Overview) -> str:
    driver = found.driver
    if driver is None:
        return found.state if found.state != "paused" else "paused; nothing runs it"
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(driver.started))
    return f"{found.state}; driven by {driver} since {since}"


def _budget_line(budget: Budget) -> str:
    used = short(round(budget.used, 3))
    return (
        f"{used} of {short(budget.limit)} {budget.name}"
        if budget.limit
        else f"{used} {budget.name}"
    )


def _size(size: int | None) -> str:
    return "unknown" if size is None else show_size(size)


def _revisions_table(revisions: list[dict[str, Any]]) -> Table:
    table = Table(title="revisions")
    for column in ("revision", "since", "what changed"):
        table.add_column(column, overflow="fold")
    for revision in revisions:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(revision["created"]))
        what = "\n".join(revision["changes"]) or "as it was created"
        table.add_row(str(revision["number"]), since, what)
    return table


def _open_table(trials: list[OpenTrial]) -> Table:
    table = Table(title="open trials")
    for column in ("trial", "state", "progress", "params"):
        table.add_column(column, overflow="fold")
    for trial in trials:
        lost = f"lost its workers {trial.lost} time(s)" if trial.lost else None
        said = (trial.reason, trial.said, lost)
        progress = "\n".join(part for part in said if part)
        table.add_row(str(trial.number), trial.state, progress, show_params(trial.params))
    return table
