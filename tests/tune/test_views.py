"""Views of a study as streams of record batches."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from tests.tune.test_bridge import spec_of
from tests.tune.test_results import ABOUT, step
from ucd_ray.tune import chunks
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.database import Database
from ucd_ray.tune.results import VIEWS, open_view


def rows_of(database: Database, view: str) -> list[dict[str, object]]:
    return open_view(database, "study", view).read_all().to_pylist()


def stored_spec(database: Database) -> str:
    return json.dumps(database.spec("study"))


def test_a_step_has_its_means_its_time_and_the_searched_value(database: Database) -> None:
    first, second = rows_of(database, "steps")
    assert list(first) == [
        *("number", "state", "replicate", "step"),
        *("cached", "seconds", "images", "iterations", "value"),
        *("miou_base", "miou_added", "miou_old", "miou_new", "miou_all"),
        *("miou_base_bg", "miou_added_bg", "miou_old_bg", "miou_new_bg", "miou_all_bg"),
        "forgetting",
    ]
    assert (first["number"], first["state"], first["step"]) == (0, "COMPLETE", 0)
    assert (first["cached"], first["seconds"], first["images"], first["iterations"]) == (
        True,
        2.0,
        9,
        4,
    )
    assert (first["value"], first["miou_all"], first["miou_old"]) == (40.0, 40.0, None)
    assert (second["step"], second["cached"], second["miou_old"]) == (1, False, 40.0)
    assert second["forgetting"] == 3.0


def test_a_class_has_its_name_and_the_step_that_learned_it(database: Database) -> None:
    forgotten = ({}, {"0": 1.0, "3": -2.5})
    ious = ({"0": 91.0, "3": 52.5}, {"0": 90.0, "3": 55.0, "9": float("nan")})
    for number, (iou, drops) in enumerate(zip(ious, forgotten, strict=True)):
        report = step(number, 50.0)
        report["val"] = {"means": report["val"]["means"], "iou": iou, "forgetting": drops}
        database.add_step("study", 0, report)
    assert rows_of(database, "classes")[2:] == [
        {
            **{"number": 0, "state": "COMPLETE", "replicate": 0, "step": 1, "class_id": class_id},
            **{"class_name": name, "learned_at": learned, "iou": iou, "forgetting": drop},
        }
        for class_id, name, learned, iou, drop in (
            (0, "background", 0, 90.0, 1.0),
            (3, "shape 3", 0, 55.0, -2.5),
            (9, "shape 9", 1, None, None),
        )
    ]


def test_steps_and_classes_have_every_replicate_and_trials_their_means(database: Database) -> None:
    for number in (0, 1):
        database.add_step("study", 0, step(number, 50.0 + number), replicate=1)
    steps = rows_of(database, "steps")
    assert [(r["replicate"], r["step"], r["miou_all"]) for r in steps] == [
        *((0, 0, 40.0), (0, 1, 41.0), (1, 0, 50.0), (1, 1, 51.0)),
    ]
    classes = rows_of(database, "classes")
    assert [(r["replicate"], r["step"], r["iou"]) for r in classes] == [
        *((0, 0, 40.0), (0, 1, 41.0), (1, 0, 50.0), (1, 1, 51.0)),
    ]
    assert rows_of(database, "trials")[0]["step1_miou_all"] == 46.0


def test_without_a_scored_background_no_step_has_it(database: Database) -> None:
    about = {**ABOUT, "background": False}
    database.save_spec("study", stored_spec(database), about)
    assert not [n for n in open_view(database, "study", "steps").schema.names if n.endswith("_bg")]


def test_classes_of_a_study_that_stored_no_names_have_none(database: Database) -> None:
    about = {k: v for k, v in ABOUT.items() if k not in ("classes", "step_classes")}
    database.save_spec("study", stored_spec(database), about)
    row = rows_of(database, "classes")[0]
    assert (row["class_id"], row["class_name"], row["learned_at"]) == (0, None, 0)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_in_many_chunks_is_the_view_in_one(
    view: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_view(database, "study", view).read_all()
    monkeypatch.setattr(chunks, "CHUNK", 1)
    batches = list(open_view(database, "study", view))
    assert max(len(set(batch["number"].to_pylist())) for batch in batches) == 1
    assert pa.Table.from_batches(batches).equals(whole, check_metadata=True)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_holds_its_own_study_alone(
    view: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials of two studies that run at the same time have ids in turn."""
    before = rows_of(database, view)
    other_spec = spec_of(name="other", first={})
    database.save_spec("other", other_spec.model_dump_json(), ABOUT)
    other, own = TrialBook(other_spec, database), TrialBook(spec_of(), database)
    for number in range(3):
        other.next_trial()
        other.report(number, step(0, 90.0))
        other.report(number, {"kind": "done", "value": 90.0})
        other.close(number)
        own.next_trial()
    monkeypatch.setattr(chunks, "CHUNK", 2)
    assert [row for row in rows_of(database, view) if row["number"] < 3] == before
    others = open_view(database, "other", view).read_all()
    assert set(others["number"].to_pylist()) == {0, 1, 2}
