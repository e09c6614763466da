"""Trials that are measured several times: which runs are handed out, what is told, what survives a kill."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from tests.conftest import MakeJob
from tests.tune.test_bridge import PUBLISHED, Floor, epoch, open_book, spec_of, tell, trial_of
from tests.tune.test_database import rows, step_report
from tests.tune.test_revisions import reopened
from ucd_ray.class_orders import in_order
from ucd_ray.tune import commands
from ucd_ray.tune.bridge import BookScheduler, BookSearcher
from ucd_ray.tune.editing import Editor
from ucd_ray.tune.edits import Edit
from ucd_ray.tune.keys import Run, study_of_replicate
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.replicate_book import ReplicateBook
from ucd_ray.tune.retention import ENTRIES
from ucd_ray.tune.revisions import REVISION
from ucd_ray.tune.tables import metric_table


def open_runs(folder: Path, *, stopped: list[str] | None = None, **values: Any) -> ReplicateBook:
    """The runs of a study; `stopped` gets the keys of those that shall stop."""
    spec = spec_of(**{"seeds": 3, "pruner": "none", "trials": 20, **values})
    told = stopped if stopped is not None else []
    return ReplicateBook(open_book(folder, spec), told.append)


def take(book: ReplicateBook) -> Run:
    """The next run that is handed out."""
    chosen = book.next_trial()
    assert chosen is not None
    return chosen[0]


def finish(book: ReplicateBook, run: Run, value: float) -> None:
    book.report(run, {"kind": "done", "value": value})
    book.close(run)


def measure(book: ReplicateBook, *values: float) -> int:
    """One trial, its runs one after the other, as long as it goes on.  Returns its number."""
    runs = [take(book)]
    for value in values:
        finish(book, runs[-1], value)
        if runs[-1].number not in book.open:
            break
        runs.append(take(book))
    assert len({run.number for run in runs}) == 1
    return runs[0].number


def whole(book: ReplicateBook, number: int) -> FrozenTrial:
    return trial_of(book.trials, number)


def runs_of(book: ReplicateBook, number: int) -> dict[int, FrozenTrial]:
    return {k: row for b in book.books if (row := b.row(number)) is not None for k in [b.replicate]}


# What is edited.


def test_runs_go_on_after_an_edit_of_choices_and_ranges(tmp_path: Path) -> None:
    book = open_runs(tmp_path, seeds=2, racing=None)
    measure(book, 50.0, 52.0)
    open_run = take(book)
    wanted = Edit(
        add=(("ucd.max_old", 512),),
        search={"kd.weight": Parameter(low=5, high=200, log=True)},
        settings={"trials": 30},
    )
    number = commands.give(
        book.trials.database, "study", commands.EDIT, edit=wanted.model_dump(mode="json")
    )
    (command,) = commands.pending(book.trials.database, "study")
    told = Editor(book.trials, lambda text: None).handlers()[command.kind](command)
    commands.finish(book.trials.database, number, told)
    assert told.startswith("revision 1: kd.weight")
    finish(book, open_run, 40.0)
    finish(book, take(book), 41.0)
    book.trials.study.enqueue_trial({"ucd.max_old": 512})
    edited = measure(book, 60.0, 62.0)
    assert whole(book, edited).params["ucd.max_old"] == 512
    assert {run.params["ucd.max_old"] for run in runs_of(book, edited).values()} == {512}
    assert whole(book, edited).user_attrs[REVISION] == 1
    assert REVISION not in whole(book, 1).user_attrs
    assert whole(book, edited).values == [61.0]
    again = ReplicateBook(reopened(book.trials.database))
    run = take(again)
    assert run == Run(edited + 1, 0)
    assert again.recipe_of(run).seed == 42


# What is handed out.


def test_a_run_has_the_params_of_its_trial_and_the_seed_and_order_of_its_replicate(
    tmp_path: Path,
) -> None:
    book = open_runs(tmp_path, seeds=2, class_orders=2)
    chosen = [book.next_trial() for _ in range(4)]
    assert [c[0] for c in chosen if c] == [Run(0, k) for k in range(4)]
    recipes = [book.recipe_of(Run(0, k)) for k in range(4)]
    assert {r.flat()["kd.weight"] for r in recipes} == {PUBLISHED["kd.weight"]}
    assert [r.seed for r in recipes] == [42, 42, 43, 43]
    assert recipes[0].scenario == recipes[2].scenario == book.trials.spec.base_recipe().scenario
    assert recipes[1].scenario == recipes[3].scenario == in_order(recipes[0].scenario, 1)


def test_before_there_is_a_best_trial_all_replicates_of_one_are_run_at_once(tmp_path: Path) -> None:
    book = open_runs(tmp_path)
    assert [take(book) for _ in range(4)] == [Run(0, 0), Run(0, 1), Run(0, 2), Run(1, 0)]


def test_what_racing_may_spare_waits_for_the_runs_before_it(tmp_path: Path) -> None:
    book = open_runs(tmp_path, seeds=4)
    measure(book, 50.0, 50.0, 50.0, 50.0)
    assert [take(book) for _ in range(3)] == [Run(1, 0), Run(1, 1), Run(2, 0)]
    finish(book, Run(1, 0), 60.0)
    assert take(book) == Run(2, 1), "1-r1 may still show that trial 1 is hopeless"
    finish(book, Run(1, 1), 60.0)
    assert [take(book), take(book)] == [Run(1, 2), Run(3, 0)]


def test_without_racing_a_trial_is_finished_before_the_next_begins(tmp_path: Path) -> None:
    book = open_runs(tmp_path, racing=None)
    measure(book, 50.0, 50.0, 50.0)
    assert [take(book) for _ in range(4)] == [Run(1, 0), Run(1, 1), Run(1, 2), Run(2, 0)]


def test_no_gang_idles_once_no_new_trial_can_begin(tmp_path: Path) -> None:
    book = open_runs(tmp_path, trials=2, seeds=4)
    measure(book, 50.0, 50.0, 50.0, 50.0)
    assert [take(book) for _ in range(4)] == [Run(1, k) for k in range(4)]
    assert book.is_full()
    assert book.next_trial() is None


def test_the_study_is_not_full_as_long_as_a_trial_has_replicates_left(tmp_path: Path) -> None:
    book = open_runs(tmp_path, trials=1)
    take(book)
    assert not book.is_full()
    take(book), take(book)
    assert book.is_full()


# What is told.


def test_the_value_of_a_trial_is_the_mean_of_its_replicates(tmp_path: Path) -> None:
    book = open_runs(tmp_path)
    number = measure(book, 40.0, 44.0, 51.0)
    trial = whole(book, number)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 45.0)
    assert trial.intermediate_values == {0: 40.0, 1: 44.0, 2: 51.0}
    assert {k: row.value for k, row in runs_of(book, 0).items()} == {0: 40.0, 1: 44.0, 2: 51.0}
    assert all(row.params == trial.params for row in runs_of(book, 0).values())


def test_steps_are_kept_for_every_replicate_and_entries_with_the_trial(tmp_path: Path) -> None:
    book = open_runs(tmp_path)
    for k in range(2):
        run = take(book)
        report = {**step_report(value=10.0 * k), "entries": [f"{k:032x}"]}
        book.report(run, report)
    values = {
        (r["number"], r["replicate"]): r["value"]
        for r in rows(book.trials.database, metric_table)
        if (r["images"], r["metric"]) == ("val", "miou_all")
    }
    assert values == {(0, 0): 0.0, (0, 1): 10.0}
    assert whole(book, 0).user_attrs[ENTRIES] == [f"{k:032x}" for k in range(2)]


def test_events_are_the_trials_with_the_replicate_they_come_from(tmp_path: Path) -> None:
    events: list[tuple[str, int, int | None]] = []
    spec = spec_of(seeds=2, trials=1)
    trials = open_book(tmp_path, spec)
    trials.on_event = lambda kind, number, report: events.append(
        (kind, number, report.get("replicate"))
    )
    book = ReplicateBook(trials)
    for k in range(2):
        run = take(book)
        book.say_waiting(run, "needs 2 GPUs")
        book.report(run, {"kind": "start", "first_step": 1})
        finish(book, run, 10.0 + k)
    runs = [[(kind, 0, k) for kind in ("run", "waiting", "waiting", "start")] for k in range(2)]
    ends = [[("done", 0, k), ("measured", 0, k)] for k in range(2)]
    told = [*runs[0], *ends[0], *runs[1], *ends[1]]
    assert events == [("started", 0, None), *told, ("finished", 0, None)]


def test_a_trial_waits_as_long_as_none_of_its_runs_is_at_work(tmp_path: Path) -> None:
    book = open_runs(tmp_path)
    one, other = take(book), take(book)
    book.say_waiting(one, "needs 2 GPUs")
    assert not whole(book, 0).user_attrs.get("waiting")
    book.say_waiting(other, "needs a node")
    assert whole(book, 0).user_attrs["waiting"] == "needs 2 GPUs"
    book.say_waiting(one, None)
    assert whole(book, 0).user_attrs["waiting"] is None


# Racing and pruning.


def test_a_trial_that_is_weaker_in_every_replicate_is_dropped_before_the_last(
    tmp_path: Path,
) -> None:
    book = open_runs(tmp_path)
    best = measure(book, 50.0, 60.0, 40.0)
    number = measure(book, 49.0, 58.0, 99.0)
    trial = whole(book, number)
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {0: 49.0, 1: 58.0}
    assert trial.user_attrs["code"] == "RACING"
    assert trial.user_attrs["reason"] == f"weaker than trial {best} over 2 of 3 replicates (racing)"
    assert sorted(runs_of(book, number)) == [0, 1]
    assert all(row.state == TrialState.COMPLETE for row in runs_of(book, number).values())


def test_a_trial_that_wins_one_replicate_clearly_goes_on(tmp_path: Path) -> None:
    book = open_runs(tmp_path)
    measure(book, 50.0, 60.0, 40.0)
    number = measure(book, 49.0, 68.0, 41.0)
    assert whole(book, number).state == TrialState.COMPLETE


def test_racing_pairs_by_replicate_not_by_rank(tmp_path: Path) -> None:
    """Seeds differ far more than trials do: only the pairs show that the second one is weaker."""
    easy_and_hard = (80.0, 20.0, 50.0, 65.0)
    book = open_runs(tmp_path, seeds=4, racing=0.2)
    measure(book, *easy_and_hard)
    number = measure(book, *(value - 1 for value in easy_and_hard))
    trial = whole(book, number)
    assert (trial.state, len(trial.intermediate_values)) == (TrialState.PRUNED, 3)


def test_the_runs_beside_the_one_that_decided_are_stopped_and_then_the_trial_ends(
    tmp_path: Path,
) -> None:
    stopped: list[str] = []
    book = open_runs(tmp_path, stopped=stopped, trials=2)
    measure(book, 50.0, 60.0, 40.0)
    runs = [take(book) for _ in range(3)]
    finish(book, runs[0], 1.0)
    finish(book, runs[1], 1.0)
    assert stopped == ["1-r2"]
    assert whole(book, 1).state == TrialState.RUNNING, "its last run has not stopped yet"
    assert book.has_ended(runs[2])
    assert book.report(runs[2], epoch(1, 30.0)), "its next report is answered with stop"
    book.report(runs[2], {"kind": "stopped"})
    book.close(runs[2])
    assert whole(book, 1).state == TrialState.PRUNED
    last = runs_of(book, 1)[2]
    assert last.state == TrialState.PRUNED
    assert last.user_attrs["reason"].startswith("its trial had ended: weaker than trial 0")


def test_a_run_is_pruned_beside_runs_of_the_same_replicate_alone(tmp_path: Path) -> None:
    """Replicate 1 is a hard seed: 30 is normal there and weak in replicate 0."""
    book = open_runs(tmp_path, seeds=2, pruner="median:startup=3,warmup=0")
    for _ in range(3):
        for run, value in ((take(book), 60.0), (take(book), 30.0)):
            assert not book.report(run, epoch(1, value))
            finish(book, run, value)
    easy, hard = take(book), take(book)
    assert not book.report(hard, epoch(1, 31.0))
    assert book.report(easy, epoch(1, 31.0))
    book.close(easy)
    assert book.report(hard, epoch(2, 31.0)), "its trial has ended"
    book.close(hard)
    trial = whole(book, 3)
    assert (trial.state, trial.user_attrs["code"]) == (TrialState.PRUNED, "PRUNER")
    assert trial.user_attrs["reason"] == (
        "replicate 0: weaker than the median of earlier trials at epoch 1"
    )


def test_a_run_that_fails_fails_its_trial_with_its_reason(tmp_path: Path) -> None:
    book = open_runs(tmp_path)
    first, second = take(book), take(book)
    finish(book, first, 40.0)
    failed = {"kind": "failed", "code": "ERROR", "reason": "KeyError: 'x'", "traceback": "line 1"}
    book.report(second, failed)
    book.close(second)
    trial = whole(book, 0)
    assert (trial.state, trial.user_attrs["code"]) == (TrialState.FAIL, "ERROR")
    assert trial.user_attrs["reason"] == "replicate 1: KeyError: 'x'"
    assert trial.user_attrs["traceback"] == "line 1"
    assert trial.intermediate_values == {0: 40.0}
    assert take(book) == Run(1, 0)


# After a crash.


def value_of(run: Run) -> float:
    """Trial 1 is hopeless, and so is trial 2, whose second run fails."""
    return {0: 50.0, 1: 20.0, 2: 10.0}[run.number] + run.replicate


def drive(book: ReplicateBook) -> list[Run]:
    """Drives a study of three trials to its end.  Returns the runs that were finished."""
    finished: list[Run] = []
    while (chosen := book.next_trial()) is not None:
        run = chosen[0]
        book.report(run, step_report(value=value_of(run)))
        if run == Run(2, 1):
            book.report(run, {"kind": "failed", "code": "NAN", "reason": "kd became nan"})
        else:
            book.report(run, {"kind": "done", "value": value_of(run)})
        finished.append(run)
        book.close(run)
    return finished


def known(book: ReplicateBook) -> list[Any]:
    """What a study knows about its trials and runs, without times."""
    found: list[Any] = []
    for trial in book.trials.study.get_trials(deepcopy=False):
        runs = {k: (row.state, row.values) for k, row in runs_of(book, trial.number).items()}
        told = {k: trial.user_attrs.get(k) for k in ("code", "reason")}
        found.append((trial.state, trial.values, trial.intermediate_values, told, runs))
    return found


def test_a_driver_may_be_killed_after_any_write(tmp_path: Path) -> None:
    """The database after every write is what a driver leaves that is killed then."""
    book = open_runs(tmp_path, trials=3)
    database, folders = book.trials.database, list[Path]()
    write = database.write

    def copied(work: Any) -> Any:
        result = write(work)
        folders.append(tmp_path / str(len(folders)))
        folders[-1].mkdir()
        with (
            sqlite3.connect(tmp_path / "studies.db") as from_,
            sqlite3.connect(folders[-1] / "studies.db") as to,
        ):
            from_.backup(to)
        return result

    database.write = copied  # type: ignore[method-assign]
    finished, expected = drive(book), known(book)
    assert [state for state, *_ in expected] == [
        *(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL),
    ]
    assert [str(run) for run in finished] == [
        *("0-r0", "0-r1", "0-r2", "1-r0", "1-r1", "2-r0", "2-r1")
    ]
    assert len(folders) > 50
    for folder in folders[len(folders) // 3 :]:
        again = open_runs(folder, trials=3)
        done = {
            (n, k)
            for n, (*_, runs) in enumerate(known(again))
            for k, run in runs.items()
            if run[0].is_finished()
        }
        assert not done & set(drive(again)), "a finished run is not repeated"
        assert known(again) == expected, folder.name


def test_an_open_run_keeps_its_curve_and_goes_on(tmp_path: Path) -> None:
    book = open_runs(tmp_path)
    finish(book, take(book), 40.0)
    run = take(book)
    book.report(run, epoch(1, 12.0))
    again = open_runs(tmp_path)
    assert take(again) == run == Run(0, 1)
    again.report(run, epoch(1, 99.0))
    again.report(run, epoch(2, 20.0))
    finish(again, run, 20.0)
    assert runs_of(again, 0)[1].intermediate_values == {1: 12.0, 2: 20.0}
    finish(again, take(again), 30.0)
    assert whole(again, 0).value == 30.0


def test_runs_of_a_trial_that_was_cancelled_without_a_driver_end_with_it(tmp_path: Path) -> None:
    book = open_runs(tmp_path)
    take(book)
    study = book.trials.study
    study.tell(optuna.Trial(study, study.get_trials()[0]._trial_id), state=TrialState.FAIL)
    again = open_runs(tmp_path)
    assert runs_of(again, 0)[0].state == TrialState.FAIL
    assert take(again) == Run(1, 0)


def test_a_replicate_has_a_study_that_no_user_can_name(tmp_path: Path) -> None:
    book = open_runs(tmp_path)
    take(book)
    names = optuna.get_all_study_names(book.trials.database.optuna_storage())
    assert sorted(names) == ["study", "study/r0", "study/r1", "study/r2"]
    with pytest.raises(ValueError, match="name"):
        spec_of(name=study_of_replicate("study", 0))


# Commands.


def test_a_cancelled_trial_ends_with_all_its_runs(tmp_path: Path) -> None:
    book = open_runs(tmp_path)
    first, second = take(book), take(book)
    finish(book, first, 40.0)
    book.give_back(second)
    assert whole(book, 0).user_attrs["waiting"].startswith("it stopped at its checkpoint")
    assert book.cancel_unplaced(0)
    assert not book.cancel_unplaced(0)
    trial = whole(book, 0)
    assert (trial.state, trial.user_attrs["code"]) == (TrialState.FAIL, "STOPPED_BY_USER")
    assert trial.user_attrs["reason"] == "stopped by command"
    assert runs_of(book, 0)[1].state == TrialState.FAIL
    assert take(book) == Run(1, 0)


def test_a_study_that_is_stopped_at_once_leaves_nothing_open(tmp_path: Path) -> None:
    book = open_runs(tmp_path)
    measure(book, 40.0, 41.0, 42.0)
    take(book), take(book), take(book)
    again = open_runs(tmp_path)
    take(again)
    again.cancel_open("stopped by command")
    assert not again.open
    states = [t.state for t in again.trials.study.get_trials()]
    assert states == [TrialState.COMPLETE, *[TrialState.FAIL] * (len(states) - 1)]
    for replicates in again.books:
        assert all(t.state.is_finished() for t in replicates.study.get_trials())


@pytest.fixture
def floor(make_job: MakeJob) -> Floor:
    return Floor(make_job(method="mib+ucd"))


Pair = tuple[BookSearcher, BookScheduler]


def pair_of(book: ReplicateBook, floor: Floor) -> Pair:
    searcher = BookSearcher(book, floor)  # type: ignore[arg-type]
    return searcher, BookScheduler(searcher)


def end(pair: Pair, name: str, value: float) -> None:
    tell(pair, name, {"kind": "done", "value": value})
    pair[0].on_trial_complete(name)


def test_tune_gets_the_keys_of_runs_and_their_jobs_the_seeds(tmp_path: Path, floor: Floor) -> None:
    pair = pair_of(open_runs(tmp_path, trials=1, seeds=2, class_orders=2), floor)
    assert [pair[0].suggest(name) for name in "abcd"] == [{"key": f"0-r{k}"} for k in range(4)]
    assert pair[0].suggest("e") is None
    assert [floor.placed[f"0-r{k}"].recipe.seed for k in range(4)] == [42, 42, 43, 43]
    assert [floor.placed[f"0-r{k}"].name[-1] for k in range(4)] == [f"0-r{k}" for k in range(4)]
    orders = [floor.placed[f"0-r{k}"].recipe.scenario.steps for k in range(4)]
    assert orders[0] == orders[2] != orders[1] == orders[3]
    for name, value in zip("abcd", (1.0, 2.0, 3.0, 6.0), strict=True):
        end(pair, name, value)
    assert pair[0].suggest("f") == BookSearcher.FINISHED
    book = pair[0].book
    assert isinstance(book, ReplicateBook)
    assert whole(book, 0).value == 3.0


def test_a_study_that_ends_finishes_the_replicates_of_trials_that_run(
    tmp_path: Path, floor: Floor
) -> None:
    pair = pair_of(open_runs(tmp_path, trials=3), floor)
    floor.room = 1
    assert pair[0].suggest("a") == {"key": "0-r0"}
    floor.mode = "drain"
    assert pair[0].suggest("b") is None, "its gang is at work"
    end(pair, "a", 40.0)
    assert pair[0].suggest("c") == {"key": "0-r1"}
    end(pair, "c", 41.0)
    assert pair[0].suggest("d") == {"key": "0-r2"}
    assert pair[0].suggest("e") == BookSearcher.FINISHED
    end(pair, "d", 42.0)
    book = pair[0].book
    assert isinstance(book, ReplicateBook)
    assert [t.state for t in book.trials.study.get_trials()] == [TrialState.COMPLETE]


def test_a_run_that_waits_is_let_go_when_its_trial_is_dropped(tmp_path: Path, floor: Floor) -> None:
    book = open_runs(tmp_path, trials=2)
    measure(book, 50.0, 60.0, 40.0)
    pair = pair_of(book, floor)
    assert [pair[0].suggest(name) for name in "ab"] == [{"key": "1-r0"}, {"key": "1-r1"}]
    floor.room = 0
    assert pair[0].suggest("c") is None
    end(pair, "a", 1.0)
    end(pair, "b", 1.0)
    assert whole(book, 1).state == TrialState.RUNNING
    assert pair[0].suggest("d") is None
    assert whole(book, 1).state == TrialState.PRUNED
    assert pair[0].suggest("e") == BookSearcher.FINISHED


def test_a_paused_run_is_handed_out_again_before_others(tmp_path: Path, floor: Floor) -> None:
    pair = pair_of(open_runs(tmp_path), floor)
    assert [pair[0].suggest(name) for name in "ab"] == [{"key": "0-r0"}, {"key": "0-r1"}]
    floor.mode, floor.paused = "paused", {"0-r0", "0-r1"}
    for name in "ab":
        pair[0].on_trial_complete(name)
    assert pair[0].suggest("c") is None
    floor.mode = "run"
    assert [pair[0].suggest(name) for name in "de"] == [{"key": "0-r0"}, {"key": "0-r1"}]


def test_a_trial_whose_runs_wait_can_be_cancelled(tmp_path: Path, floor: Floor) -> None:
    pair = pair_of(open_runs(tmp_path), floor)
    pair[0].suggest("a")
    end(pair, "a", 40.0)
    floor.room = 0
    assert pair[0].suggest("b") is None
    assert pair[0].cancel(0)
    book = pair[0].book
    assert isinstance(book, ReplicateBook)
    assert whole(book, 0).user_attrs["code"] == "STOPPED_BY_USER"
    assert not pair[0].cancel(0)
