from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from rich.console import Console

from tests.tune.test_bridge import PUBLISHED, open_book, run_trial, spec_of
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.tune.database import Database
from ucd_ray.tune.results import encode, render, shown_state, step_seconds, trials_table, write

ABOUT = {
    "scenario": "shapes-8-4",
    "setting": "overlapped",
    "method": "mib+ucd",
    "objective": "miou_all",
    "select_on": "holdout",
    "steps": 2,
    "background": True,
}


def step(number: int, value: float) -> dict[str, Any]:
    names = ("old", "new", "all", "base", "added")
    means = {f"miou_{name}{bg}": value for name in names for bg in ("", "_bg")}
    means |= {"forgetting": 3.0, "miou_old": float("nan") if number == 0 else value - 1}
    images = {"means": means, "iou": {"0": value}, "forgetting": {}}
    counts = {"cached": number == 0, "seconds": 2.0, "images": 9, "iterations": 4}
    return {
        "kind": "step",
        "step": number,
        **counts,
        "select": images,
        "val": images,
        "entries": [],
    }


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """A study with a complete, a failed and a running trial."""
    book = open_book(tmp_path)
    book.database.save_spec("study", book.spec.model_dump_json(), ABOUT)
    chosen = book.next_trial()
    assert chosen is not None
    for number in (0, 1):
        book.report(0, step(number, 40.0 + number))
    book.report(0, {"kind": "done", "value": 44.0})
    book.close(0)
    book.next_trial()
    book.report(1, {"kind": "failed", "code": "NAN", "reason": "loss term 'kd' became nan"})
    book.close(1)
    book.next_trial()
    return book.database


@pytest.fixture
def table(database: Database) -> pa.Table:
    return trials_table(database, "study")


def test_a_row_holds_params_state_mious_and_reason(table: pa.Table) -> None:
    complete, failed, running = table.to_pylist()
    assert (complete["number"], complete["state"], complete["value"]) == (0, "COMPLETE", 44.0)
    assert {key: complete[key] for key in PUBLISHED} == PUBLISHED
    assert complete["step0_miou_all"] == 40.0
    assert complete["step0_miou_old"] is None
    assert (complete["step1_miou_old"], complete["step1_miou_new"]) == (40.0, 41.0)
    assert (complete["miou_base"], complete["miou_all_bg"], complete["forgetting"]) == (
        *(41.0, 41.0, 3.0),
    )
    assert complete["seconds"] >= 0
    assert complete["reason"] is None
    assert (failed["state"], failed["code"]) == ("FAILED", "NAN")
    assert failed["reason"] == "loss term 'kd' became nan"
    assert failed["step1_miou_all"] is None
    assert (running["state"], running["value"]) == ("WAITING", None)
    assert (running["code"], "next start" in running["reason"]) == ("NO_DRIVER", True)


def test_columns_come_in_a_fixed_order(table: pa.Table) -> None:
    assert table.column_names == [
        *("number", "state", "value", "seconds"),
        *("kd.weight", "ucd.max_old", "ucd.weight"),
        *("step0_miou_old", "step0_miou_new", "step0_miou_all"),
        *("step1_miou_old", "step1_miou_new", "step1_miou_all"),
        *("miou_base", "miou_added", "miou_all", "forgetting"),
        *("miou_base_bg", "miou_added_bg", "miou_all_bg"),
        *("code", "reason"),
    ]


def test_without_a_scored_background_no_column_has_it(database: Database) -> None:
    spec = json.dumps(database.spec("study"))
    database.save_spec("study", spec, {**ABOUT, "background": False})
    assert [n for n in trials_table(database, "study").column_names if n.endswith("_bg")] == []


def test_the_schema_says_what_value_was_measured_on(table: pa.Table) -> None:
    assert table.schema.metadata[b"objective"] == b"miou_all"
    assert table.schema.metadata[b"select_on"] == b"holdout"


def test_choices_of_mixed_kinds_become_text(tmp_path: Path) -> None:
    search = {"ucd.form": {"choices": ["standard", "authors"]}, "ucd.max_old": {"choices": [1, 2]}}
    book = open_book(tmp_path, spec_of(search=search, first={}))
    run_trial(book, 1.0)
    schema = trials_table(book.database, "study").schema
    assert schema.field("ucd.form").type == pa.string()
    assert schema.field("ucd.max_old").type == pa.int64()


