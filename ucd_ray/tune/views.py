"""The views of a study: streams of Arrow record batches, read in the memory of one batch.

    trials    a row per trial: params, state, mIoU per step on val, means over its replicates
    runs      a row per replicate: seed, class order, state, value, mIoU after the last step on val
    steps     a row per replicate and step: mIoU and forgetting on val, time, the searched value
    classes   a row per replicate, step and class: IoU and forgetting on val

A view takes a database and the name of a study and returns a `pyarrow.RecordBatchReader`: its schema is
known before the first row, `read_all()` makes the table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import NoneType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from ucd_ray.tune.cells import column
from ucd_ray.tune.chunks import StoredTrial, param_types, trial_chunks
from ucd_ray.tune.database import Database
from ucd_ray.tune.front import pareto_set
from ucd_ray.tune.goals import Goals, goals_of
from ucd_ray.tune.goals import unit_of as unit_of_metric
from ucd_ray.tune.marks import Marks
from ucd_ray.tune.replicates import Replicate, replicates_of
from ucd_ray.tune.spec import conditional_keys
from ucd_ray.tune.statistics import spread
from ucd_ray.tune.tables import class_table, metric_table, step_table

STEP_METRICS = ("miou_old", "miou_new", "miou_all")
FINAL_METRICS = ("miou_base", "miou_added", "miou_all", "forgetting")
FINAL_WITH_BACKGROUND = ("miou_base_bg", "miou_added_bg", "miou_all_bg")
GROUPS = ("base", "added", "old", "new", "all")
SPREAD = (
    *(column(f"value_{name}", float, "percent") for name in ("std", "low", "high")),
    column("replicates", int),
)


def trials_view(database: Database, study: str) -> pa.RecordBatchReader:
    """One row per trial: number, state, params, mIoU per step on val, seconds, reason.

    Columns: `number state value seconds`, one per searched key, `step<t>_miou_old|new|all` and the
    last step's `miou_base miou_added miou_all forgetting` (percent, on val, means over replicates;
    with background as `*_bg` where it is scored), `code reason`.  `value` is the objective on the images of
    `eval.select_on`, the metadata of the schema says which.  A null param means all, if that may
    be; where not every trial has a key, null is absent and all is the text `all`.  A queued trial has the
    params that it was given.  Where trials are measured several times
    `value` is the mean over replicates, and `value_std value_low value_high replicates` follow: standard
    deviation, 95 % interval and how many were finished, also of trials that were dropped.  With several
    objectives `value` is the first, `value_<metric>` each, and `pareto` says whether no other trial beats
    it; with limits on results there are their metrics too, and `feasible`.  After `seconds`, a study that
    was edited has `revision` and `fits` (its sampler learns from the trial).  Trials that were taken over
    follow, with state TAKEN and no number.  Raises StudyError.
    """
    spec, about, marks = database.stored_spec(study), database.about(study), Marks(database, study)
    kinds, searched, some = param_types(database, study), spec["search"], conditional_keys(spec)
    several = len(replicates_of(spec)) > 1
    for key, parameter in searched.items():
        kinds.setdefault(key, set()).update(map(type, parameter["choices"] or ()))
    nullable = {key for key, found in kinds.items() if NoneType in found}
    keys = {key: _kind_of(kinds[key] - {NoneType}) for key in sorted(kinds)}
    keys |= dict.fromkeys(some & nullable, str)
    goals, last = goals_of(spec), int(about.get("steps", 0)) - 1
    final = [*FINAL_METRICS, *(FINAL_WITH_BACKGROUND if about.get("background") else ())]
    per_step = [f"step{step}_{metric}" for step in range(last + 1) for metric in STEP_METRICS]
    columns = [
        *(column("number", int), column("state", str)),
        column("value", float, unit_of_metric(goals.objectives[0])),
        *(SPREAD if several else ()),
        *_goal_columns(goals),
        column("seconds", float, "s"),
        *marks.columns(),
        *(
            column(key, kind, conditional=key in some or key not in nullable)
            for key, kind in keys.items()
        ),
        *(_metric(name) for name in (*per_step, *final)),
        *(column("code", str), column("reason", str)),
    ]

    def rows(trials: list[StoredTrial]) -> Iterator[dict[str, Any]]:
        measured: dict[int, dict[str, Any]] = {trial.number: {} for trial in trials}
        names = list(dict.fromkeys([*STEP_METRICS, *final]))
        means = _means(study, _range(trials), names, by=("number", "step"))
        for row in database.read(lambda connection: connection.execute(means).mappings().all()):
            found, step = measured.setdefault(row["number"], {}), row["step"]
            found |= {f"step{step}_{metric}": row[metric] for metric in STEP_METRICS}
            if step == last:
                found |= {metric: row[metric] for metric in final}
        for trial in trials:
            marked = {**_spread(trial), **marks.mark(trial), **_reached(goals, trial, front)}
            params = trial.params or _holdable(trial.given, keys)
            yield {**vars(trial), **marked, **params, **measured[trial.number]}

    about = {**about, "objective": goals.objectives[0]}  # which `value` is
    front: set[int] = set()
    text = {key for key, kind in keys.items() if kind is str}

    def batch(found: list[dict[str, Any]]) -> pa.RecordBatch:
        for row in found:
            for key in text & set(row):
                row[key] = _text(row[key], "all" if key in some else None)
        arrays = [pa.array([row.get(f.name) for row in found], f.type) for f in schema]
        return pa.record_batch(arrays, schema)

    def batches() -> Iterator[pa.RecordBatch]:
        if goals.several:
            every = trial_chunks(database, study)
            front.update(pareto_set(itertools.chain.from_iterable(every), goals))
        for trials in trial_chunks(database, study, measured=several):
            yield batch(list(rows(trials)))
        if found := list(marks.taken()):
            yield batch(found)

    schema = _schema(columns, study, about)
    return pa.RecordBatchReader.from_batches(schema, batches())


def _goal_columns(goals: Goals) -> Iterator[pa.Field]:
    """Columns of a study that is after more than one number."""
    if goals.several or goals.limits:
        yield from (column(f"value_{m}", float, unit_of_metric(m)) for m in goals.metrics)
    if goals.several:
        yield column("pareto", bool)
    if goals.limits:
        yield column("feasible", bool)


def _reached(goals: Goals, trial: StoredTrial, front: set[int]) -> dict[str, Any]:
    """Their values for one trial; nothing for one that is not complete."""
    if trial.value is None:
        return {}
    verdict = {"pareto": trial.number in front, "feasible": not goals.broken(trial.results)}
    return {**{f"value_{name}": value for name, value in trial.results.items()}, **verdict}


def steps_view(database: Database, study: str) -> pa.RecordBatchReader:
    """One row per step of each replicate of a trial, as measured after that step.

    Columns: `number state replicate step cached seconds images iterations`, `value` (the objective, or
    what is pruned on, on the images of `eval.select_on`), `miou_base|added|old|new|all` in percent on val,
    each with background as `*_bg` where it is scored, `forgetting` in points.  `images` counts the
    training images, `cached` says that the step came from the step cache, `seconds` what training took.
    """
    scalar = goals_of(database.stored_spec(study)).scalar
    about = {**database.about(study), "objective": scalar}
    suffixes = ("", "_bg") if about.get("background") else ("",)
    metrics = [f"miou_{group}{suffix}" for suffix in suffixes for group in GROUPS]
    metrics.append("forgetting")
    columns = [
        *(column("number", int), column("state", str)),
        *(column("replicate", int), column("step", int)),
        *(column("cached", bool), column("seconds", float, "s")),
        *(column("images", int), column("iterations", int)),
        column("value", float, unit_of_metric(scalar)),
        *map(_metric, metrics),
    ]

    def query(numbers: tuple[int, int]) -> sa.Select[Any]:
        key = ("number", "replicate", "step")
        means = _means(study, numbers, metrics, by=key, objective=scalar).subquery()
        plain = [step_table.c[n] for n in (*key, "cached", "seconds", "images", "iterations")]
        measured = [means.c[name] for name in ("value", *metrics)]
        same = sa.and_(*(means.c[name] == step_table.c[name] for name in key))
        return (
            sa.select(*plain, *measured)
            .join_from(step_table, means, same)
            .where(step_table.c.study == study, step_table.c.number.between(*numbers))
            .order_by(*(step_table.c[name] for name in key))
        )

    return _measured(_schema(columns, study, about), database, study, query)


def classes_view(database: Database, study: str) -> pa.RecordBatchReader:
    """One row per step of each replicate of a trial, and class seen until then.

    Columns: `number state replicate step class_id class_name learned_at` (the step that learns the class),
    `iou` in percent on val, null without truth pixels, and `forgetting`, the best earlier IoU minus
    this one in points, null for classes of this step.
    """
    database.stored_spec(study)
    about = database.about(study)
    names = list(about.get("classes") or ())
    columns = [
        *(column("number", int), column("state", str)),
        *(column("replicate", int), column("step", int)),
        *(column("class_id", int), column("class_name", str), column("learned_at", int)),
        *(column("iou", float, "percent"), _metric("forgetting")),
    ]
    order = [class_table.c[n] for n in ("number", "replicate", "step", "images", "class_id")]
    kept = [*(c for c in order if c.name != "images"), class_table.c.iou, class_table.c.forgetting]

    def query(numbers: tuple[int, int]) -> sa.Select[Any]:
        of_study = (class_table.c.study == study) & (class_table.c.images == "val")
        within = class_table.c.number.between(*numbers)
        return sa.select(*kept).where(of_study, within).order_by(*order)

    def more(found: dict[str, pa.Array]) -> None:
        ids = found["class_id"]
        missing = [None] * (pc.max(ids).as_py() + 1 - len(names))
        found["class_name"] = pa.array([*names, *missing], pa.string()).take(ids)
        found["learned_at"] = _first_step(found)

    schema = _schema(columns, study, about)
    return _measured(schema, database, study, query, more)


def runs_view(database: Database, study: str) -> pa.RecordBatchReader:
    """One row per replicate of a trial, replicate after replicate.

    Columns: `number replicate seed class_order state value seconds`, the last step's
    `miou_base miou_added miou_all forgetting` on val (with background as `*_bg` where it is scored),
    `code reason`.  Class order 0 is the scenario's own.
    """
    stored, about = database.stored_spec(study), database.about(study)
    final = [*FINAL_METRICS, *(FINAL_WITH_BACKGROUND if about.get("background") else ())]
    last = int(about.get("steps", 0)) - 1
    columns = [
        *(column(name, int) for name in ("number", "replicate", "seed", "class_order")),
        column("state", str),
        *(column("value", float, "percent"), column("seconds", float, "s")),
        *map(_metric, final),
        *(column("code", str), column("reason", str)),
    ]

    def rows(trials: list[StoredTrial], of: Replicate) -> Iterator[dict[str, Any]]:
        means = _means(study, _range(trials), final, by=("number", "replicate", "step"))
        mine = means.where(metric_table.c.replicate == of.number, metric_table.c.step == last)
        found = database.read(lambda connection: connection.execute(mine).mappings().all())
        measured = {row["number"]: {name: row[name] for name in final} for row in found}
        same = {"replicate": of.number, "seed": of.seed, "class_order": of.order}
        for trial in trials:
            yield {**vars(trial), **measured.get(trial.number, {}), **same}

    def batches() -> Iterator[pa.RecordBatch]:
        replicates = replicates_of(stored)
        for one in replicates:
            only = one.number if len(replicates) > 1 else None
            for trials in trial_chunks(database, study, replicate=only):
                found = list(rows(trials, one))
                arrays = [pa.array([row.get(f.name) for row in found], f.type) for f in schema]
                yield pa.record_batch(arrays, schema)

    schema = _schema(columns, study, about)
    return pa.RecordBatchReader.from_batches(schema, batches())


def _measured(
    schema: pa.Schema,
    database: Database,
    study: str,
    query: Callable[[tuple[int, int]], sa.Select[Any]],
    more: Callable[[dict[str, pa.Array]], None] = lambda _: None,
) -> pa.RecordBatchReader:
    """What was measured after the steps of trials, with each trial's state.

    query: its rows, between two numbers of trials; more: adds columns made from those
    """

    def batches() -> Iterator[pa.RecordBatch]:
        for trials in trial_chunks(database, study, whole=False):
            names, rows = database.read(partial(_fetched, query=query(_range(trials))))
            if not rows:
                continue
            values = zip(*rows, strict=True)
            found = {
                n: pa.array(v, schema.field(n).type) for n, v in zip(names, values, strict=True)
            }
            places = pc.index_in(found["number"], pa.array([trial.number for trial in trials]))
            found["state"] = pa.array([trial.state for trial in trials]).take(places)
            more(found)
            yield pa.record_batch([found[field.name] for field in schema], schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _fetched(
    connection: sa.Connection, *, query: sa.Select[Any]
) -> tuple[list[str], Sequence[Any]]:
    result = connection.execute(query)
    return list(result.keys()), result.all()


def _means(
    study: str,
    numbers: tuple[int, int],
    metrics: Sequence[str],
    *,
    by: Sequence[str],
    objective: str | None = None,
) -> sa.Select[Any]:
    """`metrics` on val, and `value`, the objective on the select images: columns of a row for each `by`."""
    c = metric_table.c

    def pivoted(images: str, metric: str | None, name: str) -> sa.Label[Any]:
        where = (c.images == images) & (c.metric == metric)
        return sa.func.avg(sa.case((where, c.value))).label(name)

    wanted = (c.images == "val") & c.metric.in_(metrics)
    if objective is not None:
        wanted |= (c.images == "select") & (c.metric == objective)
    keys = [c[name] for name in by]
    values = [pivoted("val", metric, metric) for metric in metrics]
    return (
        sa.select(*keys, pivoted("select", objective, "value"), *values)
        .where(c.study == study, c.number.between(*numbers), wanted)
        .group_by(*keys)
    )


def _first_step(found: Mapping[str, pa.Array]) -> pa.Array:
    """[rows] the first step of each row's replicate that has the row's class; rows are in order."""
    key = np.zeros(len(found["step"]), np.int64)
    for name in ("number", "replicate", "class_id"):
        values = found[name].to_numpy()
        key = key * (values.max() + 1) + values
    _, first, of_row = np.unique(key, return_index=True, return_inverse=True)
    return pa.array(found["step"].to_numpy()[first][of_row])


def _spread(trial: StoredTrial) -> dict[str, Any]:
    """The columns of `SPREAD` of a trial."""
    if not trial.measured:
        return {"replicates": 0}
    found = spread(list(trial.measured.values()))
    values = {"std": found.std, "low": found.low, "high": found.high}
    return {**{f"value_{k}": v for k, v in values.items()}, "replicates": found.count}


def _range(trials: Sequence[StoredTrial]) -> tuple[int, int]:
    numbers = [trial.number for trial in trials]
    return min(numbers), max(numbers)


def _schema(columns: Sequence[pa.Field], study: str, about: dict[str, Any]) -> pa.Schema:
    facts = {k: str(v) for k, v in about.items() if isinstance(v, str | int | float)}
    return pa.schema(columns, {"study": study, **facts})


def _metric(name: str) -> pa.Field:
    return column(name, float, "points" if name == "forgetting" else "percent")


def _holdable(given: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    """The given params that their columns can hold: not 42.5 among whole choices."""
    holds: dict[type, tuple[type, ...]] = {float: (int, float), str: (object,)}
    return {
        k: v
        for k, v in given.items()
        if k in kinds and isinstance(v, holds.get(kinds[k], (kinds[k],)))
    }


def _kind_of(kinds: set[type]) -> type:
    """The kind of a param's column; choices of mixed kinds become text."""
    if not kinds or kinds == {int, float}:
        return float
    return kinds.pop() if len(kinds) == 1 else str


def _text(value: Any, null: str | None) -> str | None:
    return null if value is None else str(value)
