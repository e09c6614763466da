"""How sure the best trial of a study is, and what two studies say about each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tune.test_bridge import PUBLISHED, open_book, run_trial, spec_of
from tests.tune.test_objectives import measure as measure_goals
from tests.tune.test_replicate_book import measure, open_runs
from ucd_ray import cli
from ucd_ray.errors import StudyError
from ucd_ray.tune.comparison import compare_studies, comparison_view
from ucd_ray.tune.database import Database
from ucd_ray.tune.registration import facts
from ucd_ray.tune.replicate_book import ReplicateBook
from ucd_ray.tune.results import open_view
from ucd_ray.tune.standing import best_trials, best_two
from ucd_ray.tune.statistics import paired, spread, welch


def study_of(folder: Path, *trials: tuple[float, ...], **values: Any) -> Database:
    """A study whose trials measured these values, a tuple each."""
    book = open_runs(folder, **{"racing": None, **values})
    spec, database = book.trials.spec, book.trials.database
    database.save_spec(spec.name, spec.model_dump_json(), facts(spec, spec.base_recipe()))
    for measured in trials:
        measure(book, *measured)
    return database


# Within a study.


def test_the_best_follow_direction_and_limits_of_their_study(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(objective="forgetting", constraints=["drop <= 25"]))
    for old, forgetting in ((40.0, 4.0), (30.0, 1.0), (38.0, 2.0)):  # drop: 60 - old
        measure_goals(book, old, forgetting)
    assert [t.number for t in best_trials(book.database, "study", 3)] == [2, 0]


def test_the_best_trials_come_with_what_was_measured_under_which_seed_and_order(
    tmp_path: Path,
) -> None:
    trials = ((10.0, 20.0, 30.0, 40.0), (11.0, 21.0, 31.0, 41.0), (1.0, 2.0, 3.0, 4.0))
    database = study_of(tmp_path, *trials, seeds=2, class_orders=2)
    best, second = best_trials(database, "study", 2)
    assert (best.number, second.number) == (1, 0)
    assert best.value == best.spread.mean == 26.0
    assert best.measured == {(42, 0): 11.0, (42, 1): 21.0, (43, 0): 31.0, (43, 1): 41.0}
    assert second.params == PUBLISHED


def test_whether_the_best_two_differ_is_said(tmp_path: Path) -> None:
    noise = study_of(tmp_path / "noise", (40.0, 44.0, 42.0), (41.0, 42.0, 43.5))
    assert best_two(noise, "study") == [
        f"best: trial 1, miou_all {spread([41.0, 42.0, 43.5])}",
        paired([41.0, 42.0, 43.5], [40.0, 44.0, 42.0]).sentence("trial 1", "trial 0"),
    ]
    assert "not distinguishable" in best_two(noise, "study")[1]
    clear = study_of(tmp_path / "clear", (40.0, 44.0, 42.0), (43.0, 47.1, 45.0))
    assert best_two(clear, "study")[1].startswith("trial 1 is better than trial 0 by 3.03")


def test_a_study_with_one_complete_trial_has_nothing_to_compare(tmp_path: Path) -> None:
    assert len(best_two(study_of(tmp_path, (40.0, 44.0, 42.0)), "study")) == 1
    assert best_two(study_of(tmp_path / "none"), "study") == []


def test_nothing_is_said_about_trials_that_are_measured_once(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    run_trial(book, 50.0)
    run_trial(book, 40.0)
    assert best_two(book.database, "study") == []


# Views.


def test_a_trial_has_one_row_with_mean_spread_and_count(tmp_path: Path) -> None:
    trials = ((50.0, 60.0, 40.0), (49.0, 58.0, 99.0))
    database = study_of(tmp_path, *trials, racing=0.3)
    rows = open_view(database, "study", "trials").read_all().to_pylist()
    found = spread([50.0, 60.0, 40.0])
    keys = ("value", "value_std", "value_low", "value_high", "replicates")
    assert [rows[0][key] for key in keys] == [50.0, found.std, found.low, found.high, 3]
    dropped = spread([49.0, 58.0])
    assert [rows[1][key] for key in keys] == [None, dropped.std, dropped.low, dropped.high, 2]
    assert (rows[1]["state"], rows[1]["code"]) == ("PRUNED", "RACING")


def test_runs_have_a_view_of_their_own(tmp_path: Path) -> None:
    database = study_of(tmp_path, (50.0, 60.0, 40.0, 10.0), seeds=2, class_orders=2)
    rows = open_view(database, "study", "runs").read_all().to_pylist()
    keys = ("number", "replicate", "seed", "class_order", "state", "value")
    assert [[row[key] for key in keys] for row in rows] == [
        [0, 0, 42, 0, "COMPLETE", 50.0],
        [0, 1, 42, 1, "COMPLETE", 60.0],
        [0, 2, 43, 0, "COMPLETE", 40.0],
        [0, 3, 43, 1, "COMPLETE", 10.0],
    ]


def test_a_study_without_replicates_has_no_column_about_them(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    run_trial(book, 50.0)
    names = open_view(book.database, "study", "trials").schema.names
    assert not {"value_std", "value_low", "value_high", "replicates"} & set(names)
    (row,) = open_view(book.database, "study", "runs").read_all().to_pylist()
    assert (row["number"], row["replicate"], row["seed"], row["value"]) == (0, 0, 42, 50.0)


# Two studies.


def add_study(database: Database, name: str, *trials: tuple[float, ...], **values: Any) -> None:
    """One more study in the same database."""
    spec = spec_of(**{"name": name, "seeds": 3, "pruner": "none", "racing": None, **values})
    database.save_spec(name, spec.model_dump_json(), facts(spec, spec.base_recipe()))
    from ucd_ray.tune.bridge import TrialBook

    book = TrialBook(spec, database)
    for measured in trials:
        if spec.replicates > 1:
            measure(ReplicateBook(book), *measured)
        else:
            run_trial(book, *measured)


def recipe(**flat: Any) -> dict[str, Any]:
    return {**spec_of().recipe, **flat}


def test_two_studies_are_paired_where_they_share_seeds_and_orders(tmp_path: Path) -> None:
    database = study_of(tmp_path, (40.0, 44.0, 42.0), (43.0, 47.1, 45.0))
    add_study(database, "other", (41.0, 45.0, 43.2), seeds=3, sampler="random")
    found = compare_studies(database, "study", "other")
    assert found.found == paired([43.0, 47.1, 45.0], [41.0, 45.0, 43.2])
    assert found.verdict.startswith("study (trial 1) is better than other (trial 0) by 1.97")
    assert found.differing == {"sampler": ("tpe", "random")}
    assert [side.complete for side in found.sides] == [2, 1]


def test_two_studies_under_other_seeds_are_compared_unpaired(tmp_path: Path) -> None:
    database = study_of(tmp_path, (40.0, 44.0, 42.0))
    add_study(database, "other", (41.0, 45.0), seeds=2, recipe=recipe(seed=7))
    found = compare_studies(database, "study", "other")
    assert found.found == welch([40.0, 44.0, 42.0], [41.0, 45.0])
    assert found.differing == {"seed": (42, 7), "seeds": (3, 2)}


def test_what_else_differs_is_shown(tmp_path: Path) -> None:
    database = study_of(tmp_path, (40.0, 44.0, 42.0))
    other = recipe(method="plop+ucd", **{"optim.epochs_new": 7})
    search = {"ucd.weight": {"low": 0.001, "high": 0.1, "log": True}}
    add_study(database, "other", (41.0, 45.0, 43.0), recipe=other, search=search, first={})
    found = compare_studies(database, "study", "other")
    assert found.differing["method"] == ("mib+ucd", "plop+ucd")
    assert found.differing["optim.epochs_new"] == (2, 7)
    assert "ucd.weight" not in found.differing, "a param, not a difference of the studies"
    json.dumps(found.content())
    assert comparison_view(found)


def test_studies_of_one_replicate_cannot_be_told_apart(tmp_path: Path) -> None:
    database = study_of(tmp_path, (40.0,), seeds=1)
    add_study(database, "other", (41.0,), seeds=1)
    found = compare_studies(database, "study", "other")
    assert found.found is None
    assert found.verdict == (
        "study (trial 0) and other (trial 0) cannot be told apart: that takes two replicates of each"
    )
    assert found.content()["distinguishable"] is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"recipe": recipe(scenario="shapes-8-4")},
            "differ in scenario: shapes-8-2 and shapes-8-4",
        ),
        ({"recipe": recipe(setting="disjoint")}, "differ in setting: overlapped and disjoint"),
        ({"objective": "miou_base"}, "differ in objective: miou_all and miou_base"),
        ({"recipe": recipe(**{"eval.select_on": "val"})}, "differ in select on: holdout and val"),
        ({"recipe": recipe(**{"data.holdout": 0.3})}, "differ in data.holdout: 0.2 and 0.3"),
        (
            {"recipe": recipe(**{"eval.unseen": "ignore"})},
            "differ in eval.unseen: background and ignore",
        ),
    ],
)
def test_studies_that_measure_something_else_are_refused(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    database = study_of(tmp_path, (40.0, 44.0, 42.0))
    add_study(database, "other", (41.0, 45.0, 43.0), **values)
    with pytest.raises(StudyError, match=f"'study' and 'other' cannot be compared: they {message}"):
        compare_studies(database, "study", "other")


def test_a_pareto_set_is_compared_with_nothing(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(objectives=["miou_old", "forgetting"], pruner="none"))
    measure_goals(book, 40.0, 4.0)
    add_study(book.database, "other", (41.0, 45.0, 43.0))
    for names in (("study", "other"), ("other", "study")):
        with pytest.raises(StudyError, match=r"study 'study' has 2 objectives .*no best trial"):
            compare_studies(book.database, *names)


def test_means_over_other_class_orders_need_shared_replicates(tmp_path: Path) -> None:
    database = study_of(tmp_path, (40.0, 44.0, 42.0, 41.0), seeds=2, class_orders=2)
    add_study(database, "pairs", (41.0, 45.0), seeds=2)
    assert compare_studies(database, "study", "pairs").found == paired([40.0, 42.0], [41.0, 45.0])
    add_study(database, "once", (41.0,), seeds=1)
    with pytest.raises(StudyError, match="over 2 and 1 class orders and share 1 replicate"):
        compare_studies(database, "study", "once")


def test_studies_on_other_images_are_refused(tmp_path: Path) -> None:
    database = study_of(tmp_path, (40.0, 44.0, 42.0))
    add_study(database, "other", (41.0, 45.0, 43.0))
    for name, count in (("study", 8), ("other", 9)):
        about = {**database.about(name), "images": {"train": 24, "val": count}}
        database.save_spec(name, json.dumps(database.spec(name)), about)
    with pytest.raises(StudyError, match="they differ in images"):
        compare_studies(database, "study", "other")


def test_a_study_without_a_complete_trial_is_refused(tmp_path: Path) -> None:
    database = study_of(tmp_path, (40.0, 44.0, 42.0))
    add_study(database, "other")
    with pytest.raises(StudyError, match="study 'other' has no complete trial to compare"):
        compare_studies(database, "study", "other")
    with pytest.raises(StudyError, match=r"no study 'othr'.*did you mean 'other'"):
        compare_studies(database, "study", "othr")
    with pytest.raises(StudyError, match="'study' is compared with itself"):
        compare_studies(database, "study", "study")


def test_the_commands_show_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = study_of(tmp_path, (40.0, 44.0, 42.0), (41.0, 45.1, 43.0))
    add_study(database, "other", (20.0, 25.0, 23.0), workers=2)
    monkeypatch.setenv("UCD_RAY_DATABASE", f"sqlite:///{tmp_path}/studies.db")

    def shown(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["ucd-ray", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
        return capsys.readouterr().out

    assert "trial 1 is better than trial 0 by 1.03" in shown("results", "study")
    assert "better than" not in shown("results", "study", "--format", "csv")
    assert "class_order" in shown("results", "study", "--view", "runs", "--format", "csv")
    text = shown("study", "compare", "study", "other")
    assert "study (trial 1) is better than other (trial 0) by 20.37" in text
    assert "workers" in text
    found = json.loads(shown("study", "compare", "study", "other", "--format", "json"))
    assert found["studies"][0]["measured"][2] == {"seed": 44, "class_order": 0, "value": 43.0}
