"""Trials of other studies that a study's sampler is given: which fit, which do not and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.tune.test_bridge import SEARCH, spec_of
from tests.tune.test_replicate_book import measure, open_runs
from tests.tune.test_revisions import assert_fits, by_driver, new_database, searching, seen, step
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.store import Store
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.database import Database
from ucd_ray.tune.manage import delete
from ucd_ray.tune.names import EXHAUSTIVE, SAMPLERS
from ucd_ray.tune.results import trials_table
from ucd_ray.tune.spec import StudySpec
from ucd_ray.tune.taken import taken
from ucd_ray.tune.warm_start import WarmStart, check_images, check_sources, warm_start

IMAGES = "fingerprint"


@pytest.fixture
def database(any_url: str) -> Database:
    """Study 'other' with kd.weight 10, 20, 50 (complete), 100 (pruned) and a failed one."""
    spec = spec_of(name="other", first={}, trials=20)
    database = new_database(any_url, spec)
    book = TrialBook(spec, database)
    for weight in (10.0, 20.0, 50.0, 100.0):
        book.study.enqueue_trial({"kd.weight": weight, "ucd.max_old": 256})
        step(book)
    book.next_trial()
    book.fail(4, "ERROR", "it broke")
    return database


def study_of(database: Database, **values: Any) -> StudySpec:
    spec = spec_of(**{"first": {}, "trials": 20, **values})
    database.save_spec(spec.name, spec.model_dump_json(), {"steps": 2})
    return spec


def taken_over(database: Database, spec: StudySpec, **options: Any) -> WarmStart:
    check_sources(database, spec, ["other"])
    check_images(database, spec, ["other"], IMAGES)
    return warm_start(database, spec, "other", **options)


def test_finished_trials_are_seen_by_the_sampler_and_count_for_nothing_else(
    database: Database,
) -> None:
    spec = study_of(database)
    told = taken_over(database, spec)
    assert str(told) == (
        "4 of 5 finished trials of study 'other' are taken over; not: 1 where there is no value"
    )
    book = TrialBook(spec, database)
    assert [trial.params["kd.weight"] for trial in seen(book)] == [10.0, 20.0, 50.0, 100.0]
    assert [trial.state.name for trial in seen(book)] == ["COMPLETE"] * 3 + ["PRUNED"]
    assert seen(book)[3].intermediate_values
    assert (book.finished(), book.wanted, book.best()) == (0, 20, None)
    step(book)
    assert [trial.number for trial in book.study.get_trials()] == [0]
    assert_fits(book)


def test_means_over_replicates_are_taken_without_their_replicates(tmp_path: Path) -> None:
    runs = open_runs(tmp_path, name="other", first={})
    for values in ((50.0, 51.0, 52.0), (10.0, 12.0)):
        measure(runs, *values)
    database = runs.trials.database
    told = taken_over(database, study_of(database))
    assert told.others == {"the trial was stopped early, under other replicates": 1}
    assert [(t.values, t.curve) for t in told.trials] == [([51.0], {})]
    same = study_of(database, name="same", seeds=3, pruner="none")
    found = [(t.values, t.curve) for t in taken_over(database, same).trials]
    assert found == [([51.0], {0: 50.0, 1: 51.0, 2: 52.0}), ([12.0], {0: 10.0, 1: 12.0})]


def test_a_single_run_is_taken_by_a_study_with_replicates(database: Database) -> None:
    told = taken_over(database, study_of(database, seeds=2, pruner="none"))
    assert len(told.trials) == 3
    assert all(trial.curve == {} for trial in told.trials)


def test_means_over_other_class_orders_are_another_question(database: Database) -> None:
    spec = study_of(database, class_orders=2, pruner="none")
    with pytest.raises(
        StudyError, match="its number of class orders is 1, that of study 'study' is 2"
    ):
        check_sources(database, spec, ["other"])


def test_what_does_not_fit_is_counted_by_its_reason(database: Database) -> None:
    search = {**SEARCH, "kd.weight": {"low": 15, "high": 60}}
    told = taken_over(database, study_of(database, search=search))
    assert len(told.trials) == 2
    assert told.others == {"kd.weight is searched in 15 .. 60": 2, "there is no value": 1}
    assert "2 where kd.weight is searched in 15 .. 60" in str(told)


def test_trials_with_other_fixed_values_do_not_fit(database: Database) -> None:
    spec = study_of(database, recipe={**TINY, "optim.epochs_new": 5, "seed": 7})
    told = taken_over(database, spec)
    assert told.others == {"optim.epochs_new is 2 and not 5": 4, "there is no value": 1}
    assert "0 of 5 finished trials" in str(told)


def test_a_key_that_only_one_study_searches_must_have_the_others_value(database: Database) -> None:
    fewer = {key: one for key, one in SEARCH.items() if key != "kd.weight"}
    spec = study_of(database, search=fewer, recipe={**TINY, "kd.weight": 20.0})
    assert [trial.number for trial in taken_over(database, spec).trials] == [1]
    more = {**SEARCH, "optim.momentum": {"low": 0.8, "high": 0.95}}
    told = taken_over(database, study_of(database, name="more", search=more))
    assert [trial.params["optim.momentum"] for trial in told.trials] == [0.9] * 4


def test_trials_are_taken_over_once_and_stay_though_their_study_goes(
    database: Database, tmp_path: Path
) -> None:
    spec = study_of(database)
    assert taken_over(database, spec, dry=True).trials
    assert taken(database, "study") == []
    taken_over(database, spec)
    again = taken_over(database, spec)
    assert str(again) == "4 trial(s) of study 'other' were taken over before"
    assert len(taken(database, "study")) == 4
    delete(database, "other", Store(tmp_path / "runs"))
    check_sources(database, spec, ["other"])
    assert len(seen(TrialBook(spec, database))) == 4


def test_taken_trials_leave_with_an_edit_as_own_ones_do(database: Database) -> None:
    spec = study_of(database)
    taken_over(database, spec)
    book = TrialBook(spec, database)
    by_driver(book, searching(kd_weight={"low": 15, "high": 60}))
    assert [trial.params["kd.weight"] for trial in seen(book)] == [20.0, 50.0]


def test_the_table_shows_them_as_what_they_are(database: Database) -> None:
    spec = study_of(database)
    taken_over(database, spec)
    step(TrialBook(spec, database))
    own, *others = trials_table(database, "study").to_pylist()
    assert (own["number"], own["state"]) == (0, "COMPLETE")
    assert {row["state"] for row in others} == {"TAKEN"}
    assert {row["number"] for row in others} == {None}
    assert [row["kd.weight"] for row in others] == [10.0, 20.0, 50.0, 100.0]
    assert others[0]["reason"] == "trial 0 of study other, COMPLETE"
    assert others[3]["value"] is None


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"recipe": {**TINY, "scenario": "shapes-8-4"}}, ("scenario is shapes-8-2", "shapes-8-4")),
        ({"recipe": {**TINY, "setting": "disjoint"}}, ("setting is overlapped", "disjoint")),
        ({"objective": "miou_new"}, ("objective is miou_all", "miou_new")),
        ({"recipe": {**TINY, "eval.select_on": "val"}}, ("select_on is holdout", "val")),
    ],
)
def test_a_study_of_another_question_is_refused(
    database: Database, values: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with pytest.raises(StudyError) as error:
        taken_over(database, study_of(database, **values))
    assert [part for part in ("--from other", *parts) if part not in str(error.value)] == []
    assert taken(database, "study") == []


def test_other_images_unknown_studies_and_itself_are_refused(database: Database) -> None:
    spec = study_of(database)
    with pytest.raises(StudyError, match=r"no study 'othr'.*did you mean 'other'"):
        check_sources(database, spec, ["othr"])
    with pytest.raises(ConfigError, match="learns from its own trials anyway"):
        check_sources(database, spec, ["study"])
    other = database.stored_spec("other")
    database.save_spec("other", StudySpec(**other).model_dump_json(), {"fingerprint": "else"})
    with pytest.raises(StudyError, match="--from other: it was measured on other images"):
        taken_over(database, spec)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in EXHAUSTIVE])
def test_every_sampler_that_learns_from_few_trials_starts_from_them(
    tmp_path: Path, sampler: str
) -> None:
    spec = spec_of(name="other", first={}, trials=20)
    database = new_database(f"sqlite:///{tmp_path}/s.db", spec)
    source = TrialBook(spec, database)
    for _ in range(12):
        step(source)
    mine = study_of(database, sampler=sampler)
    alone = study_of(database, sampler=sampler, name="alone")
    assert len(taken_over(database, mine).trials) == 12
    book = TrialBook(mine, database)
    found = [step(book)]
    found += [step(TrialBook(mine, database)) for _ in range(2)]
    assert_fits(book)
    without = TrialBook(alone, database)
    others = [step(without) for _ in range(3)]
    blind = sampler in ("random", "nsga2", "nsga3")  # a first population is drawn at random
    assert (found == others) == blind
