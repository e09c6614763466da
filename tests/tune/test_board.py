"""The board between a driver and its gangs, on a real event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ucd_ray.tune.board import CLOSE, GO, PAUSE, STOP, TRIES, Board

DONE = {"kind": "done", "value": 1.0}


def on_a_loop(test: Callable[[Board], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        async def main() -> None:
            await asyncio.wait_for(test(Board()), 20)

        asyncio.run(main())

    run.__name__ = test.__name__  # type: ignore[attr-defined]
    return run


async def gang(board: Board, name: str = "a") -> None:
    await board.add_gang(name)
    await board.gang_started(name, ("node1", "node2"))


def kinds(reports: list[dict[str, Any]]) -> list[str]:
    return [report["kind"] for report in reports]


@on_a_loop
async def test_trials_are_taken_in_order_and_a_gang_waits_for_the_next(board: Board) -> None:
    await gang(board)
    assert await board.next_trial("a", 0.05) is None
    waiting = asyncio.create_task(board.next_trial("a", 10))
    await asyncio.sleep(0.01)
    await board.put("0", "job 0", [])
    await board.put("1", "job 1", [])
    assert await waiting == ("0", "job 0")
    await board.trial_ended("a", "0", dict(DONE))
    assert await board.next_trial("a", 1) == ("1", "job 1")


@on_a_loop
async def test_a_report_that_asks_waits_for_the_drivers_answer(board: Board) -> None:
    await gang(board)
    await board.put("0", "job", [])
    await board.next_trial("a", 1)
    asked = asyncio.create_task(board.report("0", {"kind": "epoch"}, True))
    (report,) = await board.take_reports("0", 0)
    assert report["kind"] == "epoch"
    assert report["held_s"] >= 0
    assert not asked.done()
    await board.answer("0", 0, STOP)
    assert await asked == STOP
    assert await board.report("0", {"kind": "step"}, False) == GO


@on_a_loop
async def test_a_line_that_comes_too_late_does_not_open_a_trial_again(board: Board) -> None:
    await gang(board)
    await board.put("0", "job", [])
    await board.next_trial("a", 1)
    assert await board.report("0", {"kind": "worker", "text": "begins"}, False) == GO
    await board.trial_ended("a", "0", dict(DONE))
    assert await board.report("0", {"kind": "worker", "text": "late"}, False) == GO
    assert kinds(await board.take_reports("0", 0)) == ["worker", "done"]
    await board.forget("0")
    assert await board.report("0", {"kind": "worker", "text": "later"}, False) == GO


@on_a_loop
async def test_a_wish_overrides_the_drivers_go(board: Board) -> None:
    await gang(board)
    await board.put("0", "job", [])
    await board.next_trial("a", 1)
    await board.wish("0", PAUSE)
    asked = asyncio.create_task(board.report("0", {"kind": "epoch"}, True))
    await board.take_reports("0", 0)
    await board.answer("0", 0, GO)
    assert await asked == PAUSE


@on_a_loop
async def test_a_wish_ends_a_trial_that_no_gang_has_at_once(board: Board) -> None:
    await board.put("0", "job", [])
    await board.wish("0", STOP)
    assert kinds(await board.take_reports("0", 0)) == ["stopped"]
    await gang(board)
    assert await board.next_trial("a", 0.05) is None


@on_a_loop
async def test_a_trial_whose_workers_are_lost_goes_back_to_the_head_of_the_queue(
    board: Board,
) -> None:
    await gang(board)
    for key in "01":
        await board.put(key, f"job {key}", [])
    await board.next_trial("a", 1)
    asked = asyncio.create_task(board.report("0", {"kind": "epoch"}, True))
    await asyncio.sleep(0.01)
    await board.gang_started("a", ("node3",))
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert await board.next_trial("a", 1) == ("0", "job 0")
    lost = (await board.take_reports("0", 1))[0]
    assert (lost["kind"], lost["nodes"]) == ("lost", ["node1", "node2"])


@on_a_loop
async def test_a_trial_that_keeps_killing_its_workers_fails(board: Board) -> None:
    await board.put("0", "job", [])
    for _ in range(TRIES):
        await gang(board)
        assert await board.next_trial("a", 1) is not None
        await board.drop_gang("a")
    last = (await board.take_reports("0", 0))[-1]
    assert (last["kind"], last["code"]) == ("failed", "LOST_WORKER")
    assert f"{TRIES} times" in last["reason"]
    await gang(board)
    assert await board.next_trial("a", 0.05) is None


@on_a_loop
async def test_a_trial_out_of_memory_is_tried_again_smaller(board: Board) -> None:
    await gang(board)
    await board.put("0", "big", ["small"])
    out = {"kind": "failed", "code": "OUT_OF_MEMORY", "reason": "no memory"}
    assert await board.next_trial("a", 1) == ("0", "big")
    await board.trial_ended("a", "0", dict(out))
    assert await board.next_trial("a", 1) == ("0", "small")
    await board.trial_ended("a", "0", dict(out))
    assert kinds(await board.take_reports("0", 0)) == ["smaller", "failed"]


@on_a_loop
async def test_a_closed_gang_ends_after_its_trial(board: Board) -> None:
    await gang(board)
    await board.put("0", "job", [])
    await board.next_trial("a", 1)
    await board.close_gang("a")
    await board.put("1", "job", [])
    await board.trial_ended("a", "0", dict(DONE))
    assert await board.next_trial("a", 1) == CLOSE
    assert (await board.status())["queued"] == ["1"]


@on_a_loop
async def test_the_status_tells_what_every_gang_does(board: Board) -> None:
    await board.add_gang("a")
    await gang(board, "b")
    await board.put("0", "job", [])
    await board.next_trial("b", 1)
    gangs = (await board.status())["gangs"]
    assert (gangs["a"]["up"], gangs["a"]["trial"]) == (False, None)
    assert (gangs["b"]["up"], gangs["b"]["trial"], gangs["b"]["idle_s"]) == (True, "0", 0.0)


@on_a_loop
async def test_the_first_end_of_a_trial_counts(board: Board) -> None:
    await gang(board)
    await board.put("0", "job", [])
    await board.next_trial("a", 1)
    await board.trial_ended("a", "0", dict(DONE))
    await board.trial_ended("a", "0", {"kind": "failed", "code": "ERROR", "reason": "late"})
    assert kinds(await board.take_reports("0", 0)) == ["done"]
    await board.forget("0")
    await board.trial_ended("a", "0", dict(DONE))
    await board.answer("0", 0, GO)
