"""The tables of a report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import sqlalchemy as sa
from optuna.trial import FrozenTrial
from pydantic import ValidationError

from ucd_ray.errors import NotDrawn, StudyError
from ucd_ray.tune.cells import is_right, readable, unit_of
from ucd_ray.tune.charts.params import importances
from ucd_ray.tune.charts.source import Source
from ucd_ray.tune.chunks import trial_chunks
from ucd_ray.tune.explain import explanation, recipe_with, show_range
from ucd_ray.tune.ledger import KINDS, Spent, held, totals
from ucd_ray.tune.progress import short
from ucd_ray.tune.results import read
from ucd_ray.tune.screen import BEST_FIRST, shown_fields
from ucd_ray.tune.spec import StudySpec
from ucd_ray.tune.standing import best_two
from ucd_ray.tune.tables import environment_table

TOP = 20  # trials in the table of the best
TENTH = 10  # complete trials from which on a best tenth says something
NOISE = "Differences below a point between single runs are noise."
NAMED = 5  # failed trials named for each reason


@dataclass(frozen=True)
class ReportTable:
    """Cells as people see them."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: tuple[bool, ...] = ()  # columns of numbers; empty: none
    note: str = ""


def report_tables(source: Source) -> list[ReportTable]:
    """All tables that have rows."""
    makers = (measured, best_trials, params, ended, ledger, environments)
    return [table for table in (make(source) for make in makers) if table.rows]


def measured(source: Source) -> ReportTable:
    """What was measured on which images."""
    recipe = source.about.get("recipe") or {}
    counts = source.about.get("images") or {}
    on_val = source.about.get("select_on") == "val"
    share = recipe.get("data.holdout")
    rows = [
        (
            "val"
            if on_val
            else f"hold-out{f', {share:.0%} of the training images' if share else ''}",
            "search and pruning" + (", and all tables" if on_val else ""),
            "value" + (", miou_*, forgetting" if on_val else ""),
        )
    ]
    if not on_val:
        rows.append(("val", "nobody during the search", "miou_*, forgetting; charts that say so"))
    facts = [f"{name}: {count:,} images" for name, count in counts.items()]
    background = "scored, in columns *_bg" if source.about.get("background") else "not scored"
    unseen = recipe.get("eval.unseen")
    facts += [f"background: {background}", f"the search {source.goals.words}"]
    if source.replicates > 1:
        facts.append(f"each trial over {source.replicates} replicates, their mean counts")
    facts += [f"classes not yet learned: {unseen}"] if unseen else []
    facts += [f"scored as: {recipe['eval.mode']} images"] if "eval.mode" in recipe else []
    return ReportTable(
        "What was measured on what",
        ("images", "seen by", "columns"),
        rows,
        note="; ".join(facts) + ".  mIoU in percent, a mean over classes that have truth pixels.",
    )


def best_trials(source: Source) -> ReportTable:
    """The best complete trials."""
    try:
        rows = read(
            source.database,
            source.study,
            filters=["state=COMPLETE"],
            order_by=BEST_FIRST,
            limit=TOP,
        ).read_all()
    except StudyError:  # none is complete
        return ReportTable("Best trials", (), [])
    wanted = [f for f in shown_fields(rows.schema) if f.name not in ("state", "reason")]
    shown = [(field, column) for field, column in readable(rows) if field in wanted]
    fields, columns = [field for field, _ in shown], [column for _, column in shown]
    said = best_two(source.database, source.study)
    return ReportTable(
        "Best trials",
        tuple(f.name + (f" [{unit}]" if (unit := unit_of(f)) else "") for f in fields),
        list(zip(*columns, strict=True)),
        tuple(map(is_right, fields)),
        f"{_values(source)} on {source.images}.  miou_* and forgetting: on val, without background.  "
        + (f"{'; '.join(said)}." if said else NOISE),
    )


def _values(source: Source) -> str:
    """What the columns of values are."""
    if not source.goals.several:
        return f"value: {source.objectives[0].measure.label}"
    named = (f"value_{o.metric}: {o.measure.label}" for o in source.objectives)
    return f"The Pareto set comes first.  {', '.join(named)}"


