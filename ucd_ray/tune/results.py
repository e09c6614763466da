"""Result tables of a study as `pyarrow.Table`s, and the formats they leave in."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet
import sqlalchemy as sa
from rich.table import Table

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.tune import commands
from ucd_ray.tune.database import Database
from ucd_ray.tune.progress import short, shown_state
from ucd_ray.tune.tables import metric_table, step_table

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FORMATS = ("table", "csv", "json", "parquet", "arrow")
STEP_METRICS = ("miou_old", "miou_new", "miou_all")
FINAL_METRICS = ("miou_base", "miou_added", "miou_all", "forgetting")


def trials_table(database: Database, name: str) -> pa.Table:
    """One row per trial: number, state, params, mIoU per step on val, seconds, reason.

    Columns: `number state value seconds`, one per searched key, `step<t>_miou_old|new|all` and the
    last step's `miou_base miou_added miou_all forgetting` (percent, on val; with background as
    `*_bg` where it is scored), `code reason`.  `value` is the objective on the images of
    `eval.select_on`, the metadata of the schema says which.  Raises StudyError.
    """
    spec = database.stored_spec(name)
    trials, driven = stored_trials(database, name), commands.driven(database, name)
    measured = _measured(database, name)
    about = database.about(name)
    keys = sorted({key for trial in trials for key in trial.params} | set(spec["search"]))
    rows = [_row(trial, keys, measured.get(trial.number, {}), about, driven) for trial in trials]
    metadata = {"study": name, **{k: str(v) for k, v in about.items()}}
    return _table(rows, _columns(keys, about), metadata)


def stored_trials(database: Database, name: str) -> list[FrozenTrial]:
    """The trials of a study by number; none if its driver died before it asked for one."""
    import optuna

    try:
        study = optuna.load_study(study_name=name, storage=database.optuna_storage())
    except KeyError:
        return []
    return study.get_trials(deepcopy=False)


def state_of(trial: FrozenTrial, *, driven: bool) -> tuple[str, str | None, str | None]:
    """A trial's state in our words, its reason code and the reason; driven: its study has a driver."""
    attributes = trial.user_attrs
    if trial.state.is_finished():
        code, reason = attributes.get("code"), attributes.get("reason")
        return shown_state(trial.state.name, attributes), code, reason
    if trial.state.name == "RUNNING" and not driven:
        return (
            "WAITING",
            "NO_DRIVER",
            "nothing runs the study; its next start goes on with this trial",
        )
    return shown_state(trial.state.name, attributes), None, attributes.get("waiting")


def _measured(database: Database, name: str) -> dict[int, dict[int, dict[str, float | None]]]:
    """Val metrics by trial and step."""
    query = sa.select(metric_table).where(
        metric_table.c.study == name, metric_table.c.images == "val"
    )
    found: dict[int, dict[int, dict[str, float | None]]] = {}
    with database.errors(), database.engine.connect() as connection:
        for row in connection.execute(query):
            found.setdefault(row.number, {}).setdefault(row.step, {})[row.metric] = row.value
    return found


def step_seconds(database: Database, name: str) -> dict[tuple[int, int], tuple[bool, float]]:
    """(trial, step) -> whether it came from the step cache, seconds of training it."""
    query = sa.select(step_table).where(step_table.c.study == name)
    with database.errors(), database.engine.connect() as connection:
        rows = connection.execute(query)
        return {(row.number, row.step): (row.cached, row.seconds) for row in rows}


def _columns(keys: list[str], about: dict[str, Any]) -> list[str]:
    steps = range(int(about.get("steps", 0)))
    per_step = [f"step{step}_{metric}" for step in steps for metric in STEP_METRICS]
    final = [*FINAL_METRICS]
    if about.get("background"):
        final += ["miou_base_bg", "miou_added_bg", "miou_all_bg"]
    return ["number", "state", "value", "seconds", *keys, *per_step, *final, "code", "reason"]


