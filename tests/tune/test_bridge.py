"""The book of trials on a real database; Tune's two classes over it, without Ray."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler

from tests.conftest import TINY, MakeJob
from tests.tune.test_database import step_report
from ucd_ray.errors import StudyError
from ucd_ray.job import Job
from ucd_ray.tune import proposals
from ucd_ray.tune.bridge import (
    BookScheduler,
    BookSearcher,
    TrialBook,
)
from ucd_ray.tune.database import Database
from ucd_ray.tune.executors import MICRO_BATCH, pack, root_cause, told
from ucd_ray.tune.names import EXHAUSTIVE, PRUNERS, SAMPLERS
from ucd_ray.tune.parameter import Parameter
from ucd_ray.tune.proposals import distribution
from ucd_ray.tune.samplers import derived_seed
from ucd_ray.tune.spec import StudySpec

SEARCH: dict[str, Any] = {
    "ucd.weight": {"low": 0.001, "high": 0.1, "log": True},
    "kd.weight": {"low": 1, "high": 200, "log": True},
    "ucd.max_old": {"choices": [256, None]},
}
PUBLISHED = {"ucd.weight": 0.01, "kd.weight": 10.0, "ucd.max_old": None}


def spec_of(**values: Any) -> StudySpec:
    content = {"name": "study", "recipe": TINY, "search": SEARCH, "first": PUBLISHED, "trials": 6}
    return StudySpec.model_validate({**content, **values})


def open_book(folder: Path, spec: StudySpec | None = None, **options: Any) -> TrialBook:
    spec = spec or spec_of()
    database = Database(f"sqlite:///{folder}/studies.db")
    database.save_spec(spec.name, spec.model_dump_json(), {"steps": 2})
    return TrialBook(spec, database, **options)


def epoch(rung: int, value: float | None) -> dict[str, Any]:
    return {"kind": "epoch", "rung": rung, "value": value}


def run_trial(book: TrialBook, *values: float) -> int:
    """One trial that reports `values`, an epoch each, and ends with the last."""
    chosen = book.next_trial()
    assert chosen is not None
    number, _ = chosen
    for rung, value in enumerate(values, start=1):
        if book.report(number, epoch(rung, value)):
            book.close(number)
            return number
    book.report(number, {"kind": "done", "value": values[-1]})
    book.close(number)
    return number


def trial_of(book: TrialBook, number: int) -> optuna.trial.FrozenTrial:
    return book.study.get_trials()[number]


# Which trials are tried.


def test_the_first_trial_has_the_published_values(tmp_path: Path) -> None:
    assert open_book(tmp_path).next_trial() == (0, PUBLISHED)


def test_trials_stay_within_their_ranges_and_are_counted(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    params = [p for _ in range(6) if (chosen := book.next_trial()) and (p := chosen[1])]
    assert book.next_trial() is None
    assert sorted(book.open) == [0, 1, 2, 3, 4, 5]
    for key, parameter in spec_of().search.items():
        assert all(parameter.holds(p[key]) for p in params)
    assert len({p["ucd.weight"] for p in params}) == 6


def test_finished_and_open_trials_count_against_the_budget(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(trials=2))
    run_trial(book, 10.0)
    assert book.next_trial() is not None
    assert book.next_trial() is None
    more = open_book(tmp_path, spec_of(trials=3))
    assert more.finished() == 1


def test_a_study_without_search_runs_the_recipe_as_it_is(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(search={}, first={}))
    assert book.next_trial() == (0, {})


def history(book: TrialBook, trials: int) -> list[dict[str, Any]]:
    """Params of `trials` trials whose value follows from their params."""
    found = []
    for _ in range(trials):
        chosen = book.next_trial()
        assert chosen is not None
        number, params = chosen
        value = 50 - abs(math.log10(params["ucd.weight"]) + 1.5) * 10
        book.report(number, {"kind": "done", "value": value})
        book.close(number)
        found.append(params)
    return found


# Four values of each key, so that every sampler can be asked, and twelve points in all.
COUNTED: dict[str, Any] = {
    "ucd.weight": {"low": 0.01, "high": 0.04, "step": 0.01},
    "ucd.max_old": {"choices": [256, 512, None]},
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_depend_on_study_seed_and_history_alone(tmp_path: Path, sampler: str) -> None:
    search = COUNTED if sampler in EXHAUSTIVE else SEARCH
    first = {key: PUBLISHED[key] for key in search}
    spec = spec_of(trials=12, sampler=sampler, seed=3, search=search, first=first)
    folders = [tmp_path / name for name in ("one", "other", "third")]
    one = history(open_book(folders[0], spec), 8)
    reopened = history(open_book(folders[1], spec), 4)
    reopened += history(open_book(folders[1], spec), 4)  # by another driver
    assert one == reopened
    other = history(open_book(folders[2], spec.model_copy(update={"seed": 4})), 6)
    assert one[0] == other[0] == first
    assert one[1:6] != other[1:]
    assert len({str(params) for params in one}) > 4


@pytest.mark.parametrize("sampler", EXHAUSTIVE)
def test_an_exhaustive_sampler_tries_every_point_once_and_ends(
    tmp_path: Path, sampler: str
) -> None:
    spec = spec_of(trials=100, sampler=sampler, search=COUNTED, first={})
    found = history(open_book(tmp_path, spec), 7)
    book = open_book(tmp_path, spec)
    found += history(book, 5)
    assert book.next_trial() is None
    assert len({(p["ucd.weight"], p["ucd.max_old"]) for p in found}) == 12 == book.wanted


def test_proposals_depend_on_what_was_measured(tmp_path: Path) -> None:
    spec = spec_of(trials=20)
    high, low = open_book(tmp_path / "a", spec), open_book(tmp_path / "b", spec)
    for book, sign in ((high, 1), (low, -1)):
        for _ in range(8):
            chosen = book.next_trial()
            assert chosen is not None
            value = sign * chosen[1]["ucd.weight"]
            book.report(chosen[0], {"kind": "done", "value": value})
            book.close(chosen[0])
    assert high.next_trial() != low.next_trial()


def test_no_two_trials_share_a_random_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, numbers = proposals.make_sampler, []

    def record(*args: Any, number: int, **options: Any) -> optuna.samplers.BaseSampler:
        numbers.append(number)
        return true(*args, number=number, **options)

    monkeypatch.setattr(proposals, "make_sampler", record)
    book = open_book(tmp_path, spec_of(first={"ucd.weight": 0.01}))
    asked = [chosen[0] for _ in range(4) if (chosen := book.next_trial())]
    assert numbers == asked == [0, 1, 2, 3]


def test_seeds_of_trials_and_studies_differ() -> None:
    assert len({derived_seed(seed, number) for seed in range(9) for number in range(9)}) == 81
    assert 0 <= derived_seed(0, 0) < 2**32


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ({"low": 1, "high": 2}, optuna.distributions.FloatDistribution(1, 2)),
        (
            {"low": 1, "high": 2, "log": True},
            optuna.distributions.FloatDistribution(1, 2, log=True),
        ),
        (
            {"low": 1, "high": 2, "step": 0.5},
            optuna.distributions.FloatDistribution(1, 2, step=0.5),
        ),
        ({"low": 1, "high": 9, "type": "int"}, optuna.distributions.IntDistribution(1, 9)),
        (
            {"low": 1, "high": 9, "type": "int", "step": 2},
            optuna.distributions.IntDistribution(1, 9, step=2),
        ),
        (
            {"low": 1, "high": 9, "type": "int", "log": True},
            optuna.distributions.IntDistribution(1, 9, log=True),
        ),
        (
            {"choices": [1, None, "x"]},
            optuna.distributions.CategoricalDistribution((1, None, "x")),
        ),
    ],
)
def test_a_parameter_becomes_optunas_distribution(parameter: dict[str, Any], expected: Any) -> None:
    assert distribution(Parameter.model_validate(parameter)) == expected


# How trials end.


def test_a_complete_trial_has_its_value_its_curve_and_its_seconds(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    run_trial(book, 10.0, 20.0, 30.0)
    trial = trial_of(book, 0)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 30.0)
    assert trial.intermediate_values == {1: 10.0, 2: 20.0, 3: 30.0}
    assert trial.user_attrs["seconds"] >= 0
    assert "reason" not in trial.user_attrs


def test_a_weak_trial_is_told_as_pruned_with_all_its_values_and_why(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    for _ in range(3):
        run_trial(book, 40.0, 50.0, 60.0)
    number = run_trial(book, 41.0, 10.0, 60.0)
    trial = trial_of(book, number)
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: 41.0, 2: 10.0}
    assert trial.user_attrs["code"] == "PRUNER"
    assert trial.user_attrs["reason"].endswith("epoch 2")
    assert book.finished() == 4


def test_without_a_pruner_no_trial_is_stopped(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(pruner="none"))
    for value in (40.0, 50.0, 60.0, 1.0):
        run_trial(book, value, value)
    assert {t.state for t in book.study.get_trials()} == {TrialState.COMPLETE}


GOOD, WEAK = (40.0, 50.0, 60.0, 65.0, 70.0, 75.0), (39.0, 5.0, 5.0, 5.0, 5.0, 5.0)


@pytest.mark.parametrize("pruner", [name for name in PRUNERS if name not in ("none", "forgetting")])
def test_every_pruner_stops_a_weak_trial_and_says_why(tmp_path: Path, pruner: str) -> None:
    options = {"percentile": ":percentile=50", "hyperband": ":last=6"}.get(pruner, "")
    book = open_book(tmp_path, spec_of(pruner=pruner + options, trials=20))
    for _ in range(6):
        run_trial(book, *GOOD)
    weak = [trial_of(book, run_trial(book, *WEAK)) for _ in range(6)]
    stopped = [trial for trial in weak if trial.state == TrialState.PRUNED]
    assert stopped
    assert all(trial.user_attrs["code"] == "PRUNER" for trial in stopped)
    assert all("epoch" in trial.user_attrs["reason"] for trial in stopped)
    assert all(len(trial.intermediate_values) < len(WEAK) for trial in stopped)


def forgetful(book: TrialBook, *drops: float) -> Any:
    """One trial of constant value that loses `drops` of its old classes."""
    chosen = book.next_trial()
    assert chosen is not None
    number = chosen[0]
    for rung, drop in enumerate(drops, start=1):
        if book.report(number, {**epoch(rung, 50.0), "drop": drop}):
            break
    else:
        book.report(number, {"kind": "done", "value": 50.0})
    book.close(number)
    return trial_of(book, number)


def test_the_forgetting_pruner_stops_above_its_limit(tmp_path: Path) -> None:
    book = open_book(tmp_path, spec_of(pruner="forgetting:limit=15,warmup=1"))
    assert forgetful(book, 40.0, 14.0, 14.9).state == TrialState.COMPLETE  # rung 1 is warm-up
    trial = forgetful(book, 2.0, 15.1, 1.0)
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: 50.0, 2: 50.0}
    assert (trial.user_attrs["code"], trial.user_attrs["drops"]) == (
        "FORGETTING",
        {"1": 2.0, "2": 15.1},
    )
    assert trial.user_attrs["reason"] == "forgot too much of the base step at epoch 2"


def test_the_forgetting_pruner_stops_what_forgets_more_than_the_median(tmp_path: Path) -> None:
    spec = spec_of(pruner="forgetting:limit=100,startup=3", trials=20)
    book = open_book(tmp_path, spec)
    for drop in (4.0, 6.0, 8.0):
        assert forgetful(book, drop, drop).state == TrialState.COMPLETE
    assert forgetful(book, 7.0, 5.9).state == TrialState.COMPLETE
    assert forgetful(book, 1.0, 6.5).state == TrialState.PRUNED
    reopened = open_book(tmp_path, spec)
    assert forgetful(reopened, 1.0, 6.5).state == TrialState.PRUNED


@pytest.mark.parametrize("value", [math.nan, None])
def test_a_trial_without_a_value_fails_with_the_objective_named(
    tmp_path: Path, value: float | None
) -> None:
    book = open_book(tmp_path)
    book.next_trial()
    assert book.report(0, epoch(1, value)) is False
    if value is not None:
        book.report(0, {"kind": "done", "value": value})
    book.close(0)
    trial = trial_of(book, 0)
    assert trial.state == TrialState.FAIL
    assert trial.intermediate_values == {}
    assert trial.user_attrs["code"] == "NO_VALUE"
    assert "miou_all has no class with truth pixels" in trial.user_attrs["reason"]


def test_a_diverged_trial_fails_with_its_reason(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    book.next_trial()
    reason = "loss term 'kd' became nan at step 1, iteration 7"
    book.report(0, {"kind": "failed", "code": "NAN", "reason": reason})
    book.close(0)
    trial = trial_of(book, 0)
    assert trial.state == TrialState.FAIL
    assert (trial.user_attrs["code"], trial.user_attrs["reason"]) == ("NAN", reason)


def test_a_trial_that_ended_with_an_error_fails_even_if_it_had_a_value(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    book.next_trial()
    book.report(0, {"kind": "done", "value": 50.0})
    book.close(0, lost=True)
    trial = trial_of(book, 0)
    assert (trial.state, trial.user_attrs["code"]) == (TrialState.FAIL, "LOST_DRIVER")
    assert trial.user_attrs["reason"] == "the process that drove the trial ended"


def test_steps_are_stored_and_events_are_told(tmp_path: Path) -> None:
    events: list[tuple[str, int]] = []
    book = open_book(tmp_path, on_event=lambda kind, number, _: events.append((kind, number)))
    book.next_trial()
    book.report(0, {"kind": "start", "first_step": 1})
    book.report(0, step_report(step=1))
    book.report(0, {"kind": "done", "value": 5.0})
    book.close(0)
    assert events == [(kind, 0) for kind in ("started", "start", "step", "done", "finished")]
    assert trial_of(book, 0).user_attrs["last_step"] == 1


def test_the_micro_batch_of_a_trials_last_start_is_kept(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    book.next_trial()
    for micro in (4, None, 2):  # out of memory once, lost its driver, out of memory twice
        book.report(0, {"kind": "start", "first_step": 1, "micro_batch_new": micro})
        assert trial_of(book, 0).user_attrs[MICRO_BATCH] == micro


# After a crash.


def test_a_trial_left_running_is_handed_out_again_first_with_its_number(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    run_trial(book, 30.0)
    left = [book.next_trial(), book.next_trial()]
    assert left[0] is not None
    book.report(left[0][0], epoch(1, 12.0))

    again = open_book(tmp_path)  # another driver; the first one is dead
    assert again.adopted == [1, 2]
    assert [again.next_trial(), again.next_trial()] == left
    assert trial_of(again, 1).state == TrialState.RUNNING
    fresh = again.next_trial()
    assert fresh is not None
    assert fresh[0] == 3


def test_an_adopted_trial_keeps_its_curve_and_ignores_repeated_epochs(tmp_path: Path) -> None:
    book = open_book(tmp_path)
    book.next_trial()
    book.report(0, epoch(1, 12.0))
    again = open_book(tmp_path)
    again.next_trial()
    again.report(0, epoch(1, 99.0))
    again.report(0, epoch(2, 20.0))
    again.report(0, {"kind": "done", "value": 20.0})
    again.close(0)
    trial = trial_of(again, 0)
    assert trial.intermediate_values == {1: 12.0, 2: 20.0}
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 20.0)


def test_the_published_trial_is_enqueued_once(tmp_path: Path) -> None:
    open_book(tmp_path)
    book = open_book(tmp_path)
    assert book.next_trial() == (0, PUBLISHED)
    chosen = book.next_trial()
    assert chosen is not None
    assert chosen[1] != PUBLISHED


# Tune's two classes.


class Floor:
    """A dispatcher that has room for `room` trials, or none and a reason."""

    def __init__(self, job: Job, room: int = 9) -> None:
        self.job, self.room, self.oom_retries = job, room, 0
        self.mode, self.placed = "run", dict[str, Any]()
        self.cancelled, self.paused = set[str](), set[str]()
        self.answers: list[tuple[str, int, bool]] = []

    @property
    def ends(self) -> bool:
        return self.mode == "drain"

    def tick(self) -> None:
        pass

    def fatal_errors(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def may_ask(self) -> bool:
        return self.mode == "run"

    def has_room(self) -> bool:
        return len(self.placed) < self.room

    def place(self, key: str, jobs: list[Job]) -> str | None:
        if len(self.placed) >= self.room:
            return "needs 2 GPUs, 1 free"
        self.placed[key] = jobs[0]
        return None

    def answer(self, key: str, place: int, *, stop: bool) -> None:
        self.answers.append((key, place, stop))

    def ended(self, key: str) -> bool:
        self.placed.pop(key, None)
        return key in self.paused


Pair = tuple[BookSearcher, BookScheduler]


def tune_trial(name: str) -> Any:
    return SimpleNamespace(trial_id=name)


@pytest.fixture
def floor(make_job: MakeJob) -> Floor:
    return Floor(make_job(method="mib+ucd"))


@pytest.fixture
def pair(tmp_path: Path, floor: Floor) -> Pair:
    book = open_book(tmp_path, spec_of(trials=4))
    searcher = BookSearcher(book, floor)  # type: ignore[arg-type]
    return searcher, BookScheduler(searcher)


def tell(pair: Pair, name: str, report: dict[str, Any], place: int | None = None) -> None:
    place = pair[1].heard.get(name, 0) if place is None else place  # the next, as on a board
    answer = pair[1].on_trial_result(None, tune_trial(name), pack(report, place))
    assert answer == TrialScheduler.CONTINUE, "a trial ends itself: Tune never kills it"


def test_tune_gets_the_keys_of_placed_trials_until_the_study_is_full(
    pair: Pair, floor: Floor
) -> None:
    searcher, _ = pair
    assert [searcher.suggest(name) for name in "abcd"] == [{"key": str(n)} for n in range(4)]
    assert floor.placed["0"].recipe.flat()["kd.weight"] == 10
    assert floor.placed["3"].name[-1] == "3"
    assert searcher.suggest("e") is None, "an edit may raise the number of trials"
    for name in "abcd":
        tell(pair, name, {"kind": "done", "value": 1.0})
        searcher.on_trial_complete(name)
    assert searcher.suggest("f") == BookSearcher.FINISHED


def test_a_trial_without_room_waits_with_its_reason_and_is_not_asked_twice(
    pair: Pair, floor: Floor
) -> None:
    searcher, _ = pair
    floor.room = 1
    assert searcher.suggest("a") == {"key": "0"}
    assert searcher.suggest("b") is None
    assert searcher.suggest("c") is None
    assert len(searcher.book.study.get_trials()) == 2
    assert trial_of(searcher.book, 1).user_attrs["waiting"] == "needs 2 GPUs, 1 free"
    floor.room = 2
    assert searcher.suggest("d") == {"key": "1"}
    assert trial_of(searcher.book, 1).user_attrs["waiting"] is None


def test_params_that_do_not_fit_together_fail_their_trial_alone(
    tmp_path: Path, floor: Floor
) -> None:
    search = {"data.scale_min": {"low": 0.3, "high": 0.9}, "data.scale_max": {"choices": [0.5, 2]}}
    first = {"data.scale_min": 0.8, "data.scale_max": 0.5}
    book = open_book(tmp_path, spec_of(search=search, first=first))
    searcher = BookSearcher(book, floor)  # type: ignore[arg-type]
    assert searcher.suggest("a") is None
    trial = trial_of(searcher.book, 0)
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["code"] == "USER_ERROR"
    assert "scale_min (0.8) is above scale_max (0.5)" in trial.user_attrs["reason"]


def test_params_given_by_hand_that_break_a_constraint_are_never_trained(
    tmp_path: Path, floor: Floor
) -> None:
    book = open_book(tmp_path, spec_of(constraints=["ucd.weight < 0.01 * kd.weight"], first={}))
    book.study.enqueue_trial({"ucd.weight": 0.09, "kd.weight": 2})
    searcher = BookSearcher(book, floor)  # type: ignore[arg-type]
    assert searcher.suggest("a") is None
    trial = trial_of(book, 0)
    assert trial.state == TrialState.FAIL
    assert "break the constraint 'ucd.weight < 0.01 * kd.weight'" in trial.user_attrs["reason"]
    assert not floor.placed
    assert searcher.suggest("a") == {"key": "1"}


def test_a_report_through_tune_reaches_the_trial_it_belongs_to(pair: Pair, floor: Floor) -> None:
    searcher, _ = pair
    searcher.suggest("a")
    searcher.suggest("b")
    tell(pair, "b", epoch(1, 25.0), 4)
    tell(pair, "b", {"kind": "done", "value": 25.0}, 5)
    searcher.on_trial_complete("b")
    trial = trial_of(searcher.book, 1)
    assert (trial.value, trial.intermediate_values) == (25.0, {1: 25.0})
    assert trial_of(searcher.book, 0).state == TrialState.RUNNING
    assert floor.answers == [("1", 4, False), ("1", 5, False)]


def test_what_a_restarted_handle_says_again_is_not_heard_twice(pair: Pair, floor: Floor) -> None:
    searcher, _ = pair
    heard: list[str] = []
    searcher.book.on_event = lambda kind, number, report: heard.append(kind)
    searcher.suggest("a")
    for place in (0, 1, 0, 1, 2):  # its node was lost after the second report
        tell(pair, "a", epoch(place + 1, 25.0 + place), place)
    assert heard.count("epoch") == 3
    assert [place for _, place, _ in floor.answers] == [0, 1, 2]


def test_results_that_are_not_ours_are_let_pass(pair: Pair, floor: Floor) -> None:
    _, scheduler = pair
    assert scheduler.on_trial_result(None, tune_trial("?"), {"x": 1}) == TrialScheduler.CONTINUE
    assert not floor.answers


def test_the_pruners_verdict_is_the_answer_to_the_report(pair: Pair, floor: Floor) -> None:
    searcher, _ = pair
    for name, value in zip("abcd", (50.0, 50.0, 50.0, 1.0), strict=True):
        searcher.suggest(name)
        for rung, reported in ((1, 10.0), (2, value)):
            tell(pair, name, epoch(rung, reported), rung)
        stopped = floor.answers[-1][2]
        tell(pair, name, {"kind": "stopped"} if stopped else {"kind": "done", "value": value})
        searcher.on_trial_complete(name)
    assert [stop for _, place, stop in floor.answers if place < 3] == [False] * 7 + [True]
    states = [t.state for t in searcher.book.study.get_trials()]
    assert states == [TrialState.COMPLETE] * 3 + [TrialState.PRUNED]


def test_a_paused_trial_goes_back_and_is_handed_out_again_with_its_number(
    pair: Pair, floor: Floor
) -> None:
    searcher, _ = pair
    searcher.suggest("a")
    tell(pair, "a", epoch(1, 25.0))
    floor.mode, floor.paused = "paused", {"0"}
    searcher.on_trial_complete("a")
    assert trial_of(searcher.book, 0).state == TrialState.RUNNING
    assert searcher.suggest("b") is None, "nothing starts while the study is paused"
    floor.mode = "run"
    assert searcher.suggest("c") == {"key": "0"}


def test_a_trial_that_waits_can_be_cancelled(pair: Pair, floor: Floor) -> None:
    searcher, _ = pair
    searcher.suggest("a")
    floor.mode, floor.paused = "paused", {"0"}
    searcher.on_trial_complete("a")
    assert searcher.cancel(0)
    assert not searcher.cancel(0)
    floor.mode, floor.room = "run", 0
    assert searcher.suggest("b") is None
    assert searcher.cancel(1)
    codes = [t.user_attrs["code"] for t in searcher.book.study.get_trials()]
    assert codes == ["STOPPED_BY_USER"] * 2


def test_a_queued_trial_can_be_cancelled_and_is_never_handed_out(pair: Pair, floor: Floor) -> None:
    searcher, _ = pair
    searcher.suggest("a")
    searcher.book.study.enqueue_trial({"kd.weight": 20.0})
    assert searcher.cancel(1)
    assert not searcher.cancel(1)
    trial = trial_of(searcher.book, 1)
    assert (trial.state, trial.params) == (TrialState.FAIL, {})
    assert trial.user_attrs["code"] == "STOPPED_BY_USER"
    assert searcher.suggest("b") == {"key": "2"}


def test_trials_that_were_added_meanwhile_are_handed_out(pair: Pair, floor: Floor) -> None:
    searcher, _ = pair
    for name in "abcd":
        searcher.suggest(name)
    assert searcher.suggest("e") is None
    searcher.book.revise(searcher.book.spec.model_copy(update={"trials": 5}))
    assert searcher.suggest("e") == {"key": "4"}


def test_a_pruned_trial_stays_pruned_even_if_a_pause_came_with_the_verdict(
    pair: Pair, floor: Floor
) -> None:
    searcher, _ = pair
    searcher.suggest("a")
    searcher.book.reasons[0] = ("PRUNER", "weaker")
    floor.paused = {"0"}
    searcher.on_trial_complete("a")
    assert trial_of(searcher.book, 0).state == TrialState.PRUNED


def test_a_cancelled_trial_fails_with_its_code(pair: Pair, floor: Floor) -> None:
    searcher, _ = pair
    searcher.suggest("a")
    floor.cancelled = {"0"}
    searcher.on_trial_complete("a")
    trial = trial_of(searcher.book, 0)
    assert (trial.state, trial.user_attrs["code"]) == (TrialState.FAIL, "STOPPED_BY_USER")


def test_a_study_that_ends_gives_its_waiting_trial_back(pair: Pair, floor: Floor) -> None:
    searcher, _ = pair
    floor.room = 0
    assert searcher.suggest("a") is None
    floor.mode = "drain"
    assert searcher.suggest("b") is None
    assert searcher.suggest("c") == BookSearcher.FINISHED
    assert trial_of(searcher.book, 0).state == TrialState.RUNNING, "the next driver adopts it"


def test_storage_that_fails_ends_the_study_and_leaves_the_trial_open(pair: Pair) -> None:
    searcher, _ = pair
    searcher.suggest("a")
    failed = {"kind": "failed", "code": "STORAGE", "reason": "cannot write 'x': No space left"}
    with pytest.raises(StudyError, match="trial 0 cannot go on: cannot write 'x': No space left"):
        tell(pair, "a", failed)
    assert trial_of(searcher.book, 0).state == TrialState.RUNNING, "the next driver adopts it"


def test_a_reported_failure_is_the_reason_even_if_the_driver_dies_after_it(pair: Pair) -> None:
    searcher, _ = pair
    searcher.suggest("a")
    failed = {"kind": "failed", "code": "ERROR", "reason": "MemoryError: no memory"}
    tell(pair, "a", {**failed, "traceback": "line 1"})
    searcher.on_trial_complete("a", error=True)
    trial = trial_of(searcher.book, 0)
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == "MemoryError: no memory"
    assert trial.user_attrs["traceback"] == "line 1"


def test_the_innermost_cause_of_nested_errors_is_told() -> None:
    inner = ValueError("what happened")
    middle = RuntimeError("task failed")
    middle.__cause__ = inner
    outer = RuntimeError("training failed")
    outer.worker_failures = {0: middle}  # type: ignore[attr-defined]
    assert told(root_cause(outer)) == "ValueError: what happened"
    loop = RuntimeError("loop")
    loop.__cause__ = loop
    assert told(root_cause(loop)) == "RuntimeError: loop"
    assert told(root_cause(RuntimeError())) == "RuntimeError: "


def test_tunes_own_copy_of_searcher_and_scheduler_holds_nothing(pair: Pair) -> None:
    for part in pair:
        assert part.__getstate__() == {}


def test_a_report_survives_tune_as_json() -> None:
    report = step_report()
    assert json.loads(pack(report)["report"])["select"]["iou"]["1"] == 50.0


def chosen(pair: Pair, *statuses: str) -> int | None:
    """Which of the trials with these statuses Tune is told to run."""
    trials = [SimpleNamespace(trial_id=str(at), status=s) for at, s in enumerate(statuses)]
    found = pair[1].choose_trial_to_run(SimpleNamespace(get_trials=lambda: trials))
    return None if found is None else trials.index(found)


def test_the_newest_trial_gets_the_process_that_has_become_free(pair: Pair) -> None:
    assert chosen(pair, "PENDING", "RUNNING", "PENDING", "TERMINATED") == 2


def test_a_trial_whose_process_was_lost_is_run_again(pair: Pair) -> None:
    assert chosen(pair, "TERMINATED", "PAUSED") == 1
    assert chosen(pair, "PAUSED", "PENDING") == 1
    assert chosen(pair, "TERMINATED", "RUNNING") is None