def params(source: Source) -> ReportTable:
    """What was searched in which range, and where the best trials are."""
    try:
        spec = StudySpec.model_validate(source.spec)
    except ValidationError:  # of another version
        return ReportTable("Params", (), [])
    shares = [_shares(source, index) for index in range(len(source.objectives))]
    trials = {t.number: t for t in source.drawn if t.state.name == "COMPLETE"}
    kept = (o for o in source.ranked() if o.keeps_limits)
    ranked = [trials[o.number] for o in kept if o.number in trials]
    tenth = ranked[: len(ranked) // 10] if len(ranked) >= TENTH else []
    first, scenario = spec.first_params, spec.base_recipe().scenario.name
    names = [f" for {o.metric}" if source.goals.several else "" for o in source.objectives]
    rows = [
        (
            key,
            show_range(spec.search[key]),
            short(first[key]) if key in first else "",
            _value(ranked[0], key) if ranked else "",
            _middle(tenth, key),
            *(share.get(key, "") for share in shares),
            explanation(recipe_with(spec, key), key)[1],
        )
        for key in sorted(spec.search)
    ]
    return ReportTable(
        "Params",
        (
            *("param", "searched", "first trial", "best trial", "best tenth"),
            *(f"importance{name} [%]" for name in names),
            "meaning",
        ),
        rows,
        note="First trial: the published values.  Best tenth: the middle 80 % of the values of the best "
        f"tenth of complete trials{_by(source)}.  Importance: see the chart.  Fixed values: "
        f"`ucd-ray config {scenario}`.",
    )


def _by(source: Source) -> str:
    return f" by {source.goals.objectives[0]}" if source.goals.several else ""


def _shares(source: Source, objective: int) -> dict[str, str]:
    """The importance of each param for an objective, as far as it can be had."""
    try:
        found = importances(source, objective)
    except NotDrawn:
        return {}
    return {i.key: f"{i.share:.0f} ({i.low:.0f} to {i.high:.0f})" for i in found}


def _value(trial: FrozenTrial, key: str) -> str:
    return short(trial.params[key]) if key in trial.params else "not used"


def _middle(trials: Sequence[FrozenTrial], key: str) -> str:
    """Where most values lie: an interval of numbers, the choices and how often they occur."""
    values = [trial.params[key] for trial in trials if key in trial.params]
    if not values:
        return ""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        low, high = np.percentile(values, (10, 90))
        return f"{short(float(low))} to {short(float(high))}"
    counts: dict[str, int] = {}
    for value in values:
        counts[short(value)] = counts.get(short(value), 0) + 1
    order = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{choice}: {count}" for choice, count in order)


def ended(source: Source) -> ReportTable:
    """How trials ended that have no value, with the reasons."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for chunk in trial_chunks(source.database, source.study, whole=False):
        for trial in chunk:
            if trial.state not in ("COMPLETE", "RUNNING", "QUEUED"):
                why = trial.reason or ""
                if trial.state == "PRUNED":  # the epoch differs from trial to trial
                    why = why.partition(" at epoch ")[0]
                found.setdefault((trial.state, trial.code or "", why), []).append(trial.number)
    rows = [
        (state, code, f"{len(numbers):,}", _some(numbers), why)
        for (state, code, why), numbers in sorted(found.items(), key=lambda item: -len(item[1]))
    ]
    left = len(rows) - 2 * TOP
    return ReportTable(
        "Trials without a value",
        ("state", "code", "trials", "numbers", "reason"),
        rows[: 2 * TOP],
        (False, False, True, False, False),
        f"{left:,} more reasons are left out." if left > 0 else "",
    )


def _some(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:NAMED]))
    return f"{shown}, ..." if len(numbers) > NAMED else shown


def ledger(source: Source) -> ReportTable:
    """What the workers' time went into."""
    spent = totals(source.database, source.study)
    whole = held(spent)
    on_gpus = whole.gpu > 0
    rows = []
    for kind in KINDS:
        value = spent.get(kind, Spent())
        seconds, total = (value.gpu, whole.gpu) if on_gpus else (value.cpu, whole.cpu)
        share = f"{100 * seconds / total:.0f}" if total and kind != "saved" else ""
        rows.append((kind, f"{seconds:,.0f}", share))
    wall = spent.get("wall", Spent()).cpu
    return ReportTable(
        "Ledger",
        ("kind", "GPU time [s]" if on_gpus else "CPU time [s]", "share [%]"),
        rows if whole.cpu or whole.gpu else [],
        (False, True, True),
        f"The study was driven for {wall / 3600:.2f} h.  saved: training that the step cache spared.",
    )


def environments(source: Source) -> ReportTable:
    """Versions and machines that trained the steps, and what wrote the report."""
    c = environment_table.c
    query = sa.select(c.content).where(c.study == source.study).order_by(c.digest)
    stored = source.database.read(lambda connection: connection.execute(query).scalars().all())
    found = [dict(_facts(json.loads(content))) for content in stored]
    names = list(dict.fromkeys(name for facts in found for name in facts))
    rows = [(name, *(facts.get(name, "") for facts in found)) for name in names]
    here = ", ".join(f"{name} {version(name)}" for name in ("ucd-ray", "optuna", "plotly"))
    return ReportTable(
        "Versions and machines",
        ("", *(f"trained with, {i}" for i in range(1, len(found) + 1))),
        rows or [("", "an earlier version of ucd-ray, which kept none")],
        note=f"The report was written with {here}.",
    )


def _facts(environment: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and value of everything that an environment says."""
    for name, value in environment.items():
        if isinstance(value, dict):
            yield from ((str(key), str(found)) for key, found in value.items())
        else:
            yield name, "unknown" if value is None else str(value)


def headline(source: Source) -> str:
    """The best trial in a sentence, or that there is none."""
    if not source.complete:
        return "No trial is complete."
    if not source.front:
        limits = " and ".join(limit.text for limit in source.goals.limits)
        return f"No complete trial keeps {limits}."
    values = (
        f"{o.measure.label} {value:.2f} {o.measure.unit}"
        for o, value in zip(source.objectives, source.best.values, strict=True)
    )
    named = f"trial {source.best.number}, {', '.join(values)} on {source.images}"
    if not source.goals.several:
        return f"Best: {named}."
    return (
        f"{len(source.front):,} trials are in the Pareto set; the best of them in "
        f"{source.objectives[0].measure.label}: {named}."
    )
