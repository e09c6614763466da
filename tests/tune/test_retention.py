"""Which stored steps of a study stay."""

from __future__ import annotations

from pathlib import Path

from optuna.trial import TrialState

from tests.tune.test_bridge import open_book, run_trial, spec_of
from ucd_ray.step_eviction import hold, stored_steps
from ucd_ray.store import Store
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.goals import Goals
from ucd_ray.tune.retention import ENTRIES, best_trials, tidy


def digest(number: int) -> str:
    return f"{number:032x}"


def store_of(folder: Path, *numbers: int) -> Store:
    """A step cache with one entry per trial."""
    store = Store(folder / "steps")
    for number in numbers:
        store.write(b"{}", digest(number), "entry.json")
    return store


def book_of(folder: Path, *values: float) -> TrialBook:
    """A study whose trials ended with these values, each with an entry of its own."""
    book = open_book(folder, spec_of(trials=20, pruner="none"))
    for value in values:
        chosen = book.next_trial()
        assert chosen is not None
        number = chosen[0]
        book.open[number].set_user_attr(ENTRIES, [digest(number)])
        book.report(number, {"kind": "done", "value": value})
        book.close(number)
    return book


def left(store: Store) -> list[str]:
    return sorted(step.digest for step in stored_steps(store))


def test_the_best_trials_and_foreign_entries_stay(tmp_path: Path) -> None:
    book = book_of(tmp_path, 10.0, 30.0, 20.0)
    store = store_of(tmp_path, 0, 1, 2, 99)
    assert sorted(tidy(book.study, store, book.goals, keep_best=2)) == [digest(0)]
    assert left(store) == [digest(1), digest(2), digest(99)]
    assert tidy(book.study, store, book.goals, keep_best=1) == [digest(2)]


def test_entries_of_open_trials_stay(tmp_path: Path) -> None:
    book = book_of(tmp_path, 10.0)
    chosen = book.next_trial()
    assert chosen is not None
    book.open[chosen[0]].set_user_attr(ENTRIES, [digest(chosen[0])])
    store = store_of(tmp_path, 0, chosen[0])
    assert tidy(book.study, store, book.goals, keep_best=1) == []


def test_an_entry_that_the_best_trial_shares_stays(tmp_path: Path) -> None:
    book = book_of(tmp_path, 10.0, 30.0)
    chosen = book.next_trial()
    assert chosen is not None
    book.open[chosen[0]].set_user_attr(ENTRIES, [digest(1)])
    book.report(chosen[0], {"kind": "done", "value": 5.0})
    book.close(chosen[0])
    store = store_of(tmp_path, 1)
    assert tidy(book.study, store, book.goals, keep_best=1) == []
    assert left(store) == [digest(1)]


def test_what_another_run_holds_stays_until_it_lets_go(tmp_path: Path) -> None:
    book = book_of(tmp_path, 10.0, 30.0)
    store = store_of(tmp_path, 0, 1)
    with hold(store, [digest(0)], "other/3"):
        assert tidy(book.study, store, book.goals, keep_best=1) == []
    assert tidy(book.study, store, book.goals, keep_best=1) == [digest(0)]


def test_pruned_and_failed_trials_are_never_among_the_best(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(trials=20, pruner="threshold:lower=50,warmup=0"))
    run_trial(book, 40.0)
    run_trial(book, 60.0)
    trials = book.study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.PRUNED, TrialState.COMPLETE]
    assert best_trials(trials, Goals(("miou_all",)), 5) == {1}
