"""How fast the tables of a large study are read and written, and in how much memory.

    python benchmarks/tables.py --trials 100000

Makes a study of msrc-11-5 (three steps, 22 classes) in a SQLite file of its own, then has every view
written in every format, each in a process of its own.  `+MiB` is how far the peak memory of that process
rose above what it took to read a study of a few trials.  The plain ways beside it: Optuna's
`trials_dataframe()`, and all rows of a query in one list.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.study import StudyDirection
from rich.console import Console
from rich.table import Table

from ucd_ray.tune.database import Database
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.proposals import distribution
from ucd_ray.tune.registration import facts
from ucd_ray.tune.space import build_spec, load_search_space
from ucd_ray.tune.tables import class_table, metric_table, step_table
from ucd_ray.tune.trial_rows import PARAMS, TRIALS, USER_ATTRS, VALUES, text_of

SCENARIO = "msrc-11-5"
CLASSES = ("background", *(f"class {i}" for i in range(1, 22)))
METRICS = (*(f"miou_{group}" for group in ("all", "base", "added", "old", "new")), "forgetting")
SMALL = 50  # trials of the study that everything is warmed up with
CHUNK = 5000  # trials that are made at a time
PLAIN = {"trials csv": "trials_dataframe()", "classes csv": "classes in one list"}
FORMATS = ("csv", "json", "parquet", "arrow", "markdown", "latex")


# The study.


def build(url: str, name: str, trials: int, *, classes: bool = True) -> None:
    """A study with `trials` trials, nine of ten complete; the database itself makes the rows.

    classes: also the IoU of each class, of which there are a hundred times as many
    """
    spec = build_spec(load_search_space(SCENARIO), name=name)
    recipe = spec.base_recipe()
    database = Database(url)
    database.save_spec(name, spec.model_dump_json(), {**facts(spec, recipe), "classes": CLASSES})
    study_id = database.optuna_storage().create_new_study([StudyDirection.MAXIMIZE], name)
    for first in range(0, trials, CHUNK):
        numbers = range(first, min(first + CHUNK, trials))
        with database.engine.begin() as connection:
            add_trials(connection, study_id, numbers)
            of_chunk = (TRIALS.c.study_id == study_id) & (TRIALS.c.number >= first)
            add_params(connection, spec.search, of_chunk)
            add_measured(connection, name, recipe.steps, of_chunk, classes=classes)


def add_trials(connection: sa.Connection, study_id: int, numbers: range) -> None:
    """Trials with value, seconds and, if pruned, the reason."""
    states = {n: "COMPLETE" if n % 10 else "PRUNED" for n in numbers}
    rows = [{"study_id": study_id, "number": n, "state": states[n]} for n in numbers]
    connection.execute(sa.insert(TRIALS), rows)
    made = (TRIALS.c.study_id == study_id) & (TRIALS.c.number >= numbers.start)
    pruned = TRIALS.c.number % 10 == 0
    value = (sa.literal(0), percent(TRIALS.c.number), sa.literal("FINITE"))
    copy(connection, VALUES, [TRIALS.c.trial_id, *value], made & ~pruned)
    for key, text, where in (
        ("seconds", "61.5", made),
        ("code", '"PRUNER"', made & pruned),
        ("reason", '"weaker than the median of earlier trials at epoch 3"', made & pruned),
    ):
        literals = [sa.literal(key), sa.literal(text)]
        copy(connection, USER_ATTRS, [TRIALS.c.trial_id, *literals], where)


def add_params(connection: sa.Connection, search: dict[str, Parameter], where: Any) -> None:
    """Params within their ranges."""
    for key, parameter in search.items():
        choices = parameter.choices
        value = (
            TRIALS.c.number % len(choices)
            if choices
            else parameter.low + (parameter.high - parameter.low) * percent(TRIALS.c.number) / 100
        )
        text = sa.literal(text_of(distribution(parameter)))
        copy(connection, PARAMS, [TRIALS.c.trial_id, sa.literal(key), value, text], where)


def add_measured(
    connection: sa.Connection, name: str, scenario: Any, where: Any, *, classes: bool = True
) -> None:
    """Steps, means and classes, in the order of their keys."""
    number, steps = TRIALS.c.number, range(len(scenario.steps))
    start = [sa.literal(name), number, sa.literal(0)]
    plain = rows_of("steps", [(step, step == 0, 9.5, 120, 500) for step in steps])
    copy(connection, step_table, [*start, *plain.c], where, each=plain)
    sets = [(step, images) for step in steps for images in ("select", "val")]
    means = rows_of("means", [(*key, metric) for key in sets for metric in METRICS])
    copy(
        connection,
        metric_table,
        [*start, *means.c, percent(number + means.c.c0)],
        where,
        each=means,
    )
    if classes:
        each = rows_of(
            "classes", [(*key, c) for key in sets for c in scenario.classes_until(key[0])]
        )
        iou = percent(number * 7 + each.c.c2)
        copy(connection, class_table, [*start, *each.c, iou, iou / 10], where, each=each)


def rows_of(name: str, rows: list[tuple[Any, ...]]) -> sa.CTE:
    """Rows as a table of the statement."""
    columns = [sa.column(f"c{i}", sa.literal(value).type) for i, value in enumerate(rows[0])]
    return sa.values(*columns, name=name).data(rows).cte(name)


def copy(
    connection: sa.Connection,
    table: sa.Table,
    values: list[Any],
    where: Any,
    *,
    each: sa.CTE | None = None,
) -> None:
    """Fills a table from trials and `each`: its columns in their order, but for a running number."""
    own = list(table.primary_key.columns)
    names = [c.name for c in table.columns if len(own) > 1 or c is not own[0]]
    source = TRIALS if each is None else sa.join(TRIALS, each, sa.true())
    rows = sa.select(*values).select_from(source).where(where)
    connection.execute(table.insert().from_select(names[: len(values)], rows))


def percent(number: Any) -> Any:
    """A percentage with decimals that differs from trial to trial."""
    return (number * 7919 % 9973) / 99.73


# What is measured.


def ours(url: str, study: str, view: str, form: str, path: Path, **chosen: Any) -> None:
    """A view in a format, as `ucd-ray results` writes it."""
    from ucd_ray.tune.formats import replaced, write
    from ucd_ray.tune.results import read

    with replaced(path) as sink:
        write(read(Database(url), study, view, **chosen), form, sink)


def screen(url: str, study: str, path: Path) -> None:
    """The best trials on a terminal."""
    from ucd_ray.tune.results import read
    from ucd_ray.tune.screen import BEST_FIRST, render

    rows = read(Database(url), study, order_by=BEST_FIRST, limit=100)
    with path.open("w") as file:
        Console(file=file, width=200).print(render(rows, study))


def report(url: str, study: str, path: Path) -> None:
    """The report with its charts."""
    from ucd_ray.tune.charts import Source
    from ucd_ray.tune.report import write_report

    write_report(Source(Database(url), study), path)


def dataframe(url: str, study: str, path: Path) -> None:
    """Optuna's way."""
    optuna.load_study(study_name=study, storage=url).trials_dataframe().to_csv(path)


