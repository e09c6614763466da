"""The best of many trials, several objectives at once, limits on results, pruning on a scalar beside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from tests.tune.test_bridge import epoch, open_book, spec_of, trial_of
from ucd_ray.tune.bridge import TrialBook
from ucd_ray.tune.constraints import parse
from ucd_ray.tune.database import Database
from ucd_ray.tune.goals import Goals
from ucd_ray.tune.names import EXHAUSTIVE, ONE_OBJECTIVE, SAMPLERS
from ucd_ray.tune.objectives import RESULTS, Best, best_of, curves_study, pareto, ranked
from ucd_ray.tune.results import read
from ucd_ray.tune.retention import best_trials

TWO: dict[str, Any] = {"objectives": ["miou_old", "forgetting"], "pruner": "none"}


def done(*values: float, number: int, excess: float | None = None) -> FrozenTrial:
    """excess: over a limit of 2 on drop"""
    attributes = {} if excess is None else {RESULTS: {"drop": 2 + excess}}
    trial = create_trial(values=values, user_attrs=attributes)
    trial.number = number
    return trial


# Which trials are best.


def test_the_pareto_set_is_what_no_other_point_beats() -> None:
    random = np.random.default_rng(0)
    for width in (1, 2, 3):
        points = random.integers(0, 6, size=(60, width)).astype(float)
        beaten = [
            any((other >= point).all() and (other > point).any() for other in points)
            for point in points
        ]
        assert pareto(points).tolist() == [not is_beaten for is_beaten in beaten]
    assert pareto(np.empty((0, 2))).tolist() == []


def test_less_of_a_cost_is_better() -> None:
    trials = [done(value, number=n) for n, value in enumerate((5.0, 3.0, 9.0))]
    assert best_of(Goals(("drop",)), trials) == Best((1,), "3.00 (trial 1)")
    assert best_of(Goals(("miou_all",)), trials) == Best((2,), "9.00 (trial 2)")


def test_trials_that_break_a_limit_are_not_the_best_but_the_last() -> None:
    goals = Goals(("miou_all",), (parse("drop <= 2"),))
    trials = [
        done(50.0, number=0, excess=3.0),
        done(40.0, number=1, excess=0.0),
        done(60.0, number=2, excess=1.0),
        done(45.0, number=3, excess=-1.0),
        create_trial(state=TrialState.PRUNED),
    ]
    assert best_of(goals, trials) == Best((3,), "45.00 (trial 3)")
    assert [trial.number for trial in ranked(goals, trials)] == [3, 1, 2, 0]
    assert best_of(goals, trials[:1]) is None


def test_the_best_of_several_objectives_are_the_pareto_set() -> None:
    goals = Goals(("miou_old", "forgetting"))
    trials = [
        done(40.0, 9.0, number=0),
        done(30.0, 2.0, number=1),
        done(29.0, 3.0, number=2),
        done(40.0, 9.0, number=3),
    ]
    best = best_of(goals, trials)
    assert best is not None
    assert best.numbers == (0, 3, 1)
    assert best.newest == 3
    assert best.text == "Pareto set of 3: trial(s) 0, 3, 1"
    assert [trial.number for trial in ranked(goals, trials)] == [0, 3, 1, 2]
    assert best_trials(trials, goals, 1) == {0, 1, 3}, "networks of the whole set are kept"


# A study after several objectives.


def measure(
    book: TrialBook, old: float, forgetting: float, *, curve: tuple[float, ...] = ()
) -> int:
    """One trial with these results; a curve of the scalar after every epoch."""
    chosen = book.next_trial()
    assert chosen is not None
    number = chosen[0]
    for rung, value in enumerate(curve, start=1):
        if book.report(number, {**epoch(rung, value), "drop": 1.0}):
            book.close(number)
            return number
    report_steps(book, number, old, forgetting)
    book.report(number, {"kind": "done", "value": old})
    book.close(number)
    return number


def report_steps(book: TrialBook, number: int, old: float, forgetting: float) -> None:
    for step in (0, 1):
        means = {f"miou_{g}": old for g in ("all", "base", "added", "old", "new")}
        means |= {"miou_base": 60.0} if step == 0 else {}
        means["forgetting"] = forgetting
        images = {"means": means, "iou": {"1": old}, "forgetting": {}}
        counts = {"cached": False, "seconds": 5.0, "images": 9, "iterations": 4, "entries": []}
        sets = {"select": images, "val": images}
        book.report(number, {"kind": "step", "step": step, "value": old, **counts, **sets})


def test_a_trial_has_a_value_for_each_objective(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    book = open_book(
        tmp_path, spec_of(**TWO), on_event=lambda kind, n, report: events.append(report)
    )
    measure(book, 30.0, 4.0)
    measure(book, 20.0, 1.0)
    measure(book, 19.0, 2.0)
    assert trial_of(book, 0).values == [30.0, 4.0]
    assert events[-1]["values"] == [19.0, 2.0]
    best = book.best()
    assert best is not None
    assert best.numbers == (0, 1)
    table = read(book.database, "study", order_by=["best"]).read_all()
    assert table["number"].to_pylist() == [0, 1, 2]
    assert table["pareto"].to_pylist() == [True, True, False]
    assert table["value_forgetting"].to_pylist() == [4.0, 1.0, 2.0]
    assert "feasible" not in table.column_names
    steps = read(book.database, "study", "steps").read_all()
    assert steps["value"].to_pylist() == [30.0, 30.0, 20.0, 20.0, 19.0, 19.0], "of the scalar"
    assert steps.schema.metadata[b"objective"] == b"miou_all"
    in_set = read(book.database, "study", filters=["pareto=true"]).read_all()
    assert in_set["number"].to_pylist() == [0, 1]


def test_limits_are_told_to_the_sampler_and_shown(tmp_path: Path) -> None:
    spec = spec_of(constraints=["drop <= 25", "seconds < 60"])
    book = open_book(tmp_path, spec)
    measure(book, 30.0, 4.0)
    measure(book, 40.0, 1.0)
    measure(book, 38.0, 1.0)
    assert trial_of(book, 0).constraints == {"drop <= 25": 5.0, "seconds < 60": -50.0}
    assert trial_of(book, 1).constraints["drop <= 25"] == -5.0
    assert book.best() == Best((1,), "40.00 (trial 1)")
    table = read(book.database, "study", order_by=["best"]).read_all()
    assert table["number"].to_pylist() == [1, 2, 0]
    assert table["feasible"].to_pylist() == [True, True, False]
    assert table["value_drop"].to_pylist() == [20.0, 22.0, 30.0]


def test_a_trial_that_broke_a_limit_says_so(tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    book = open_book(
        tmp_path,
        spec_of(constraints=["drop <= 25"]),
        on_event=lambda kind, number, report: events.append((kind, report)),
    )
    measure(book, 30.0, 4.0)
    assert events[-1][0] == "finished"
    assert events[-1][1]["broken"] == ["drop <= 25"]


def test_a_single_objective_may_be_a_cost(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(objective="forgetting"))
    assert book.study.direction.name == "MINIMIZE"
    for value in (4.0, 2.0):
        chosen = book.next_trial()
        assert chosen is not None
        book.report(chosen[0], {"kind": "done", "value": value})
        book.close(chosen[0])
    assert book.best() == Best((1,), "2.00 (trial 1)")


@pytest.mark.parametrize("sampler", sorted({*SAMPLERS} - {*EXHAUSTIVE, *ONE_OBJECTIVE}))
def test_every_sampler_goes_on_with_several_objectives_and_limits(
    tmp_path: Path, sampler: str
) -> None:
    spec = spec_of(trials=40, sampler=sampler, constraints=["drop <= 30"], **TWO)

    def some(book: TrialBook, count: int) -> list[dict[str, Any]]:
        for _ in range(count):
            number = len(book.study.get_trials())
            measure(book, 20.0 + 7 * number % 23, 5.0 * number % 7)
        return [trial.params for trial in book.study.get_trials()]

    half = 3 if sampler == "gp" else 9  # it takes its time once it has seen five
    whole = some(open_book(tmp_path / "a", spec), 2 * half)
    some(open_book(tmp_path / "b", spec), half)
    assert some(open_book(tmp_path / "b", spec), half) == whole


def test_nsga_breeds_after_its_first_generation(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(trials=40, sampler="nsga2", first={}, **TWO))
    for number in range(20):
        measure(book, 20.0 + number, float(number))
    trials = book.study.get_trials()
    generations = [t.system_attrs.get("NSGAIISampler:generation") for t in trials]
    assert generations == [0] * 16 + [1] * 4
    parents = {trial.params["ucd.weight"] for trial in trials[:16]}
    assert {trial.params["ucd.weight"] for trial in trials[16:]} & parents


# Pruning on a scalar.

SCALAR: dict[str, Any] = {
    **{"objectives": ["miou_old", "forgetting"], "prune_on": "miou_all"},
    **{"pruner": "median:startup=2,warmup=0", "trials": 9},
}


def curves(book: TrialBook) -> list[FrozenTrial]:
    name = curves_study("study", book.goals)
    storage = book.database.optuna_storage()
    trials: list[FrozenTrial] = optuna.load_study(study_name=name, storage=storage).get_trials()
    return trials


def test_a_weak_trial_is_pruned_on_the_declared_scalar(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(**SCALAR))
    measure(book, 30.0, 1.0, curve=(10.0, 20.0))
    measure(book, 30.0, 1.0, curve=(12.0, 22.0))
    weak = measure(book, 99.0, 0.0, curve=(5.0, 9.0))
    assert trial_of(book, weak).state == TrialState.PRUNED
    assert trial_of(book, weak).values is None
    assert trial_of(book, weak).user_attrs["reason"] == (
        "weaker than the median of earlier trials at epoch 1"
    )
    assert [row.state.name for row in curves(book)] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert curves(book)[1].intermediate_values == {1: 12.0, 2: 22.0}
    assert trial_of(book, 1).intermediate_values == {}
    good = measure(book, 31.0, 1.0, curve=(13.0, 23.0))
    assert trial_of(book, good).state == TrialState.COMPLETE


def test_less_is_better_where_a_cost_is_the_scalar(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(**{**SCALAR, "prune_on": "drop"}))
    for value in (1.0, 2.0):
        measure(book, 30.0, 1.0, curve=(value,))
    assert trial_of(book, measure(book, 30.0, 1.0, curve=(9.0,))).state == TrialState.PRUNED
    assert trial_of(book, measure(book, 30.0, 1.0, curve=(0.5,))).state == TrialState.COMPLETE


def test_the_forgetting_pruner_needs_no_scalar(tmp_path: Path) -> None:
    values = {**TWO, "pruner": "forgetting:limit=0.5,warmup=0"}
    book = open_book(tmp_path, spec_of(**values))
    number = measure(book, 30.0, 1.0, curve=(10.0,))
    assert trial_of(book, number).user_attrs["code"] == "FORGETTING"


def test_an_adopted_trial_goes_on_with_its_curve(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(**SCALAR))
    chosen = book.next_trial()
    assert chosen is not None
    book.report(chosen[0], epoch(1, 10.0))
    again = open_book(tmp_path, spec_of(**SCALAR))
    assert again.next_trial() == chosen
    again.report(chosen[0], epoch(1, 99.0))  # repeated after its checkpoint: the first counts
    again.report(chosen[0], epoch(2, 20.0))
    assert [row.intermediate_values for row in curves(again)] == [{1: 10.0, 2: 20.0}]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.tune import test_objectives as t
from ucd_ray.tune.objectives import Curves
book = t.open_book(Path(sys.argv[1]), t.spec_of(**t.SCALAR))
t.measure(book, 30.0, 1.0, curve=(10.0, 20.0))
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "before":  # the trial is told
    book.seen.tell = die
else:  # its curve is
    Curves.end = die
t.measure(book, 30.0, 1.0, curve=(11.0, 21.0))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_curves_and_trials_agree_after_a_kill(tmp_path: Path, when: str) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), when]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    died = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    book = open_book(tmp_path, spec_of(**SCALAR))
    if when == "before":
        assert book.adopted == [1]
        assert measure(book, 31.0, 1.0, curve=(11.0, 21.0)) == 1
    else:
        assert book.adopted == []
    assert [trial.state.name for trial in book.study.get_trials()] == ["COMPLETE"] * 2
    assert [row.state.name for row in curves(book)] == ["COMPLETE"] * 2
    assert curves(book)[1].intermediate_values == {1: 11.0, 2: 21.0}
    assert trial_of(book, measure(book, 9.0, 9.0, curve=(5.0,))).state == TrialState.PRUNED


def test_what_has_no_number_fails_its_trial(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(**TWO))
    number = measure(book, 30.0, float("nan"))
    assert trial_of(book, number).state == TrialState.FAIL
    assert (
        trial_of(book, number).user_attrs["reason"] == "forgetting has no class with truth pixels"
    )


def test_a_study_after_one_number_has_no_study_beside_it(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    assert optuna.get_all_study_names(book.database.optuna_storage()) == ["study"]
    assert Database(f"sqlite:///{tmp_path}/studies.db").spec("study") is not None
