"""A head that is gone ends what talks to it, with the reason."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ucd_ray.errors import ClusterError
from ucd_ray.tune import lifeline


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Something that listens as a head does."""
    monkeypatch.setattr(lifeline, "LOOK_S", 0.05)
    monkeypatch.setattr(lifeline, "LOST_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def wait_without(server: socket.socket) -> None:
    """A block whose head ends after half a second."""
    with lifeline.watched(address(server)) as lost:
        time.sleep(0.5)
        assert not lost.is_set()
        server.close()
        time.sleep(30)


def fail_without(server: socket.socket) -> None:
    """A block that fails once its head is gone."""
    with lifeline.watched(address(server)):
        server.close()
        raise RuntimeError("rpc failed")


def test_a_block_ends_when_the_head_stops_answering(head: socket.socket) -> None:
    at = address(head)
    with pytest.raises(ClusterError, match=rf"its head at {at} does not answer any more"):
        wait_without(head)


def test_what_fails_because_the_head_is_gone_says_so(head: socket.socket) -> None:
    with pytest.raises(ClusterError, match="lost the Ray cluster"):
        fail_without(head)


STUCK = """
import socket, threading
from ucd_ray.tune import lifeline
lifeline.LOOK_S, lifeline.LOST_S, lifeline.GRACE_S = 0.05, 0.2, 0.2
server = socket.create_server(("127.0.0.1", 0))
with lifeline.watched("127.0.0.1:%d" % server.getsockname()[1]):
    server.close()
    while True:  # as a call that nothing interrupts
        try:
            threading.Event().wait(60)
        except KeyboardInterrupt:
            pass
"""


def test_a_process_that_cannot_be_interrupted_is_ended_with_the_reason() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: lost the Ray cluster")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_other_ends_of_a_block_stay_what_they_are(
    head: socket.socket, kind: type[BaseException]
) -> None:
    with pytest.raises(kind, match="mine"), lifeline.watched(address(head)) as lost:
        raise kind("mine")
    assert not lost.is_set()