def listed(url: str, study: str, path: Path) -> None:
    """All classes in one list."""
    import pyarrow as pa
    import pyarrow.csv

    query = sa.select(class_table).where(
        class_table.c.study == study, class_table.c.images == "val"
    )
    with Database(url).engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(query).mappings()]
    pa.csv.write_csv(pa.Table.from_pylist(rows), path)


def measured(
    call: Callable[..., None], url: str, *arguments: Any, **named: Any
) -> tuple[float, float, float]:
    """Seconds, MiB of peak memory above that of a small study, MB of the file."""

    def run(pipe: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table"
            call(url, "small", *arguments, path, **named)
            before, start = peak(), time.perf_counter()
            call(url, "large", *arguments, path, **named)
            pipe.send((time.perf_counter() - start, peak() - before, path.stat().st_size / 1e6))

    ours, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=run, args=(its,))
    process.start()
    its.close()
    result: tuple[float, float, float] = ours.recv()
    process.join()
    return result


def peak() -> float:
    """Peak memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cases() -> list[tuple[str, Callable[..., None], tuple[Any, ...], dict[str, Any]]]:
    """What is measured: its name, function and arguments."""
    found: list[tuple[str, Callable[..., None], tuple[Any, ...], dict[str, Any]]] = []
    for view in ("trials", "runs", "steps", "classes"):
        forms = FORMATS if view == "trials" else ("csv", "json", "parquet")
        found += [(f"{view} {form}", ours, (view, form), {}) for form in forms]
    found.append(("paper csv", ours, ("paper", "csv"), {}))
    first = {"order_by": ["-iou"], "limit": 20, "filters": ["step=2"]}
    found += [
        ("trials table, best first", screen, (), {}),
        ("report", report, (), {}),
        ("classes csv, 20 best of step 2", ours, ("classes", "csv"), first),
        ("classes parquet, sorted", ours, ("classes", "parquet"), {"order_by": ["-iou"]}),
        ("trials_dataframe()", dataframe, (), {}),
        ("classes in one list", listed, (), {}),
    ]
    return found


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--database", help="file of an earlier run, or to keep; default: temporary")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(options.database or f"{folder}/studies.db").absolute()
        start = time.perf_counter()
        if not path.exists():
            build(f"sqlite:///{path}", "small", SMALL)
            build(f"sqlite:///{path}", "large", options.trials)
        made = time.perf_counter() - start
        with Database(f"sqlite:///{path}").engine.connect() as connection:
            trials = connection.execute(sa.select(sa.func.count(TRIALS.c.trial_id))).scalar_one()
        size = path.stat().st_size / 1e9
        console.print(f"{trials - SMALL} trials: {size:.2f} GB in {made:.0f} s")
        table = Table("table", "s", "+MiB", "MB written")
        found = {}
        for name, call, arguments, named in cases():
            if options.only in name:
                found[name] = measured(call, f"sqlite:///{path}", *arguments, **named)
                table.add_row(name, *(f"{number:.1f}" for number in found[name]))
    console.print(table)
    for mine, other in PLAIN.items():
        if mine in found and other in found:
            times, memory = (found[other][i] / max(found[mine][i], 0.1) for i in (0, 1))
            console.print(
                f"{other}: {times:.1f} x the time and {memory:.0f} x the memory of {mine}"
            )


if __name__ == "__main__":
    main()
