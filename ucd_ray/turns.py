"""Whose turn it is to train a step: one run takes its lease, the ranks of the others wait together."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ucd_ray.checkpoint import StepCache
from ucd_ray.learner import Ranks
from ucd_ray.step_leases import Lease

POLL_S = 2.0  # between looks; the ranks meet as often, as a long collective would time out


@dataclass(frozen=True)
class Turn:
    """What this rank may do about a step."""

    stored: bool  # take it from the cache, else train it
    lease: Lease | None = None  # rank 0's, while it trains

    def worked(self) -> None:
        """Notes that training went on."""
        if self.lease is not None:
            self.lease.worked()


@contextlib.contextmanager
def turn(
    cache: StepCache,
    key: Mapping[str, Any],
    ranks: Ranks,
    *,
    stored: Callable[[], bool],
    tell: Callable[[str], None],
) -> Iterator[Turn]:
    """Waits until a step is stored or this run's to train; what it got is given back at the end.

    stored: whether the step can be taken from the cache, asked on rank 0
    tell: called once, on all ranks, with who trains the step, if it has to be waited for
    """
    told, own = False, Turn(stored=False)
    try:
        while True:
            waits_for = None
            if ranks.rank == 0:
                own, waits_for = _look(cache, key, stored)
            is_stored, waits_for = ranks.agree((own.stored, waits_for))
            if waits_for is None:
                break
            if not told:
                tell(waits_for)
                told = True
            if ranks.rank == 0:
                time.sleep(POLL_S)
        yield Turn(is_stored, own.lease)
    finally:
        if own.lease is not None:
            own.lease.release()


def _look(
    cache: StepCache, key: Mapping[str, Any], stored: Callable[[], bool]
) -> tuple[Turn, str | None]:
    """This run's turn, or whom it waits for."""
    lease = cache.lease(key)
    if lease is None:
        if stored():
            return Turn(stored=True), None
        return Turn(stored=False), cache.holder(key) or "another run"
    try:
        if not stored():
            return Turn(stored=False, lease=lease), None
    except BaseException:
        lease.release()
        raise
    lease.release()
    return Turn(stored=True), None