def _row(
    trial: FrozenTrial,
    keys: list[str],
    steps: dict[int, dict[str, float | None]],
    about: dict[str, Any],
    driven: bool,
) -> dict[str, Any]:
    state, code, reason = state_of(trial, driven=driven)
    row: dict[str, Any] = {
        "number": trial.number,
        "state": state,
        # Optuna keeps a pruned trial's last intermediate value: no result of a whole run.
        "value": trial.value if trial.state.name == "COMPLETE" else None,
        "seconds": trial.user_attrs.get("seconds"),
        "code": code,
        "reason": reason,
        **{key: trial.params.get(key) for key in keys},
    }
    for step, means in steps.items():
        row |= {f"step{step}_{metric}": means.get(metric) for metric in STEP_METRICS}
    last = int(about.get("steps", 0)) - 1
    if last in steps:
        row |= {k: v for k, v in steps[last].items() if k in FINAL_METRICS or k.endswith("_bg")}
    return row


def _table(rows: list[dict[str, Any]], names: list[str], metadata: dict[str, str]) -> pa.Table:
    arrays = [_array([row.get(name) for row in rows], name) for name in names]
    return pa.table(dict(zip(names, arrays, strict=True))).replace_schema_metadata(metadata)


def _array(values: list[Any], name: str) -> pa.Array:
    """A column; choices of mixed types become text."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        text = name in ("state", "code", "reason")
        return pa.array(values, pa.string() if text else pa.float64())
    if len(kinds) > 1 and kinds != {int, float}:
        return pa.array([None if value is None else str(value) for value in values], pa.string())
    return pa.array(values)


def render(table: pa.Table, title: str) -> Table:
    """The trials for a terminal: params, mIoU per step, state, seconds; best value first."""
    about = table.schema.metadata or {}
    on = about.get(b"select_on", b"holdout").decode()
    caption = (
        f"mIoU in percent on val, without background; setting {about.get(b'setting', b'').decode()}; "
        f"value: {about.get(b'objective', b'').decode()} on {on}"
        + (" (searched on val, as the papers do)" if on == "val" else "")
    )
    shown = Table(title=title, caption=caption)
    names = [n for n in table.column_names if not n.endswith("_bg") and n not in ("code", "reason")]
    names = [n for n in names if n not in FINAL_METRICS or n == "forgetting"]
    names = [n for n in names if n != "step0_miou_old" and n != "step0_miou_new"] + ["reason"]
    for name in names:
        header = name.replace("_miou_", "\n").replace(".", ".\n")
        words = name == "reason"
        shown.add_column(
            header, justify="left" if words else "right", min_width=24 if words else None
        )
    for row in sorted(table.to_pylist(), key=lambda r: (r["value"] is None, -(r["value"] or 0))):
        shown.add_row(*(_cell(row[name], name) for name in names))
    return shown


def _cell(value: Any, name: str) -> str:
    if value is None:
        return "all" if "." in name else ""  # a param; null sample counts mean all
    if isinstance(value, float) and ("miou" in name or name in ("value", "forgetting", "seconds")):
        return f"{value:.1f}"
    return short(value)


def encode(table: pa.Table, form: str) -> bytes:
    """The table as csv, json, parquet or arrow (IPC file).  Raises ConfigError."""
    if form not in FORMATS:
        raise ConfigError(f"unknown format '{form}'; {did_you_mean(form, FORMATS)}")
    if form == "json":
        return (json.dumps(table.to_pylist(), indent=1) + "\n").encode()
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, table.column_names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.to_pylist())
        return text.getvalue().encode()
    sink = pa.BufferOutputStream()
    if form == "parquet":
        pyarrow.parquet.write_table(table, sink)
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


def write(content: bytes, path: Path) -> None:
    """Writes a result file.  Raises ConfigError if the place cannot be written."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"cannot write '{path}': {error.strerror}") from None
