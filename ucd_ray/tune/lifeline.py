"""Notices that the head of a Ray cluster is gone.

Ray ends a process that has not reached the head for a minute, without a word that helps its user; and its
calls that wait for the head cannot be interrupted.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from ucd_ray.errors import ClusterError
from ucd_ray.tune.stoppable import stoppable

LOOK_S = 2.0
LOST_S = 15.0  # without an answer; a busy head still accepts connections
GRACE_S = 10.0  # for the block to end by itself, before Ray ends the process


def answers(address: str) -> bool:
    """Whether something listens at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_S):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def watched(address: str) -> Iterator[threading.Event]:
    """Ends the block with ClusterError once the cluster at `host:port` is lost.

    If the block waits inside Ray, where no exception reaches it, the process ends: exit code 2 and the
    reason.
    Yields the event of that: who sees it set must not talk to Ray any more, which would wait for ever.
    """
    lost, done = threading.Event(), threading.Event()

    def watch(stop: Callable[[ClusterError], None]) -> None:
        seen = time.monotonic()
        while not done.wait(LOOK_S):
            if answers(address):
                seen = time.monotonic()
            elif time.monotonic() - seen >= LOST_S:
                lost.set()
                stop(_lost(address))
                return None if done.wait(GRACE_S) else _exit(address)

    with stoppable() as stop:
        threading.Thread(target=watch, args=(stop,), daemon=True).start()
        try:
            yield lost
        except Exception:
            if answers(address):
                raise
            lost.set()
            raise _lost(address) from None
        finally:
            done.set()


def _exit(address: str) -> None:
    sys.stdout.flush()
    terminal = sys.__stderr__ or sys.stderr  # Tune's own notes may be kept off sys.stderr now
    terminal.write(f"error: {_lost(address)}\n")
    terminal.flush()
    os._exit(2)


def _lost(address: str) -> ClusterError:
    return ClusterError(
        f"lost the Ray cluster: its head at {address} does not answer any more; "
        "the same command goes on where it stopped, on a new head"
    )
