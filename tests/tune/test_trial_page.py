"""Pages of trials: the same trials in the same order as a plain list, filtered and sorted in Python."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.tune.charts.studies import make_study
from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.tune import trial_page as trial_page_module
from ucd_ray.tune.database import Database
from ucd_ray.tune.selection import FILTER
from ucd_ray.tune.trial_filter import TrialFilter
from ucd_ray.tune.trial_page import Page, Place, trial_page

Trial = dict[str, Any]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    """40 trials, and one that is queued."""
    made = make_study(tmp_path_factory.mktemp("page"), 40)
    study = optuna.load_study(study_name="study", storage=made.optuna_storage())
    study.enqueue_trial({"kd.weight": 7.0})
    return made


def page(database: Database, filters: Sequence[str] = (), **wanted: Any) -> Page:
    """The filters as tables have them: `state=COMPLETE`."""
    chosen = TrialFilter(database, "study")
    where = [chosen.compare(*match.groups()) for f in filters if (match := FILTER.fullmatch(f))]
    assert len(where) == len(filters)
    return trial_page(database, "study", where=where, **wanted)


def pages(database: Database, size: int, **wanted: Any) -> list[list[Trial]]:
    found, after = [], None
    while True:
        one = page(database, size=size, after=after, **wanted)
        found.append(one.trials)
        after = one.end
        if after is None:
            return found


def numbers(database: Database, size: int = 7, **wanted: Any) -> list[int]:
    return [trial["number"] for one in pages(database, size, **wanted) for trial in one]


def everything(database: Database) -> list[Trial]:
    (one,) = pages(database, 1000)
    return one


def test_pages_hold_every_trial_once_and_in_order(database: Database) -> None:
    found = pages(database, 7)
    assert [len(page) for page in found] == [7, 7, 7, 7, 7, 6]
    assert [t["number"] for page in found for t in page] == list(range(41))
    assert numbers(database, order_by="number", descending=True) == list(range(41))[::-1]


@pytest.mark.parametrize("few", [trial_page_module.FEW, 0], ids=["sorted", "by index"])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_order_by_value_has_trials_without_one_last(
    database: Database, sign: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_page_module, "FEW", few)
    trials = everything(database)
    expected = sorted(
        trials, key=lambda t: (t["value"] is None, sign * (t["value"] or 0), t["number"])
    )
    assert numbers(database, order_by="value", descending=sign < 0) == [
        t["number"] for t in expected
    ]
    assert expected[0]["value"] is not None and expected[-1]["value"] is None


def kd(trial: Trial) -> float:
    return (
        float(trial["params"].get("kd.weight", math.nan))
        if trial["state"] != "QUEUED"
        else math.nan
    )


@pytest.mark.parametrize(
    ("filters", "keeps"),
    [
        (["state=COMPLETE"], lambda t: t["state"] == "COMPLETE"),
        (["state!=COMPLETE"], lambda t: t["state"] != "COMPLETE"),
        (["state=FAILED"], lambda t: t["state"] == "FAILED"),
        (["state=QUEUED"], lambda t: t["state"] == "QUEUED"),
        (["code=PRUNER"], lambda t: t["code"] == "PRUNER"),
        (["value>40"], lambda t: t["value"] is not None and t["value"] > 40),
        (["value=null"], lambda t: t["value"] is None),
        (["number<=3"], lambda t: t["number"] <= 3),
        (["kd.weight>10", "state=COMPLETE"], lambda t: kd(t) > 10 and t["state"] == "COMPLETE"),
        (["ucd.max_old=256"], lambda t: t["params"].get("ucd.max_old") == 256),
        (["ucd.max_old>=256"], lambda t: (t["params"].get("ucd.max_old") or 0) >= 256),
        (["ucd.max_old!=256"], lambda t: t["params"].get("ucd.max_old") != 256),
        (["ucd.max_old=null"], lambda t: t["params"].get("ucd.max_old") is None),
        (["ucd.max_old!=null"], lambda t: t["params"].get("ucd.max_old") is not None),
        (["ucd.weight=null"], lambda t: "ucd.weight" not in t["params"]),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_filter_keeps_what_the_same_words_keep_in_a_table(
    database: Database, filters: list[str], keeps: Callable[[Trial], bool]
) -> None:
    expected = [t["number"] for t in everything(database) if keeps(t)]
    assert expected, "the filter must be seen to keep something"
    assert numbers(database, 3, filters=filters) == expected


def test_a_trial_that_comes_between_two_pages_shifts_nothing(tmp_path: Path) -> None:
    made = make_study(tmp_path, 10)
    first = page(made, size=4, order_by="number", descending=True)
    study = optuna.load_study(study_name="study", storage=made.optuna_storage())
    study.enqueue_trial({})
    second = page(made, size=4, order_by="number", descending=True, after=first.end)
    assert [t["number"] for t in first.trials + second.trials] == [9, 8, 7, 6, 5, 4, 3, 2]


def test_a_running_trial_without_a_driver_waits(tmp_path: Path) -> None:
    made = make_study(tmp_path, 3)
    optuna.load_study(study_name="study", storage=made.optuna_storage()).ask()
    found = page(made, filters=["state=WAITING"]).trials
    assert [(t["number"], t["state"], t["code"]) for t in found] == [(3, "WAITING", "NO_DRIVER")]
    assert page(made, filters=["state=RUNNING"]).trials == []
    made.claim("study")
    assert page(made, filters=["state=WAITING"]).trials == []
    assert [t["number"] for t in page(made, filters=["state=RUNNING"]).trials] == [3]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"filters": ["state=DONE"]}, "'DONE' is no state"),
        ({"filters": ["kd.wieght=1"]}, "did you mean 'kd.weight'"),
        ({"filters": ["value=high"]}, "'high' is no number"),
        ({"filters": ["state<COMPLETE"]}, "only numbers have an order"),
        ({"order_by": "colour"}, "order_by 'colour'"),
    ],
)
def test_what_cannot_be_read_is_named(
    database: Database, wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        page(database, **wanted)


def test_there_is_no_page_without_a_study(database: Database) -> None:
    with pytest.raises(StudyError, match="did you mean 'study'"):
        trial_page(database, "stuty")


@pytest.mark.parametrize("few", [trial_page_module.FEW, 0], ids=["sorted", "by index"])
def test_pages_are_alike_on_every_database(
    any_url: str, database: Database, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_page_module, "FEW", few)
    other = Database(any_url)
    other.save_spec("study", json.dumps(database.stored_spec("study")), database.about("study"))
    source = optuna.load_study(study_name="study", storage=database.optuna_storage())
    made = optuna.create_study(
        storage=other.optuna_storage(), study_name="study", direction="maximize"
    )
    made.add_trials(source.get_trials(deepcopy=False))
    for wanted in (
        {"order_by": "value", "descending": True},
        {"order_by": "value", "filters": ["ucd.max_old=256"]},
        {"filters": ["ucd.max_old!=256", "state!=FAILED"]},
    ):
        assert numbers(other, **wanted) == numbers(database, **wanted)
    assert page(other, after=Place(2**31 - 1)).trials == []