def test_a_registered_study_without_trials_is_an_empty_table(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/studies.db")
    database.save_spec("study", spec_of().model_dump_json(), ABOUT)
    table = trials_table(database, "study")
    assert table.num_rows == 0
    assert "ucd.weight" in table.column_names


def test_an_unknown_study_is_refused_with_the_nearest_name(database: Database) -> None:
    with pytest.raises(StudyError, match=r"no study 'stdy' in '.*'; did you mean 'study'"):
        trials_table(database, "stdy")


def test_in_an_empty_database_no_name_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no study has been started yet"):
        trials_table(Database(f"sqlite:///{tmp_path}/studies.db"), "x")


def test_times_of_steps_say_which_came_from_the_cache(database: Database) -> None:
    assert step_seconds(database, "study") == {(0, 0): (True, 2.0), (0, 1): (False, 2.0)}


# Formats.


def test_arrow_and_parquet_come_back_as_the_same_table(table: pa.Table) -> None:
    arrow = pa.ipc.open_file(encode(table, "arrow")).read_all()
    assert arrow.equals(table, check_metadata=True)
    parquet = pa.parquet.read_table(io.BytesIO(encode(table, "parquet")))
    assert parquet.equals(table)
    assert parquet.schema.metadata == table.schema.metadata


def test_json_comes_back_as_the_same_rows(table: pa.Table) -> None:
    assert json.loads(encode(table, "json")) == table.to_pylist()


def test_csv_comes_back_as_the_same_rows_in_text(table: pa.Table) -> None:
    rows = list(csv.DictReader(io.StringIO(encode(table, "csv").decode())))
    expected = [
        {key: "" if value is None else str(value) for key, value in row.items()}
        for row in table.to_pylist()
    ]
    assert rows == expected


def test_an_unknown_format_is_refused(table: pa.Table) -> None:
    with pytest.raises(ConfigError, match="unknown format 'cvs'; did you mean 'csv'"):
        encode(table, "cvs")


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    write(b"x", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == b"x"
    with pytest.raises(ConfigError, match=r"cannot write '.*': Is a directory"):
        write(b"x", tmp_path)


def shown(table: pa.Table) -> str:
    text = io.StringIO()
    Console(width=250, file=text).print(render(table, "study x"))
    return text.getvalue()


def test_the_terminal_shows_the_best_trial_first_and_null_params_as_all(table: pa.Table) -> None:
    text = shown(table)
    lines = text.splitlines()
    first = next(line for line in lines if "COMPLETE" in line)
    assert lines.index(first) < next(i for i, line in enumerate(lines) if "FAILED" in line)
    assert " all " in first
    assert "44.0" in first
    assert "setting overlapped" in text
    assert "miou_all on holdout" in text


def test_a_search_on_val_is_marked_in_the_table(table: pa.Table) -> None:
    marked = table.replace_schema_metadata({**table.schema.metadata, b"select_on": b"val"})
    assert "searched on val" in " ".join(shown(marked).split())
    assert "searched on val" not in " ".join(shown(table).split())


def test_states_are_shown_in_our_words() -> None:
    names = ("COMPLETE", "PRUNED", "RUNNING", "FAIL", "WAITING")
    assert [shown_state(name) for name in names] == [
        *("COMPLETE", "PRUNED", "RUNNING", "FAILED", "QUEUED"),
    ]
    assert shown_state("FAIL", {"code": "OUT_OF_MEMORY"}) == "INFEASIBLE"
    assert shown_state("FAIL", {"code": "STOPPED_BY_USER"}) == "CANCELLED"
    assert shown_state("FAIL", {"code": "NAN"}) == "FAILED"
    assert shown_state("RUNNING", {"waiting": "needs 4 GPUs, 2 free"}) == "WAITING"
    assert shown_state("RUNNING", {"waiting": None}) == "RUNNING"
    assert shown_state("COMPLETE", {"waiting": "of earlier"}) == "COMPLETE"


def test_an_open_trial_is_running_while_its_study_has_a_driver(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    book.database.save_spec("study", book.spec.model_dump_json(), ABOUT)
    book.database.claim("study")
    book.next_trial()
    assert trials_table(book.database, "study")["state"].to_pylist() == ["RUNNING"]
    book.say_waiting(0, "needs 4 CPUs, 2 free")
    row = trials_table(book.database, "study").to_pylist()[0]
    assert (row["state"], row["reason"]) == ("WAITING", "needs 4 CPUs, 2 free")


def test_a_pruned_trial_has_no_value_and_stands_below_the_complete_ones(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    book.database.save_spec("study", book.spec.model_dump_json(), ABOUT)
    for number in (0, 1):
        book.next_trial()
        book.report(number, {"kind": "epoch", "value": 90.0 * number, "rung": 1})
    book.report(0, {"kind": "done", "value": 44.0})
    book.reasons[1] = ("PRUNER", "weaker than the median of earlier trials at epoch 1")
    book.close(0)
    book.close(1)
    rows = trials_table(book.database, "study").to_pylist()
    assert [(row["state"], row["value"]) for row in rows] == [("COMPLETE", 44.0), ("PRUNED", None)]
    text = Console(width=200, record=True, file=io.StringIO())
    text.print(render(trials_table(book.database, "study"), "t"))
    shown = text.export_text()
    assert shown.index("COMPLETE") < shown.index("PRUNED")
