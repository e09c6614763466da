"""Limits on results that an edit brings, changes or takes away, while trials stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tune.test_bridge import open_book, run_trial, spec_of
from tests.tune.test_objectives import TWO, measure, report_steps
from tests.tune.test_revisions import by_driver, new_database, reopened, seen
from ucd_ray.errors import ConfigError
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.charts import Source
from ucd_ray.tune.editing import edit
from ucd_ray.tune.edits import Edit
from ucd_ray.tune.objectives import RESULTS, Best
from ucd_ray.tune.results import trials_table
from ucd_ray.tune.standing import best_trials

TRIALS = ((30.0, 4.0), (40.0, 1.0), (38.0, 1.0))  # old mIoU, forgetting; drop is 60 less the first


@pytest.fixture
def book(any_url: str) -> TrialBook:
    """A study without limits: drops of 30, 20 and 22 points."""
    spec = spec_of(trials=40)
    book = TrialBook(spec, new_database(any_url, spec))
    for old, forgetting in TRIALS:
        measure(book, old, forgetting)
    return book


def held(book: TrialBook) -> list[tuple[int, dict[str, float]]]:
    """What the sampler sees of complete trials."""
    return [(trial.number, trial.constraints) for trial in seen(book) if trial.values]


def test_a_limit_that_comes_later_holds_for_the_trials_before_it(book: TrialBook) -> None:
    assert book.best() == Best((1,), "40.00 (trial 1)")
    told = by_driver(book, Edit(hold=("drop <= 21",)))
    assert told == "revision 1: constraints: drop <= 21"
    assert held(book) == [
        (0, {"drop <= 21": 9.0}),
        (1, {"drop <= 21": -1.0}),
        (2, {"drop <= 21": 1.0}),
    ]
    assert book.best() == Best((1,), "40.00 (trial 1)")
    by_driver(book, Edit(hold=("forgetting >= 2",)))
    assert book.best() is None, "trial 0 breaks the first, the others the second"
    by_driver(book, Edit(hold=("drop <= 30",)))
    assert book.best() == Best((0,), "30.00 (trial 0)")
    assert book.spec.constraints == ("forgetting >= 2", "drop <= 30")
    by_driver(book, Edit(lift=("forgetting >= 2",)))
    assert book.best() == Best((1,), "40.00 (trial 1)")
    by_driver(book, Edit(lift=("drop <= 30",)))
    assert held(book) == [(0, {}), (1, {}), (2, {})]
    assert [t.user_attrs.get("revision", 0) for t in book.study.get_trials()] == [0, 0, 0]


def test_every_reader_holds_trials_against_the_present_limits(book: TrialBook) -> None:
    by_driver(book, Edit(hold=("seconds <= 10", "drop <= 21")))
    table = trials_table(book.database, "study")
    assert table["feasible"].to_pylist() == [False, True, False]
    assert table["value_drop"].to_pylist() == [30.0, 20.0, 22.0]
    assert table["value_seconds"].to_pylist() == [10.0] * 3
    assert [t.number for t in best_trials(book.database, "study", 3)] == [1]
    source = Source(book.database, "study")
    assert [o.number for o in source.complete if not o.keeps_limits] == [0, 2]
    again = reopened(book.database)
    assert again.best() == book.best()
    assert held(again) == held(book)
    measure(again, 45.0, 3.0)
    assert again.best() == Best((3,), "45.00 (trial 3)")
    assert [trial.number for trial in seen(again) if trial.values] == [0, 1, 2, 3]
    trial = again.study.get_trials()[3]
    assert trial.user_attrs["revision"] == 1
    assert trial.constraints == {"seconds <= 10": 0.0, "drop <= 21": -6.0}


def test_it_is_the_same_without_a_driver(book: TrialBook) -> None:
    assert edit(book.database, "study", Edit(hold=("drop <= 21",))).done
    again = reopened(book.database)
    assert again.best() == Best((1,), "40.00 (trial 1)")
    assert again.study.get_trials()[0].user_attrs[RESULTS]["drop"] == 30.0


def test_a_running_trial_is_held_against_a_limit_that_came_meanwhile(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    chosen = book.next_trial()
    assert chosen is not None
    report_steps(book, 0, 30.0, 4.0)
    by_driver(book, Edit(hold=("drop <= 21",)))
    book.report(0, {"kind": "done", "value": 30.0})
    book.close(0)
    trial = book.study.get_trials()[0]
    assert (trial.state.name, trial.constraints) == ("COMPLETE", {"drop <= 21": 9.0})
    assert trial.user_attrs.get("revision", 0) == 0
    assert book.best() is None


def test_what_was_not_measured_breaks_a_limit_and_leaves_the_sampler(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    run_trial(book, 50.0)  # its steps are not in the database
    measure(book, 40.0, 1.0)
    by_driver(book, Edit(hold=("forgetting <= 5",)))
    assert book.best() == Best((1,), "40.00 (trial 1)")
    assert [number for number, _ in held(book)] == [1]
    assert trials_table(book.database, "study")["feasible"].to_pylist() == [False, True]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp"])
def test_samplers_go_on_after_limits_change(tmp_path: Path, sampler: str) -> None:
    book = open_book(tmp_path, spec_of(trials=40, sampler=sampler, **TWO))
    for number in range(5):
        measure(book, 20.0 + 7 * number % 23, 5.0 * number % 7)
    for limit in ("drop <= 30", "drop <= 35"):
        by_driver(book, Edit(hold=(limit,)))
        measure(book, 33.0, 1.0)
    by_driver(book, Edit(lift=("drop <= 35",)))
    measure(book, 34.0, 1.0)
    assert len(seen(book)) == 8


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Edit(hold=("dorp <= 2",)), "unknown metric 'dorp'; did you mean 'drop'"),
        (Edit(hold=("drop",)), "constraint 'drop' must compare keys and numbers"),
        (Edit(hold=("step9_miou_all > 2",)), "needs step 9"),
        (Edit(lift=("drop <= 3",)), "'drop <= 3' is no constraint of study 'study'; it has none"),
    ],
)
def test_limits_that_cannot_be_are_refused(tmp_path: Path, wanted: Edit, message: str) -> None:
    book = open_book(tmp_path)
    with pytest.raises(ConfigError, match=message):
        edit(book.database, "study", wanted)
    assert book.database.spec("study") == book.spec.model_dump(mode="json")


def test_a_study_with_replicates_gets_no_limit(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(seeds=3, pruner="none"))
    with pytest.raises(ConfigError, match="need one objective that is maximised, without limits"):
        edit(book.database, "study", Edit(hold=("drop <= 2",)))
