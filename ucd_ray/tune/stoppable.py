"""Ends what the main thread does, from another thread."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from ucd_ray.errors import UcdRayError


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[UcdRayError], None]]:
    """A block that another thread ends: it raises the error with which what this yields is called.

    Also in a call that only a signal interrupts, and where SIGINT is ignored, as it is in the background
    of a script.  In another thread than the main one, which no signal reaches, at its own end.
    """
    main = threading.main_thread()
    given: list[UcdRayError] = []

    def stop(error: UcdRayError) -> None:
        given.append(error)
        signal.pthread_kill(main.ident or 0, signal.SIGINT)

    if threading.current_thread() is not main:
        yield given.append
        if given:
            raise given[0]
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if given:
            raise KeyboardInterrupt
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    except KeyboardInterrupt:
        if not given:
            raise
        raise given[0] from None
    finally:
        signal.signal(signal.SIGINT, before)
