"""What ends a study early, on a real database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.tune.test_bridge import open_book, run_trial, spec_of
from ucd_ray.errors import StudyError
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.budgets import Budgets, terminates
from ucd_ray.tune.executors import Gang
from ucd_ray.tune.ledger import STUDY, Ledger, Spent, held, summary, totals


def budgets_of(folder: Path, **values: Any) -> tuple[TrialBook, Budgets]:
    spec = spec_of(**{"trials": 50, "pruner": "none", **values})
    book = open_book(folder, spec)
    return book, Budgets(book, Ledger(book.database, spec.name, Gang(2, 3.0, 1.0)))


def fail(book: TrialBook, code: str, reason: str, traceback: str) -> None:
    chosen = book.next_trial()
    assert chosen is not None
    report = {"kind": "failed", "code": code, "reason": reason, "traceback": traceback}
    book.report(chosen[0], report)
    book.close(chosen[0])


def test_without_budgets_a_study_goes_on(tmp_path: Path) -> None:
    book, budgets = budgets_of(tmp_path)
    for value in (3.0, 2.0, 1.0):
        run_trial(book, value)
    assert budgets.look() is None


def test_no_better_trial_for_a_while_ends_the_study(tmp_path: Path) -> None:
    book, budgets = budgets_of(tmp_path, patience=2)
    for value in (10.0, 30.0, 20.0):
        run_trial(book, value)
        assert budgets.look() is None
    run_trial(book, 29.0)
    assert budgets.look() == "budget: nothing better than 30.00 (trial 1) in 2 trials"


def test_gpu_hours_count_all_that_was_held(tmp_path: Path) -> None:
    _, budgets = budgets_of(tmp_path, max_gpu_hours=1.0)
    budgets.ledger.add("idle", 900.0)  # of two workers with a GPU each: half an hour
    assert budgets.look() is None
    budgets.ledger.spend(0, "running", 901.0)
    assert budgets.look() == "budget: 1.00 of 1 GPU hours are used up"


def test_what_the_cache_saved_is_no_use_of_gpus(tmp_path: Path) -> None:
    _, budgets = budgets_of(tmp_path, max_gpu_hours=1.0)
    budgets.ledger.add("saved", 1e6, number=3)
    assert budgets.look() is None


def test_wall_time_counts_over_all_drivers(tmp_path: Path) -> None:
    book, budgets = budgets_of(tmp_path, max_hours=1.0)
    budgets.ledger.add_wall(3000.0)
    assert budgets.look() is None
    Ledger(book.database, "study", Gang(1, 1.0, 0.0)).add_wall(601.0)
    assert budgets.look() == "budget: 1 h of wall time are used up"


def test_the_same_failure_again_and_again_ends_the_study_with_its_reason(tmp_path: Path) -> None:
    book, budgets = budgets_of(tmp_path, same_failures=3)
    for _ in range(2):
        fail(book, "ERROR", "KeyError: 'x'", "line 7")
    fail(book, "ERROR", "KeyError: 'x'", "line 9: another place")
    fail(book, "NAN", "kd became nan", "line 7")
    assert budgets.look() is None
    fail(book, "ERROR", "KeyError: 'x'", "line 7")
    with pytest.raises(StudyError, match=r"3 trials of study 'study' failed alike.*KeyError: 'x'"):
        budgets.look()


def test_optunas_terminator_ends_a_study_that_has_converged(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    distribution = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    for number in range(40):
        x = 0.5 + (number % 4) * 1e-4
        trial = optuna.trial.create_trial(params={"x": x}, distributions=distribution, value=1.0)
        study.add_trial(trial)
    assert terminates(study)


def test_the_terminator_waits_for_results(tmp_path: Path) -> None:
    book, budgets = budgets_of(tmp_path, terminator=True)
    run_trial(book, 1.0)
    assert budgets.look() is None


# The ledger.


def ledger_of(folder: Path, gang: Gang) -> Ledger:
    book = open_book(folder, spec_of())
    return Ledger(book.database, "study", gang)


def test_a_gangs_seconds_count_for_all_its_workers(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, Gang(2, 3.0, 0.5))
    ledger.spend(0, "running", 10.0)
    ledger.spend(0, "running", 20.0)
    assert totals(ledger.database, "study") == {"running": Spent(120.0, 20.0)}


def test_an_ended_trial_moves_to_its_kind(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, Gang(1, 1.0, 1.0))
    ledger.spend(0, "running", 10.0)
    ledger.end(0, "pruned")
    assert totals(ledger.database, "study") == {"pruned": Spent(10.0, 10.0)}


def test_what_a_trial_held_before_it_was_interrupted_stays(tmp_path: Path) -> None:
    gang = Gang(1, 1.0, 0.0)
    first = ledger_of(tmp_path, gang)
    first.spend(4, "running", 10.0)
    second = Ledger(first.database, "study", gang)  # of the next driver
    second.spend(4, "running", 1.0)
    second.spend(4, "running", 5.0)
    second.reopen(4)
    second.spend(4, "running", 2.0)
    second.end(4, "useful")
    assert totals(first.database, "study") == {"useful": Spent(17.0, 0.0)}


def test_runs_of_a_trial_that_hold_gangs_at_the_same_time_are_added_up(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, Gang(1, 1.0, 0.0))
    for replicate, seconds in ((0, 10.0), (1, 3.0), (0, 12.0)):
        ledger.spend(2, "running", seconds, replicate=replicate)
    ledger.reopen(2, replicate=0)  # it stopped at its checkpoint, the other one goes on
    ledger.spend(2, "running", 4.0, replicate=1)
    ledger.spend(2, "running", 5.0, replicate=0)
    assert totals(ledger.database, "study") == {"running": Spent(21.0, 0.0)}
    ledger.end(2, "useful")
    assert totals(ledger.database, "study") == {"useful": Spent(21.0, 0.0)}


def test_the_sum_of_what_was_held_leaves_savings_and_wall_time_out(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, Gang(1, 1.0, 1.0))
    ledger.add("idle", 5.0)
    ledger.spend(STUDY, "useful", 7.0)
    ledger.add("saved", 100.0, number=1)
    ledger.add_wall(1000.0)
    assert held(totals(ledger.database, "study")) == Spent(12.0, 12.0)
    assert ledger.wall_seconds() == 1000.0
    told = summary(totals(ledger.database, "study"))
    assert told == "GPU seconds: useful 7, idle 5, saved 100"
