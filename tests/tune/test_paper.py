"""The paper table of studies whose numbers and protocol are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tune.test_bridge import open_book, spec_of
from tests.tune.test_objectives import TWO, measure
from ucd_ray.class_orders import in_order
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.scenarios import parse_scenario, scenario_from_mapping
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.database import Database
from ucd_ray.tune.groups import groups_of
from ucd_ray.tune.paper import paper_view
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.registration import facts
from ucd_ray.tune.space import build_spec, space_for

VOC = {"train": 10582, "val": 1449}
AS_PUBLISHED = {"eval.select_on": "val", "model.weights": "pretrained"}


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path}/studies.db")


def study(
    database: Database,
    name: str,
    *trials: dict[int, float],
    scenario: str = "voc-15-1",
    method: str = "mib+ucd",
    images: dict[str, int] | None = VOC,
    searched: dict[str, Parameter] | None = None,
    first: dict[str, Any] | None = None,
    **values: Any,
) -> TrialBook:
    """A study whose trials have these IoUs by class id; their value is the mean."""
    overrides = {**AS_PUBLISHED, **{key.replace("__", "."): v for key, v in values.items()}}
    spec = build_spec(space_for(scenario), name=name, method=method, overrides=overrides, trials=9)
    for key in searched or ():
        del spec.recipe[key]
    spec = spec.model_copy(
        update={
            "search": {**spec.search, **(searched or {})},
            "first": {**spec.first, **(first or {})},
        }
    )
    recipe = spec.base_recipe()
    about = {**facts(spec, recipe), "images": images}
    database.save_spec(name, spec.model_dump_json(), about)
    book = TrialBook(spec, database)
    for number, iou in enumerate(trials):
        book.next_trial()
        report_step(book.database, name, number, len(recipe.steps.steps) - 1, iou)
        book.report(number, {"kind": "done", "value": sum(iou.values()) / len(iou)})
        book.close(number)
    return book


def report_step(
    database: Database, name: str, number: int, step: int, iou: dict[int, float], replicate: int = 0
) -> None:
    measured = {
        "means": {"miou_all": 1.0},
        "iou": {str(c): v for c, v in iou.items()},
        "forgetting": {},
    }
    counts = {"cached": False, "seconds": 1.0, "images": 9, "iterations": 4, "entries": []}
    report = {"step": step, **counts, "select": measured, "val": measured}
    database.add_step(name, number, report, replicate=replicate)


def voc(base: float, added: float, background: float = 90.0) -> dict[int, float]:
    """The same IoU for all classes 1 to 15, and for all of 16 to 20."""
    return {
        0: background,
        **dict.fromkeys(range(1, 16), base),
        **dict.fromkeys(range(16, 21), added),
    }


def table(database: Database, name: str = "study", **options: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = paper_view(database, name, **options).read_all().to_pylist()
    return rows


def row(rows: list[dict[str, Any]], method: str, source: str) -> dict[str, Any]:
    found = [r for r in rows if r["method"] == method and r["origin"].startswith(source)]
    assert len(found) == 1, found
    return found[0]


# Own rows.


def test_the_best_trials_come_first_with_the_means_of_the_publications(database: Database) -> None:
    study(database, "study", voc(40, 10), voc(60, 20), voc(50, 30), voc(10, 10))
    rows = table(database, best=2)
    assert [(r["method"], r["origin"], r["number"]) for r in rows[:2]] == [
        *(("mib+ucd", "study study", 1), ("mib+ucd", "study study", 2)),
    ]
    assert (rows[0]["1-15"], rows[0]["16-20"], rows[0]["all"]) == (60.0, 20.0, 50.0)
    assert [r["number"] for r in rows[2:]] == [None] * (len(rows) - 2)


def test_with_background_it_counts_among_the_first_classes_and_all(database: Database) -> None:
    study(database, "study", voc(60, 20, background=92))
    first = table(database, background="with")[0]
    assert (first["0-15"], first["16-20"], first["all"]) == (62.0, 20.0, 52.0)


def test_replicates_have_means_and_half_widths_of_their_interval(database: Database) -> None:
    study(database, "study", voc(60, 20))
    assert not [name for name in table(database)[0] if "±" in name]
    for replicate, base in ((1, 62), (2, 64)):
        report_step(database, "study", 0, 5, voc(base, 20), replicate=replicate)
    first = table(database)[0]
    assert first["1-15"] == 62.0
    assert first["1-15 ±"] == pytest.approx(4.303 * 2 / 3**0.5, abs=1e-3)  # Student's t, 2 degrees
    assert first["16-20 ±"] == 0.0


def test_means_over_class_orders_go_by_step_and_compare_with_no_single_order(
    database: Database,
) -> None:
    book = study(database, "study", voc(60, 20))
    spec = book.spec.model_copy(update={"class_orders": 2})
    database.save_spec("study", spec.model_dump_json(), database.about("study"))
    other = in_order(book.spec.base_recipe().scenario, 1)
    iou = {0: 90.0, **dict.fromkeys(other.steps[0], 70.0)}
    iou |= {c: 40.0 for step in other.steps[1:] for c in step}
    report_step(database, "study", 0, 5, iou, replicate=1)
    rows = table(database, all_rows=True)
    assert (rows[0]["step 0"], rows[0]["later steps"], rows[0]["all"]) == (65.0, 30.0, 56.25)
    assert "1-15" not in rows[0]
    found = row([r for r in rows if r["all"] == 42.2], "MiB+UCD", "UCD (2203.14098)")
    assert found["verdict"] == "refused"
    assert "class order official there, 2 orders here" in found["notes"]
    assert not [r for r in table(database) if r["verdict"] == "comparable" and r["number"] is None]


def test_the_best_of_several_objectives_are_their_pareto_set(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(**TWO))
    about = {"scenario": "shapes-8-2", "setting": "overlapped", "method": "mib+ucd", "steps": 2}
    book.database.save_spec("study", book.spec.model_dump_json(), about)
    for old, forgetting in ((30.0, 9.0), (20.0, 1.0), (25.0, 4.0), (19.0, 5.0), (10.0, 0.5)):
        measure(book, old, forgetting)
    rows = table(book.database)
    assert [r["number"] for r in rows] == [0, 2, 1, 4]
    assert {r["notes"] for r in rows} == {"in the Pareto set of 4 for miou_old, forgetting"}
    assert {r["verdict"] for r in rows} == {"comparable"}
    assert [r["number"] for r in table(book.database, best=2)] == [0, 2]
    limited = book.spec.model_copy(update={"constraints": ("forgetting <= 2",)})
    book.database.save_spec("study", limited.model_dump_json(), about)
    assert [r["number"] for r in table(book.database)] == [1, 4]
    never = book.spec.model_copy(update={"constraints": ("forgetting <= 0",)})
    book.database.save_spec("study", never.model_dump_json(), about)
    with pytest.raises(StudyError, match="no complete trial that keeps forgetting <= 0 yet"):
        table(book.database)


def test_a_trial_that_breaks_a_limit_is_marked(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(constraints=["forgetting <= 2"]))
    about = {"scenario": "shapes-8-2", "setting": "overlapped", "method": "mib+ucd", "steps": 2}
    book.database.save_spec("study", book.spec.model_dump_json(), about)
    measure(book, 30.0, 4.0)
    measure(book, 20.0, 1.0)
    rows = table(book.database)
    assert [(r["number"], r["verdict"], r["notes"]) for r in rows] == [
        *((1, "comparable", None), (0, "marked", "breaks forgetting <= 2")),
    ]


def test_a_study_without_a_complete_trial_is_refused(database: Database) -> None:
    study(database, "study")
    with pytest.raises(StudyError, match="study 'study' has no complete trial yet"):
        paper_view(database, "study")


def test_options_that_cannot_be_are_refused(database: Database) -> None:
    study(database, "study", voc(60, 20))
    with pytest.raises(ConfigError, match="unknown background 'whit'; did you mean 'with'"):
        paper_view(database, "study", background="whit")
    ade = dict.fromkeys(range(1, 151), 30.0)
    study(database, "ade", ade, scenario="ade-100-50")
    with pytest.raises(ConfigError, match="ade does not score background"):
        paper_view(database, "ade", background="with")


# The guard.


def test_a_row_under_the_same_protocol_is_comparable(database: Database) -> None:
    study(database, "study", voc(60, 20))
    study(database, "bound", voc(79, 72), method="joint")
    found = row(table(database), "MiB+UCD", "UCD (2203.14098)")
    assert (found["1-15"], found["16-20"], found["all"]) == (51.9, 13.1, 42.2)
    assert (found["verdict"], found["notes"]) == ("comparable", None)


def test_a_row_is_marked_for_what_shifts_it_and_for_what_is_not_known(database: Database) -> None:
    study(database, "study", voc(60, 20), eval__mode="full")
    found = row(table(database), "MiB+UCD", "UCD (2203.14098)")
    assert found["verdict"] == "marked"
    assert (
        found["notes"] == "scored crop 512 there, none here; joint bound 77.4 there, unknown here"
    )


def test_a_row_under_another_protocol_is_refused_and_shown_with_the_reason(
    database: Database,
) -> None:
    study(database, "study", voc(60, 20), model__backbone="resnet50")
    published = [r for r in table(database) if r["number"] is None]
    assert all("backbone unknown there" in r["notes"] for r in published)
    rows = table(database, all_rows=True)
    found = row([r for r in rows if r["all"] == 42.2], "MiB+UCD", "UCD (2203.14098)")
    assert (found["verdict"], found["notes"]) == (
        "refused",
        "backbone resnet101 there, resnet50 here",
    )


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        ({"setting": "disjoint"}, {}, "setting overlapped there, disjoint here"),
        (
            {"images": {"train": 1464, "val": 1449}},
            {},
            "images 10582 + 1449 there, 1464 + 1449 here",
        ),
        ({"data__source": "generated"}, {}, "10582 + 1449 there, generated 10582 + 1449 here"),
        ({"model__weights": None}, {}, "pretraining imagenet there, none here"),
        ({}, {"background": "with"}, "background in the means: without there, with here"),
    ],
)
def test_each_fact_of_a_measurement_is_guarded(
    database: Database, values: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    study(database, "study", voc(60, 20), **values)
    rows = table(database, all_rows=True, **options)
    found = row([r for r in rows if r["all"] == 42.2], "MiB+UCD", "UCD (2203.14098)")
    assert found["verdict"] == "refused"
    assert reason in found["notes"]


def test_rows_of_both_conventions_of_background_never_stand_together(database: Database) -> None:
    study(database, "study", voc(60, 20))
    without = {r["origin"] + r["method"] for r in table(database) if r["number"] is None}
    counted = {
        r["origin"] + r["method"]
        for r in table(database, background="with")
        if r["number"] is None
        and "unknown there" not in (r["notes"] or "").split("means:")[-1][:15]
    }
    assert "PLOP (2011.11390), Table 1PLOP" in counted - without
    assert "UCD (2203.14098) authors repo image, Table 1MiB+UCD" in without - counted


def test_a_study_without_counted_images_is_marked_and_not_refused(database: Database) -> None:
    study(database, "study", voc(60, 20), images=None)
    found = row(table(database), "MiB+UCD", "UCD (2203.14098)")
    assert found["verdict"] == "marked"
    assert "train + val images 10582 + 1449 there, unknown here" in found["notes"]


def test_a_trial_with_another_protocol_than_its_study_is_marked(database: Database) -> None:
    searched = {"eval.size": Parameter(choices=(512, 321))}
    study(database, "study", voc(60, 20), searched=searched, first={"eval.size": 321})
    assert table(database)[0]["notes"].startswith("scored crop 321 there, 512 here")


# The joint bound, repeated rows.


def test_a_joint_study_under_the_same_protocol_is_the_bound(database: Database) -> None:
    study(database, "study", voc(60, 20))
    study(database, "bound", voc(70, 60), voc(71, 61), method="joint")
    study(database, "other", voc(99, 99), method="joint", model__backbone="resnet50")
    rows = table(database)
    bound = row(rows, "joint", "study bound")
    assert (bound["number"], bound["1-15"], bound["16-20"], bound["all"]) == (1, 71.0, 61.0, 68.5)
    assert bound["notes"] == "all classes trained at once: an upper bound"
    assert rows[0]["joint"] == 68.5
    found = row(rows, "MiB+UCD", "UCD (2203.14098)")
    assert (found["joint"], found["notes"]) == (77.4, "joint bound 77.4 there, 68.5 here")


def test_trials_of_method_joint_are_the_bound_of_their_own_study(database: Database) -> None:
    methods = {"method": Parameter(choices=("mib+ucd", "joint"))}
    book = study(database, "study", voc(60, 20), searched=methods, first={"method": "mib+ucd"})
    book.study.enqueue_trial({"method": "joint", "optim.lr_new": 0.001})
    book.next_trial()
    report_step(database, "study", 1, 0, voc(80, 70))
    book.report(1, {"kind": "done", "value": 78.0})
    book.close(1)
    rows = table(database)
    assert [(r["method"], r["number"], r["all"]) for r in rows[:2]] == [
        *(("mib+ucd", 0, 50.0), ("joint", 1, 77.5)),
    ]
    assert rows[0]["joint"] == 77.5


def test_a_study_of_method_joint_alone_shows_its_trials(database: Database) -> None:
    study(database, "study", voc(80, 70), method="joint")
    first, second = table(database)[:2]
    assert (first["method"], first["number"], first["joint"]) == ("joint", 0, 77.5)
    assert second["number"] is None


def test_published_joint_rows_are_marked_and_come_last(database: Database) -> None:
    study(database, "study", voc(60, 20))
    rows = table(database)
    assert rows[-1]["method"] == "Joint"
    assert rows[-1]["notes"].startswith("all classes trained at once")
    values = [r["all"] for r in rows if r["number"] is None and "oint" not in r["method"]]
    assert values == sorted(values, reverse=True)


def test_a_copied_row_is_shown_once_unless_all_are_asked_for(database: Database) -> None:
    study(database, "study", voc(60, 20))
    shown = [r for r in table(database) if r["all"] == 29.7]
    assert len(shown) == 1
    assert shown[0]["origin"] == "MiB (2002.00718), Table 1"
    assert len([r for r in table(database, all_rows=True) if r["all"] == 29.7]) > 3


# Groups.


@pytest.mark.parametrize(
    ("scenario", "names"),
    [
        ("voc-15-1", ["1-15", "16-20", "all"]),
        ("voc-19-1", ["1-19", "20", "all"]),
        ("ade-100-50", ["1-100", "101-150", "all"]),
        (
            "ade-100-10",
            [
                *("1-100", "101-110", "111-120", "121-130", "131-140", "141-150"),
                *("101-150", "all"),
            ],
        ),
        ("ade-50-50", ["1-50", "51-100", "101-150", "51-150", "all"]),
        ("ade-100-5", ["1-100", "101-150", "all"]),
        ("voc-20-1", ["all"]),
    ],
)
def test_columns_are_those_of_the_publications(scenario: str, names: list[str]) -> None:
    found = groups_of(parse_scenario(scenario), background=False)
    assert [group.name for group in found] == names


def test_classes_in_another_order_are_named_by_their_steps() -> None:
    own = scenario_from_mapping({"dataset": "msrc", "steps": [[1, 5, 3], [2, 4]]})
    assert [g.name for g in groups_of(own, background=False)] == ["step 0", "later steps", "all"]


def test_a_mean_is_over_the_classes_with_truth_pixels() -> None:
    first = groups_of(parse_scenario("voc-15-5"), background=True)[0]
    assert first.ids[:2] == (0, 1)
    assert first.mean({0: 90.0, 1: 10.0, 2: None}) == 50.0
    assert first.mean({}) is None
