"""When trials get gangs, on a real database; gangs and cluster are stood in for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.tune.test_bridge import open_book, spec_of
from ucd_ray.tune import commands, dispatch
from ucd_ray.tune.admission import Admission
from ucd_ray.tune.board import GO, PAUSE, STOP
from ucd_ray.tune.dispatch import Dispatcher, StudyStopped
from ucd_ray.tune.executors import Gang
from ucd_ray.tune.ledger import Ledger, totals
from ucd_ray.tune.nodes import Node


class Gangs:
    """An executor whose gangs are up at once and take what is put."""

    def __init__(self) -> None:
        self.trials_per_run: int | None = None
        self.gang = Gang(1, 1.0, 0.0)
        self.hosts: dict[str, Any] = {}
        self.state: dict[str, dict[str, Any]] = {}
        self.queue: list[str] = []
        self.answers: list[tuple[str, int, str]] = []
        self.wishes: list[tuple[str, str]] = []
        self.last_failure: str | None = None

    def trouble(self, name: str) -> str | None:
        return self.last_failure

    def add_gang(self, name: str) -> None:
        self.hosts[name] = name
        trial = self.queue.pop(0) if self.queue else None
        self.state[name] = {
            **{"trial": trial, "up": True, "idle_s": 0.0, "up_s": 0.0, "closing": False}
        }

    def put(self, key: str, job: Any, smaller: Any = ()) -> None:
        for gang in self.state.values():
            if gang["trial"] is None and not gang["closing"]:
                gang["trial"] = key
                return
        self.queue.append(key)

    def leave(self, name: str) -> None:
        """A gang has ended by itself: it had its trials, or its workers do not start any more."""
        self.hosts.pop(name)
        self.state.pop(name)

    def done(self, key: str) -> None:
        for gang in self.state.values():
            if gang["trial"] == key:
                gang["trial"] = None

    def retire(self, name: str) -> None:
        self.state[name]["closing"] = True
        if self.state[name]["trial"] is None:
            self.hosts.pop(name)
            self.state.pop(name)

    def status(self) -> dict[str, Any]:
        return {
            "queued": [*self.queue],
            "gangs": {name: dict(gang) for name, gang in self.state.items()},
        }

    def answer(self, key: str, place: int, answer: str) -> None:
        self.answers.append((key, place, answer))

    def wish(self, key: str, wish: str) -> None:
        self.wishes.append((key, wish))

    def forget(self, key: str) -> None:
        pass


class Budget:
    reason: str | None = None

    def exhausted(self) -> str | None:
        return self.reason

    def look(self) -> str | None:
        return self.reason


@pytest.fixture
def gangs() -> Gangs:
    return Gangs()


@pytest.fixture
def desk(tmp_path: Path, gangs: Gangs, monkeypatch: pytest.MonkeyPatch) -> Dispatcher:
    """A study on a cluster of two CPUs."""
    monkeypatch.setattr(dispatch, "TICK_S", 0.0)
    book = open_book(tmp_path, spec_of())
    book.database.claim("study")
    node = Node("n1", {"CPU": 2.0}, {"CPU": 2.0})
    return Dispatcher(
        job=None,  # type: ignore[arg-type]
        executor=gangs,  # type: ignore[arg-type]
        admission=Admission(book.database, "study", "c", gangs.gang),
        ledger=Ledger(book.database, "study", gangs.gang),
        budget=Budget(),
        nodes=lambda: [node],
        capacity=lambda: 2,
    )


def place(desk: Dispatcher, key: str) -> str | None:
    return desk.place(key, ["job"])  # type: ignore[list-item]


def give(desk: Dispatcher, kind: str, **body: Any) -> int:
    return commands.give(desk.admission.database, "study", kind, **body)


def outcome(desk: Dispatcher, command: int) -> str | None:
    return commands.outcome(desk.admission.database, command)


def test_a_trial_gets_an_idle_gang_before_a_new_one(desk: Dispatcher, gangs: Gangs) -> None:
    assert place(desk, "0") is None
    gangs.done("0")
    desk.ended("0")
    assert place(desk, "1") is None
    assert list(gangs.hosts) == ["gang0"]
    assert place(desk, "2") is None
    assert list(gangs.hosts) == ["gang0", "gang1"]
    assert place(desk, "3") == "all 2 gang(s) of the study are at work"


def test_a_gang_for_one_trial_is_not_used_twice(desk: Dispatcher, gangs: Gangs) -> None:
    gangs.trials_per_run = 1
    place(desk, "0")
    desk.tick()
    desk.ended("0")
    place(desk, "1")
    assert list(gangs.hosts) == ["gang0", "gang1"]


def test_a_placed_trial_whose_gang_has_ended_gets_another(desk: Dispatcher, gangs: Gangs) -> None:
    place(desk, "0")
    gangs.done("0")
    desk.tick()
    desk.ended("0")
    gangs.leave("gang0")
    assert place(desk, "1") is None
    assert gangs.queue == ["1"], "nothing takes it"
    desk.tick()
    assert gangs.state["gang1"]["trial"] == "1"
    assert desk.admission.slots == {"gang1"}


def test_a_placed_trial_without_room_for_a_gang_says_what_it_waits_for(
    desk: Dispatcher, gangs: Gangs
) -> None:
    place(desk, "0")
    gangs.done("0")
    desk.tick()
    desk.ended("0")
    gangs.leave("gang0")
    place(desk, "1")
    desk.nodes = lambda: [Node("n1", {"CPU": 2.0}, {"CPU": 0.0})]
    desk.tick()
    assert desk.waiting_reasons() == {"1": "needs 1 CPU, 0 free"}
    desk.nodes = lambda: [Node("n1", {"CPU": 2.0}, {"CPU": 2.0})]
    desk.tick()
    assert gangs.state["gang1"]["trial"] == "1"
    assert not desk.waiting_reasons()


def test_why_workers_do_not_start_is_said_if_it_is_known(
    desk: Dispatcher, gangs: Gangs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "STUCK_S", 0.0)
    gangs.queue.append("other")  # so that nobody takes ours
    place(desk, "0")
    gangs.state["gang0"]["up"] = False
    gangs.queue.append("0")
    desk.tick()
    (told,) = desk.waiting_reasons().values()
    assert "have not started" in told and "somebody else may" in told
    gangs.last_failure = "OSError: no file"
    (told,) = desk.waiting_reasons().values()
    assert told.endswith("; the last try failed: OSError: no file")


def test_a_gang_that_is_let_go_is_not_counted_on(desk: Dispatcher, gangs: Gangs) -> None:
    place(desk, "0")
    gangs.done("0")
    desk.ended("0")
    gangs.state["gang0"]["idle_s"] = dispatch.IDLE_S + 1
    desk.tick()
    assert place(desk, "1") is None
    assert gangs.state["gang1"]["trial"] == "1"


def test_idle_gangs_are_let_go_after_a_while_and_their_holds_with_them(
    desk: Dispatcher, gangs: Gangs
) -> None:
    place(desk, "0")
    gangs.done("0")
    desk.ended("0")
    desk.tick()
    assert gangs.hosts
    gangs.state["gang0"]["idle_s"] = dispatch.IDLE_S + 1
    desk.tick()
    desk.tick()
    assert not gangs.hosts
    assert not desk.admission.slots


def test_pause_reaches_open_trials_and_resume_lets_new_ones_start(
    desk: Dispatcher, gangs: Gangs
) -> None:
    place(desk, "0")
    command = give(desk, commands.PAUSE)
    desk.tick()
    assert outcome(desk, command) == "paused"
    assert gangs.wishes == [("0", PAUSE)]
    assert not desk.may_ask()
    desk.answer("0", 3, stop=False)
    assert gangs.answers == [("0", 3, PAUSE)]
    gangs.done("0")
    assert desk.ended("0"), "it goes on later"
    desk.tick()
    desk.tick()
    assert not gangs.hosts, "a paused study holds nothing"
    give(desk, commands.RESUME)
    desk.tick()
    assert desk.may_ask()
    assert place(desk, "0") is None


def test_commands_are_idempotent(desk: Dispatcher, gangs: Gangs) -> None:
    for kind in (commands.PAUSE, commands.PAUSE, commands.RESUME, commands.RESUME):
        command = give(desk, kind)
        desk.tick()
        assert outcome(desk, command) in ("paused", "goes on")
    assert desk.mode == "run"


@pytest.mark.parametrize(("how", "reaches"), [("drain", []), ("checkpoint", [("0", PAUSE)])])
def test_stop_ends_the_study_and_may_let_running_trials_finish(
    desk: Dispatcher, gangs: Gangs, how: str, reaches: list[tuple[str, str]]
) -> None:
    place(desk, "0")
    give(desk, commands.STOP, how=how)
    desk.tick()
    assert desk.ends
    assert not desk.may_ask()
    assert gangs.wishes == reaches


def test_kill_ends_the_study_at_once(desk: Dispatcher) -> None:
    command = give(desk, commands.STOP, how="kill")
    with pytest.raises(StudyStopped):
        desk.tick()
    assert outcome(desk, command) == "killed"


def test_one_trial_can_be_cancelled(desk: Dispatcher, gangs: Gangs) -> None:
    place(desk, "0")
    found, missing = give(desk, commands.CANCEL, number=0), give(desk, commands.CANCEL, number=7)
    desk.tick()
    assert gangs.wishes == [("0", STOP)]
    assert desk.cancelled == {"0"}
    assert outcome(desk, missing) == "trial 7 is not running"
    assert outcome(desk, found) == "stopping"


def test_a_budget_that_is_used_up_drains_the_study_and_says_why(desk: Dispatcher) -> None:
    notes: list[str] = []
    desk.on_note = notes.append
    desk.budget.reason = "budget: 1 h of wall time are used up"  # type: ignore[attr-defined]
    desk.tick()
    assert desk.mode == "drain"
    assert notes == ["budget: 1 h of wall time are used up"]


def test_a_gang_goes_to_a_study_that_waits_after_its_turn(
    desk: Dispatcher, gangs: Gangs, tmp_path: Path
) -> None:
    for key in "01":
        place(desk, key)
    database = desk.admission.database
    database.save_spec("other", "{}", {})
    database.claim("other")
    waiter = Admission(database, "other", "c", Gang(1, 1.0, 0.0))
    assert waiter.acquire("gang0", desk.nodes()) is not None
    desk.tick()
    assert not any(gang["closing"] for gang in gangs.state.values()), "not before its turn is over"
    for gang in gangs.state.values():
        gang["up_s"] = dispatch.TURN_S + 1
    desk.tick()
    desk.tick()
    assert [gang["closing"] for gang in gangs.state.values()] == [True, False]


def test_what_idles_is_written_down(desk: Dispatcher, gangs: Gangs) -> None:
    place(desk, "0")
    gangs.done("0")
    desk.ended("0")
    desk.tick()
    time.sleep(0.05)
    desk.tick()
    desk.close()
    spent = totals(desk.admission.database, "study")
    assert spent["idle"].cpu >= 0.05
    assert spent["wall"].cpu >= spent["idle"].cpu


def test_an_error_in_a_callback_ends_the_study_at_the_next_tick(desk: Dispatcher) -> None:
    with pytest.raises(OSError, match="disk"), desk.fatal_errors():
        raise OSError("disk")
    with pytest.raises(OSError, match="disk"):
        desk.tick()


def test_without_a_wish_a_report_is_answered_with_go(desk: Dispatcher, gangs: Gangs) -> None:
    place(desk, "0")
    desk.answer("0", 0, stop=False)
    desk.answer("0", 1, stop=True)
    assert gangs.answers == [("0", 0, GO), ("0", 1, STOP)]


# Edits.


def test_a_command_of_another_kind_goes_to_its_handler(desk: Dispatcher) -> None:
    desk.handlers = {commands.EDIT: lambda command: f"edited {command.body['trials']}"}
    command = give(desk, commands.EDIT, trials=7)
    desk.tick()
    assert outcome(desk, command) == "edited 7"
    assert desk.mode == "run"


def test_after_an_edit_more_trials_run_at_a_time(desk: Dispatcher) -> None:
    desk.max_gangs = 1
    place(desk, "0")
    assert not desk.may_ask()
    desk.reconsider()
    assert desk.may_ask()


def test_a_study_goes_on_once_its_used_up_budget_has_grown(desk: Dispatcher) -> None:
    budget = desk.budget
    assert isinstance(budget, Budget)
    budget.reason = "budget: 1 h of wall time are used up"
    desk.tick()
    assert desk.ends
    desk.reconsider()
    assert desk.ends, "it is used up still"
    budget.reason = None
    desk.reconsider()
    assert (desk.mode, desk.ends) == ("run", False)


def test_an_edit_does_not_undo_a_stop(desk: Dispatcher) -> None:
    give(desk, commands.STOP, how="drain")
    desk.tick()
    desk.reconsider()
    assert desk.ends
