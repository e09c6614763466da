from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from tests.tune.test_bridge import PUBLISHED, open_book, run_trial, spec_of
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.tune.database import Database
from ucd_ray.tune.editing import enqueue
from ucd_ray.tune.event_data import shown_state
from ucd_ray.tune.formats import write
from ucd_ray.tune.reasons import NEEDS_CPUS, Reason
from ucd_ray.tune.results import read, trials_table
from ucd_ray.tune.screen import BEST_FIRST, render

ABOUT = {
    "scenario": "shapes-8-4",
    "setting": "overlapped",
    "method": "mib+ucd",
    "objective": "miou_all",
    "select_on": "holdout",
    "steps": 2,
    "background": True,
    "classes": ["background", *(f"shape {i}" for i in range(1, 13))],
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


def test_a_queued_trial_has_the_params_that_it_was_given_and_no_others(tmp_path: Path) -> None:
    search = {
        "ucd.max_old": {"choices": [256, None]},
        "ucd.weight": {"choices": [1, 2]},
        "model.norm": {"choices": ["batch", "frozen"]},
        "kd.weight": {"low": 1.0, "high": 100.0},
    }
    book = open_book(tmp_path, spec_of(search=search, first={}))
    enqueue(book.database, "study", {"kd.weight": 42.0, "model.norm": "frozen"})
    enqueue(book.database, "study", {"ucd.weight": 1.5})
    table = trials_table(book.database, "study")
    assert table["kd.weight"].to_pylist() == [42.0, None]
    assert table["model.norm"].to_pylist() == ["frozen", None]
    assert table["ucd.weight"].to_pylist() == [None, None], "a column of whole numbers has no 1.5"
    written = io.BytesIO()
    write(read(book.database, "study", columns=["kd.weight", "ucd.weight"]), "markdown", written)
    assert written.getvalue().decode().splitlines()[2:] == ["| 42 |  |", "|  |  |"]


def test_an_open_trial_is_running_while_its_study_has_a_driver(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    book.database.save_spec("study", book.spec.model_dump_json(), ABOUT)
    book.database.claim("study")
    book.next_trial()
    assert trials_table(book.database, "study")["state"].to_pylist() == ["RUNNING"]
    book.say_waiting(0, Reason(NEEDS_CPUS, "needs 4 CPUs, 2 free"))
    row = trials_table(book.database, "study").to_pylist()[0]
    found = (row["state"], row["code"], row["reason"])
    assert found == ("WAITING", "NEEDS_CPUS", "needs 4 CPUs, 2 free")


def test_a_trial_waits_while_others_train_a_step_that_it_needs(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    book.database.save_spec("study", book.spec.model_dump_json(), ABOUT)
    book.database.claim("study")
    book.next_trial()
    book.report(0, {"kind": "waiting", "step": 1, "reason": "step 1 is being trained by study b"})
    row = trials_table(book.database, "study").to_pylist()[0]
    assert (row["state"], row["code"]) == ("WAITING", "STEP")
    book.report(0, {"kind": "epoch", "value": 1.0, "rung": 1})
    row = trials_table(book.database, "study").to_pylist()[0]
    assert (row["state"], row["code"], row["reason"]) == ("RUNNING", None, None)


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
    text.print(render(read(book.database, "study", order_by=BEST_FIRST), "t"))
    shown = text.export_text()
    assert shown.index("COMPLETE") < shown.index("PRUNED")


# What is asked for.


def test_filters_order_and_limit_choose_rows_of_a_view(database: Database) -> None:
    assert read(database, "study").read_all().equals(trials_table(database, "study"))
    failed = read(database, "study", filters=["state=FAILED"]).read_all()
    assert failed["number"].to_pylist() == [1]
    last = read(database, "study", order_by=["-number"], limit=2).read_all()
    assert last["number"].to_pylist() == [2, 1]
    steps = read(database, "study", "steps", filters=["step=1", "number=0"]).read_all()
    assert steps["miou_all"].to_pylist() == [41.0]


def test_an_unknown_view_is_refused_with_the_nearest_name(database: Database) -> None:
    with pytest.raises(ConfigError, match="unknown view 'trails'; did you mean 'trials'"):
        read(database, "study", "trails")


def test_a_filter_that_matches_nothing_is_refused(database: Database) -> None:
    with pytest.raises(
        StudyError, match=r"no row of view 'trials' .* matches 'value>99' and 'number=0'"
    ):
        read(database, "study", filters=["value>99", "number=0"])


def test_a_study_without_trials_or_without_an_ended_step_is_refused(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(first={}))
    with pytest.raises(StudyError, match="study 'study' has no trials yet"):
        read(book.database, "study")
    with pytest.raises(StudyError, match="study 'study' has no trials yet"):
        read(book.database, "study", "classes", filters=["state=COMPLETE"])
    book.next_trial()
    for view in ("steps", "classes"):
        with pytest.raises(
            StudyError, match=f"nothing for view '{view}' yet: no trial ended a step"
        ):
            read(book.database, "study", view, filters=["state=COMPLETE"])


def test_a_key_that_a_trial_has_not_is_blank_and_null_stays_all(tmp_path: Path) -> None:
    search = {
        "ucd.max_anchors": {"choices": [512, None]},
        "ucd.max_old": {"choices": [256, None], "when": {"ucd.max_anchors": 512}},
        "ucd.weight": {"low": 0.001, "high": 0.1},
    }
    rows: list[dict[str, Any]] = [
        {"ucd.max_anchors": 512, "ucd.max_old": 256},
        {"ucd.max_anchors": 512, "ucd.max_old": None},
        {"ucd.max_anchors": None},
    ]
    first = [{**row, "ucd.weight": 0.05} for row in rows]
    book = open_book(tmp_path, spec_of(search=search, first=first, trials=4))
    for value in (30.0, 20.0, 10.0):
        run_trial(book, value)
    table = trials_table(book.database, "study")
    assert table["ucd.max_old"].to_pylist() == ["256", "all", None]
    assert table["ucd.max_anchors"].to_pylist() == [512, 512, None], "every trial has it: all"
    text = Console(width=250, record=True, file=io.StringIO())
    text.print(render(read(book.database, "study", order_by=BEST_FIRST), "t"))
    lines = [line for line in text.export_text().splitlines() if "COMPLETE" in line]
    cells = [[cell.strip() for cell in line.split("│")[5:8]] for line in lines]
    assert cells == [["512", "256", "0.05"], ["512", "all", "0.05"], ["all", "", "0.05"]]
