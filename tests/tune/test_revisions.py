"""Edited studies on real databases: what sampler, pruner and tables see of trials of all revisions."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from tests.tune.test_bridge import PUBLISHED, SEARCH, epoch, open_book, spec_of
from tests.tune.test_results import ABOUT
from ucd_ray.errors import ConfigError, StudyError, UcdRayError
from ucd_ray.tune import commands, revisions
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.database import Database
from ucd_ray.tune.editing import Editor, edit, enqueue
from ucd_ray.tune.edits import Edit
from ucd_ray.tune.explain import overview_view
from ucd_ray.tune.names import EXHAUSTIVE, SAMPLERS
from ucd_ray.tune.overview import overview
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.places import places
from ucd_ray.tune.proposals import contains, distribution
from ucd_ray.tune.results import trials_table
from ucd_ray.tune.spec import StudySpec, parsed


def searching(**ranges: Any) -> Edit:
    """An edit of ranges; `kd_weight` is the key `kd.weight`."""
    return Edit(search={key.replace("_", ".", 1): one for key, one in ranges.items()})


def new_database(url: str, spec: StudySpec) -> Database:
    database = Database(url)
    database.save_spec(spec.name, spec.model_dump_json(), ABOUT)
    return database


def reopened(database: Database, **options: Any) -> TrialBook:
    """The book of another driver."""
    url = database.url.render_as_string(hide_password=False)
    found = Database(url)
    return TrialBook(parsed(found.stored_spec("study")), found, **options)


def by_driver(book: TrialBook, wanted: Edit) -> str:
    """Gives an edit to the driver that has this book.  Returns the outcome."""
    number = commands.give(
        book.database, "study", commands.EDIT, edit=wanted.model_dump(mode="json")
    )
    (command,) = commands.pending(book.database, "study")
    told = Editor(book, lambda text: None).handlers()[command.kind](command)
    commands.finish(book.database, number, told)
    return told


def step(book: TrialBook) -> dict[str, Any]:
    """One trial, whose value follows from its params; every fourth is pruned."""
    chosen = book.next_trial()
    assert chosen is not None
    number, params = chosen
    value = 50 - abs(math.log10(params.get("kd.weight", 10.0)) - 1.5) * 10
    book.report(number, epoch(1, value))
    if number % 4 == 3:
        book.reasons[number] = ("PRUNER", "weak")
    book.report(number, {"kind": "done", "value": value})
    book.close(number)
    return params


def seen(book: TrialBook) -> list[FrozenTrial]:
    return list(book.seen.get_trials(deepcopy=False))


def assert_fits(book: TrialBook) -> None:
    """What the sampler sees is of the present space, whatever there was before."""
    for trial in seen(book):
        if trial.params:
            found = {key: book.fit.distributions[key] for key in trial.params}
            assert trial.distributions == found
            assert all(contains(one, trial.params[key]) for key, one in found.items())
            book.fit.domain.check(trial.params, "value")


# Every kind of edit, as it comes in the life of a study.
EDITS = (
    searching(kd_weight={"low": 1, "high": 400, "log": True}),
    Edit(add=(("ucd.max_old", 512),)),
    searching(optim_lr_new={"low": 1e-4, "high": 1e-2, "log": True}),
    Edit(remove=(("ucd.max_old", 256),), settings={"trials": 50}),
    searching(kd_weight={"low": 5, "high": 100, "log": True}),
    Edit(fix={"optim.lr_new": 0.001}),
)
COUNTED: dict[str, Any] = {
    "kd.weight": {"low": 10, "high": 30, "step": 10},
    "ucd.max_old": {"choices": [256, None]},
}
COUNTED_EDITS = (
    searching(kd_weight={"low": 10, "high": 40, "step": 10}),
    Edit(add=(("ucd.max_old", 512),)),
    searching(optim_momentum={"choices": [0.9, 0.95]}),
    Edit(remove=(("ucd.max_old", 256),), settings={"trials": 50}),
    searching(kd_weight={"low": 20, "high": 40, "step": 5}),
    Edit(fix={"optim.momentum": 0.9}),
)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_goes_on_after_every_edit_as_if_the_driver_had_never_ended(
    tmp_path: Path, sampler: str
) -> None:
    counted = sampler in EXHAUSTIVE
    search, edits = (COUNTED, COUNTED_EDITS) if counted else (SEARCH, EDITS)
    edits = edits[:4] if sampler == "gp" else edits  # which takes its time
    first = {key: PUBLISHED[key] for key in search}
    spec = spec_of(trials=40, sampler=sampler, seed=3, search=search, first=first)
    stays, ends = (new_database(f"sqlite:///{tmp_path}/{n}.db", spec) for n in "ab")
    book, other, found = TrialBook(spec, stays), reopened(ends), []
    for i in range(6 + 2 * len(edits)):
        if i >= 6 and i % 2 == 0:
            wanted = edits[i // 2 - 3]
            assert by_driver(book, wanted).startswith(f"revision {i // 2 - 2}: ")
            assert edit(ends, "study", wanted).done
            other = reopened(ends)
        found.append(step(book))
        assert_fits(book)
        assert set(found[-1]) == set(book.spec.search)
        assert step(other) == found[-1]
    own = book.study.get_trials(deepcopy=False)
    assert [trial.number for trial in own] == list(range(len(found)))
    assert [trial.params for trial in own] == found, "rows keep what they ran with"
    marks = [trial.user_attrs.get("revision", 0) for trial in own]
    assert marks == [0] * 6 + [n for n in range(1, len(edits) + 1) for _ in range(2)]


def test_an_exhaustive_sampler_tries_what_an_edit_added_and_nothing_twice(tmp_path: Path) -> None:
    for sampler in EXHAUSTIVE:
        spec = spec_of(trials=100, sampler=sampler, search=COUNTED, first={"kd.weight": 20.0})
        book = TrialBook(spec, new_database(f"sqlite:///{tmp_path}/{sampler}.db", spec))
        found = [step(book) for _ in range(4)]
        assert book.wanted == 6
        by_driver(book, Edit(add=(("ucd.max_old", 512),)))
        assert book.wanted == 9
        found += [step(book) for _ in range(5)]
        assert book.next_trial() is None
        assert found[0]["kd.weight"] == 20.0
        assert len({(p["kd.weight"], p["ucd.max_old"]) for p in found}) == 9


# What old trials are to the sampler.


@pytest.fixture
def book(any_url: str) -> TrialBook:
    """A study with four trials: weights 10, 20, 50 and 100."""
    spec = spec_of(first={}, trials=20)
    book = TrialBook(spec, new_database(any_url, spec))
    for weight in (10.0, 20.0, 50.0, 100.0):
        book.study.enqueue_trial({"kd.weight": weight, "ucd.max_old": 256})
        step(book)
    return book


def numbers(book: TrialBook) -> list[int]:
    return [trial.number for trial in seen(book)]


def test_trials_outside_of_a_narrower_range_leave_the_sampler_and_come_back(
    book: TrialBook,
) -> None:
    by_driver(book, searching(kd_weight={"low": 15, "high": 60}))
    assert numbers(book) == [1, 2]
    assert len(book.study.get_trials()) == 4
    assert book.finished() == 4, "they still count against the budget"
    by_driver(book, searching(kd_weight={"low": 1, "high": 60}))
    assert numbers(book) == [0, 1, 2]
    assert numbers(reopened(book.database)) == [0, 1, 2]


def test_trials_with_a_choice_that_went_leave_the_sampler(book: TrialBook) -> None:
    by_driver(book, Edit(add=(("ucd.max_old", 512),)))
    assert numbers(book) == [0, 1, 2, 3]
    by_driver(book, Edit(remove=(("ucd.max_old", 256),)))
    assert numbers(book) == []
    assert step(book)["ucd.max_old"] in (512, None)


def test_trials_have_the_recipes_value_of_a_key_that_is_searched_since(book: TrialBook) -> None:
    by_driver(book, searching(optim_momentum={"low": 0.8, "high": 0.95}))
    assert [trial.params["optim.momentum"] for trial in seen(book)] == [0.9] * 4
    by_driver(book, searching(optim_momentum={"low": 0.91, "high": 0.95}))
    assert numbers(book) == []


def test_trials_with_the_value_that_a_key_is_fixed_at_stay(book: TrialBook) -> None:
    by_driver(book, Edit(fix={"kd.weight": 20.0}))
    assert numbers(book) == [1]
    assert "kd.weight" not in step(book)
    assert numbers(book) == [1, 4]
    by_driver(book, Edit(settings={"trials": 30}))
    assert numbers(book) == [1, 4]


def test_a_larger_budget_is_no_new_search_space(book: TrialBook) -> None:
    before = [trial.system_attrs for trial in seen(book)]
    by_driver(book, Edit(settings={"trials": 40, "max_concurrent": 2}))
    assert (book.spec.trials, book.wanted, book.spec.max_concurrent) == (40, 40, 2)
    assert [trial.system_attrs for trial in seen(book)] == before


def test_a_running_trial_is_pruned_and_told_as_before_the_edit(book: TrialBook) -> None:
    chosen = book.next_trial()
    assert chosen is not None
    assert by_driver(book, Edit(add=(("ucd.max_old", 512),))).startswith("revision 1")
    assert book.report(4, epoch(1, 1.0)) is False
    assert book.report(4, epoch(2, 1.0)) is False
    book.report(4, {"kind": "done", "value": 1.0})
    book.close(4)
    trial = book.study.get_trials()[4]
    assert (trial.state, trial.params) == (TrialState.COMPLETE, chosen[1])
    assert "revision" not in trial.user_attrs


def test_a_running_trial_is_adopted_as_it_was_after_an_edit(book: TrialBook) -> None:
    left = book.next_trial()
    edit(book.database, "study", Edit(add=(("ucd.max_old", 512),)))
    edit(book.database, "study", searching(optim_momentum={"low": 0.8, "high": 0.95}))
    again = reopened(book.database)
    assert again.next_trial() == left
    assert_fits(again)


# What is stored.


def test_an_edit_is_one_transaction(book: TrialBook, monkeypatch: pytest.MonkeyPatch) -> None:
    database = book.database
    before = database.stored_spec("study")

    def power_cut(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(revisions.command_table, "update", power_cut)
    number = commands.give(database, "study", commands.EDIT, edit={"settings": {"trials": 40}})
    with pytest.raises(KeyboardInterrupt):
        Editor(book, lambda text: None).handlers()[commands.EDIT](
            commands.pending(database, "study")[0]
        )
    monkeypatch.undo()
    assert database.stored_spec("study") == before
    assert revisions.revisions(database, "study") == []
    assert commands.outcome(database, number) is None
    again = reopened(database)
    assert (again.spec.trials, again.fit.history.number) == (20, 0)


def test_revisions_say_what_changed_and_when(book: TrialBook) -> None:
    by_driver(book, searching(kd_weight={"low": 1, "high": 300, "log": True}))
    by_driver(book, Edit(settings={"trials": 40, "patience": 5}, add=(("ucd.max_old", 512),)))
    by_driver(book, searching(optim_momentum={"low": 0.8, "high": 0.95}))
    by_driver(book, Edit(fix={"ucd.max_old": None}))
    found = revisions.revisions(book.database, "study")
    assert [(r.number, list(r.changes)) for r in found] == [
        (0, []),
        (1, ["kd.weight: 1 .. 200 log -> 1 .. 300 log"]),
        (
            2,
            [
                "ucd.max_old: {256, all} -> {256, all, 512}",
                "trials: 20 -> 40",
                "patience: none -> 5",
            ],
        ),
        (3, ["optim.momentum: searched in 0.8 .. 0.95, was 0.9"]),
        (4, ["ucd.max_old: fixed at null"]),
    ]
    times = [revision.created for revision in found]
    assert times == sorted(times)
    assert found[0].spec["trials"] == 20
    assert found[-1].spec == book.database.stored_spec("study")


def test_the_same_edit_again_changes_nothing(book: TrialBook) -> None:
    wanted = searching(kd_weight={"low": 1, "high": 300, "log": True})
    by_driver(book, wanted)
    assert by_driver(book, wanted) == "it has these values already"
    assert "it has these values already" in edit(book.database, "study", wanted).text
    assert len(revisions.revisions(book.database, "study")) == 2


def test_tables_show_every_trial_with_its_revision_and_whether_it_fits(book: TrialBook) -> None:
    by_driver(book, searching(kd_weight={"low": 15, "high": 60}))
    by_driver(book, searching(optim_momentum={"low": 0.8, "high": 0.95}))
    step(book)
    rows = trials_table(book.database, "study").to_pylist()
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["revision"] for row in rows] == [0, 0, 0, 0, 2]
    assert [row["fits"] for row in rows] == [False, True, True, False, True]
    assert [row["kd.weight"] for row in rows[:4]] == [10.0, 20.0, 50.0, 100.0]
    assert [row["optim.momentum"] for row in rows[:4]] == [0.9] * 4, "what they ran with"


def test_a_study_that_was_never_edited_has_no_columns_about_it(book: TrialBook) -> None:
    assert not {"revision", "fits"} & set(trials_table(book.database, "study").column_names)


def test_the_overview_lists_the_revisions(book: TrialBook, tmp_path: Path) -> None:
    by_driver(book, Edit(settings={"trials": 40}))
    found = overview(book.database, "study", places())
    assert [(r["number"], r["changes"]) for r in found.revisions] == [
        (0, ()),
        (1, ("trials: 20 -> 40",)),
    ]
    assert found.budgets[0].limit == 40
    text = io.StringIO()
    Console(file=text, width=120).print(overview_view(found))
    assert "as it was created" in text.getvalue()
    assert "trials: 20 -> 40" in text.getvalue()


# Queued by hand.


def test_a_queued_trial_gets_its_params_and_the_samplers(book: TrialBook) -> None:
    told = enqueue(book.database, "study", {"kd.weight": 42.0})
    assert "trial 4 is queued with kd.weight=42" in told.text
    assert step(book)["kd.weight"] == 42.0
    assert numbers(book) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_values_outside_of_the_ranges_run_and_are_not_seen_by_the_sampler(
    tmp_path: Path, sampler: str
) -> None:
    search = COUNTED if sampler in EXHAUSTIVE else SEARCH
    spec = spec_of(first={}, trials=20, sampler=sampler, search=search)
    book = TrialBook(spec, new_database(f"sqlite:///{tmp_path}/s.db", spec))
    told = enqueue(book.database, "study", {"kd.weight": 777.0, "ucd.max_old": 99})
    assert "kd.weight is outside of its range" in told.text
    params = step(book)
    assert (params["kd.weight"], params["ucd.max_old"]) == (777.0, 99)
    step(book)
    assert numbers(book) == [1]
    assert numbers(reopened(book.database)) == [1]


def test_a_driver_queues_a_trial_once_for_each_command(book: TrialBook) -> None:
    number = commands.give(book.database, "study", commands.ENQUEUE, params={"kd.weight": 42.0})
    handler = Editor(book, lambda text: None).handlers()[commands.ENQUEUE]
    (command,) = commands.pending(book.database, "study")
    told = [handler(command) for _ in range(2)]
    assert told[0] == told[1] == "trial 4 is queued with kd.weight=42"
    assert len(book.study.get_trials()) == 5
    commands.finish(book.database, number, told[0])


def test_a_queued_trial_beyond_the_budget_says_what_lets_it_run(book: TrialBook) -> None:
    by_driver(book, Edit(settings={"trials": 4}))
    told = enqueue(book.database, "study", {"kd.weight": 42.0}).text
    assert "more than 4 trials (`ucd-ray study edit study --trials N`)" in told
    assert book.next_trial() is None


@pytest.mark.parametrize(
    ("params", "parts"),
    [
        ({"kd.wieght": 1}, ("kd.wieght", "'kd.weight'")),
        ({"optim.epochs_new": 9}, ("'optim.epochs_new' is not searched", "its trials have 2")),
        ({"kd.weight": -1.0}, ("kd.weight", "-1")),
        ({"kd.weight": "much"}, ("kd.weight", "much")),
    ],
)
def test_params_that_no_trial_can_have_are_not_queued(
    tmp_path: Path, params: dict[str, Any], parts: tuple[str, ...]
) -> None:
    book = open_book(tmp_path)
    before = len(book.study.get_trials())
    with pytest.raises(ConfigError) as error:
        enqueue(book.database, "study", params)
    assert [part for part in parts if part not in str(error.value)] == []
    assert len(book.study.get_trials()) == before


# What is refused.


def test_a_study_of_one_trial_may_search_nothing_and_then_has_no_more(tmp_path: Path) -> None:
    search = {"kd.weight": SEARCH["kd.weight"]}
    book = open_book(tmp_path, spec_of(trials=1, first={}, search=search))
    edit(book.database, "study", Edit(fix={"kd.weight": 5}))
    with pytest.raises(ConfigError, match="would search nothing"):
        edit(book.database, "study", Edit(settings={"trials": 2}))


@pytest.mark.parametrize(
    ("wanted", "parts"),
    [
        (searching(kd_wieght={"low": 1, "high": 2}), ("kd.wieght", "'kd.weight'")),
        (searching(optim_epochs_new={"low": 1, "high": 2}), ("'optim.epochs_new' is fixed at 2",)),
        (searching(optim_momentum={"low": 0.5, "high": 1.5}), ("optim.momentum", "1.5")),
        (Edit(add=(("kd.weight", 3),)), ("'kd.weight' has a range, 1 .. 200 log", "--search")),
        (Edit(add=(("ucd.max_old", 256),)), ("256 is a choice of 'ucd.max_old' already",)),
        (Edit(add=(("ucd.max_old", "many"),)), ("ucd.max_old", "many")),
        (Edit(remove=(("ucd.max_old", 3),)), ("3 is no choice of 'ucd.max_old'", "256, null")),
        (
            Edit(remove=(("ucd.max_old", 256), ("ucd.max_old", None))),
            ("ucd.max_old", "choices is empty"),
        ),
        (Edit(fix={"kd.temperature": 2}), ("'kd.temperature' is not searched",)),
        (Edit(fix={"kd.weight": -1}), ("kd.weight", "-1")),
        (Edit(fix=dict.fromkeys(SEARCH, 1)), ("would search nothing",)),
        (Edit(settings={"trials": 0}), ("trials", "greater than 0")),
    ],
)
def test_a_wrong_edit_is_refused_and_changes_nothing(
    tmp_path: Path, wanted: Edit, parts: tuple[str, ...]
) -> None:
    book = open_book(tmp_path)
    before = book.database.stored_spec("study")
    with pytest.raises(ConfigError) as error:
        edit(book.database, "study", wanted)
    assert [part for part in parts if part not in str(error.value)] == []
    told = by_driver(book, wanted)
    assert told == f"refused: {error.value}"
    assert book.database.stored_spec("study") == before
    assert revisions.revisions(book.database, "study") == []


def test_an_exhaustive_sampler_needs_points(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(sampler="grid", search=COUNTED, first={}))
    with pytest.raises(ConfigError, match=r"'kd\.weight' has a range without a step"):
        edit(book.database, "study", searching(kd_weight={"low": 1, "high": 2}))


def test_an_edit_that_would_leave_a_running_trial_out_is_refused(book: TrialBook) -> None:
    book.study.enqueue_trial({"kd.weight": 150.0, "ucd.max_old": None})
    book.next_trial()
    parts = ("trial 4 runs with", "cancel it (`ucd-ray study cancel study 4`)", "has ended")
    for wanted, reason in (
        (
            searching(kd_weight={"low": 1, "high": 100}),
            "kd.weight=150, and in the edited study kd.weight is searched in 1 .. 100",
        ),
        (Edit(remove=(("ucd.max_old", None),)), "ucd.max_old=null"),
        (searching(optim_momentum={"low": 0.5, "high": 0.8}), "optim.momentum=0.9"),
        (Edit(fix={"kd.weight": 10}), "kd.weight is fixed at 10"),
    ):
        told = by_driver(book, wanted)
        assert told.startswith(commands.REFUSED)
        assert [part for part in (*parts, reason) if part not in told] == []
        with pytest.raises(StudyError, match="trial 4 runs with"):  # left by a dead driver
            edit(book.database, "study", wanted)
    assert revisions.revisions(book.database, "study") == []
    book.fail(4, "STOPPED_BY_USER", "stopped by command")
    assert by_driver(book, searching(kd_weight={"low": 1, "high": 100})).startswith("revision 1")


def test_an_edit_that_would_ignore_a_queued_trials_params_is_refused(book: TrialBook) -> None:
    enqueue(book.database, "study", {"kd.weight": 150.0})
    told = by_driver(book, Edit(fix={"kd.weight": 10.0}))
    assert "trial 4 is queued with kd.weight=150" in told
    assert "study cancel study 4" in told
    assert by_driver(book, searching(kd_weight={"low": 1, "high": 100})).startswith("revision 1")
    assert step(book)["kd.weight"] == 150.0
    assert numbers(book) == [0, 1, 2, 3], "it was queued by hand, and runs outside of the range"


def test_a_study_of_another_version_cannot_be_edited(tmp_path: Path) -> None:
    database = open_book(tmp_path).database
    stored = {**database.stored_spec("study"), "colour": "red"}
    database.save_spec("study", json.dumps(stored), ABOUT)
    with pytest.raises(UcdRayError, match=r"of another version of ucd-ray.*colour"):
        edit(database, "study", Edit(settings={"trials": 40}))


def test_values_are_held_against_steps_and_kinds() -> None:
    stepped = distribution(Parameter(low=0.1, high=0.5, step=0.1))
    assert contains(stepped, 0.1 + 0.2)
    assert not contains(stepped, 0.25)
    assert not contains(stepped, None)
    assert not contains(distribution(Parameter(choices=(1, "a"))), "b")
