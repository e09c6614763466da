"""The board of a study: where its driver puts trials and its gangs take them.

One small actor that needs no CPU and no torch.  A report that wants an answer waits here until the driver
has stored it and says whether the trial goes on; so nothing is trained past what the database knows.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

TRIES = 3  # of one trial whose workers were lost; each costs at most one epoch

GO, STOP, PAUSE = "go", "stop", "pause"  # on; end here; save, then end here
ENDS = ("done", "failed", "stopped")  # kinds of report that are a trial's last
STORAGE = "STORAGE"  # code of a failure that is not the trial's: disk full, a damaged entry
CLOSE = "close"  # what a gang that shall end takes instead of a trial


@dataclass
class Entry:
    """A trial on the board."""

    job: Any
    smaller: list[Any] = field(default_factory=list)  # the same trial for less memory, in turn
    reports: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[int, asyncio.Future[str]] = field(default_factory=dict)
    wish: str = GO  # what the next report that asks is answered, whatever the driver says
    tries: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    taken: float | None = None  # when a gang took it
    held: float = 0.0  # seconds on gangs that were lost

    def add(self, report: dict[str, Any]) -> int:
        """Appends a report with the seconds that the trial has held a gang; returns its place."""
        now = time.time() - self.taken if self.taken is not None else 0.0
        self.reports.append({**report, "held_s": self.held + now})
        self.news.set()
        return len(self.reports) - 1

    def stop_clock(self) -> None:
        """Its gang no longer holds it."""
        if self.taken is not None:
            self.held += time.time() - self.taken
            self.taken = None

    @property
    def ended(self) -> bool:
        """Whether the last report is there."""
        return bool(self.reports) and self.reports[-1]["kind"] in ENDS


@dataclass
class GangState:
    """A gang as the board sees it."""

    trial: str | None = None
    up: bool = False  # its workers are there
    closing: bool = False
    idle_since: float = field(default_factory=time.time)
    up_since: float = field(default_factory=time.time)
    nodes: tuple[str, ...] = ()
    starts: int = 0


class Board:
    """Trials, reports and gangs of one study.  All methods run on one event loop."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.queue: deque[str] = deque()
        self.gangs: dict[str, GangState] = {}
        self.changed = asyncio.Condition()

    # What the driver calls.

    async def add_gang(self, gang: str) -> None:
        """Announces a gang before its workers are started."""
        self.gangs[gang] = GangState()

    async def put(self, key: str, job: Any, smaller: list[Any]) -> None:
        """Puts a trial at the end of the queue; `smaller` are what it becomes when memory runs out."""
        self.entries[key] = Entry(job, list(smaller))
        self.queue.append(key)
        await self._changed()

    async def take_reports(
        self, key: str, since: int, wait_s: float = 30.0
    ) -> list[dict[str, Any]]:
        """Reports of a trial from place `since` on; waits for the first, at most `wait_s`."""
        entry = self.entries[key]
        if len(entry.reports) <= since:
            entry.news.clear()
            try:
                await asyncio.wait_for(entry.news.wait(), wait_s)
            except TimeoutError:
                return []
        return entry.reports[since:]

    async def answer(self, key: str, place: int, answer: str) -> None:
        """The driver's verdict on the report at `place`."""
        entry = self.entries.get(key)
        future = entry.answers.pop(place, None) if entry else None
        if entry and future is not None and not future.done():
            future.set_result(answer if entry.wish == GO else entry.wish)

    async def wish(self, key: str, wish: str) -> None:
        """Stops or pauses a trial: at once if no gang has it, else at its next report that asks."""
        entry = self.entries.get(key)
        if entry is None or entry.ended:
            return
        entry.wish = wish
        if key in self.queue:
            self.queue.remove(key)
            entry.add({"kind": "stopped"})

    async def forget(self, key: str) -> None:
        """Drops a trial that has ended."""
        self.entries.pop(key, None)

    async def close_gang(self, gang: str) -> None:
        """Ends a gang after the trial that it has."""
        if gang in self.gangs:
            self.gangs[gang].closing = True
        await self._changed()

    async def drop_gang(self, gang: str) -> str | None:
        """Forgets a gang that has ended; its trial goes back on the board.  Returns that trial."""
        state = self.gangs.pop(gang, None)
        if state is None or state.trial is None:
            return None
        await self._put_back(state.trial, state.nodes)
        return state.trial

    async def status(self) -> dict[str, Any]:
        """`queued` trials, and every gang with trial, whether it is up, and its idle seconds."""
        now = time.time()
        gangs = {
            name: {
                "trial": gang.trial,
                "up": gang.up,
                "idle_s": 0.0 if gang.trial or not gang.up else now - gang.idle_since,
                "up_s": now - gang.up_since if gang.up else 0.0,
                "closing": gang.closing,
                "starts": gang.starts,
                "nodes": gang.nodes,
            }
            for name, gang in self.gangs.items()
        }
        return {"queued": list(self.queue), "gangs": gangs}

    # What gangs call; but for lines of a worker only their rank 0 does.

    async def gang_started(self, gang: str, nodes: tuple[str, ...]) -> None:
        """The workers of a gang are up.  A trial that their predecessors held goes back first."""
        state = self.gangs.setdefault(gang, GangState())
        lost, where = state.trial, state.nodes
        state.trial, state.up, state.nodes = None, True, nodes
        state.starts += 1
        state.idle_since = state.up_since = time.time()
        if lost is not None:
            await self._put_back(lost, where)

    async def next_trial(self, gang: str, wait_s: float) -> tuple[str, Any] | str | None:
        """Key and job of the next trial, CLOSE, or None after `wait_s` without either."""
        state = self.gangs.setdefault(gang, GangState(up=True))
        deadline = time.monotonic() + wait_s
        async with self.changed:
            while not self.queue and not state.closing:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                try:
                    await asyncio.wait_for(self.changed.wait(), left)
                except TimeoutError:
                    return None
        if state.closing:
            return CLOSE
        key = self.queue.popleft()
        state.trial = key
        self.entries[key].taken = time.time()
        return key, self.entries[key].job

    async def report(self, key: str, report: dict[str, Any], asks: bool) -> str:
        """Adds a report.  If it asks, returns the driver's answer once it is there.

        A line that a worker sent too late is dropped: a trial's last report stays the last.
        """
        entry = self.entries.get(key)
        if not asks and (entry is None or entry.ended):
            return GO
        entry = self.entries[key]
        place = entry.add(report)
        if not asks:
            return GO
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        entry.answers[place] = future
        return await future

    async def trial_ended(self, gang: str, key: str, last: dict[str, Any]) -> None:
        """A trial ended with its `last` report; its gang is free."""
        state = self.gangs.get(gang)
        if state is not None:
            state.trial, state.idle_since = None, time.time()
        entry = self.entries.get(key)
        if entry is None or entry.ended:
            return
        if last.get("code") == "OUT_OF_MEMORY" and entry.smaller and entry.wish == GO:
            entry.job = entry.smaller.pop(0)
            entry.add({**last, "kind": "smaller"})
            entry.stop_clock()
            await self._again(key)
        else:
            entry.add(last)

    async def _put_back(self, key: str, nodes: tuple[str, ...]) -> None:
        entry = self.entries.get(key)
        if entry is None or entry.ended:
            return
        entry.stop_clock()
        for future in entry.answers.values():
            future.cancel()
        entry.answers.clear()
        entry.tries += 1
        where = ", ".join(sorted(set(nodes))) or "an unknown node"
        if entry.wish != GO:
            entry.add({"kind": "stopped"})
        elif entry.tries >= TRIES:
            reason = f"its workers were lost {entry.tries} times, the last time on {where}"
            entry.add({"kind": "failed", "code": "LOST_WORKER", "reason": reason})
        else:
            entry.add({"kind": "lost", "nodes": sorted(set(nodes)), "tries": entry.tries})
            await self._again(key)

    async def _again(self, key: str) -> None:
        """Puts a trial that ran before at the head of the queue."""
        self.queue.appendleft(key)
        await self._changed()

    async def _changed(self) -> None:
        async with self.changed:
            self.changed.notify_all()
