"""A block that another thread ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from ucd_ray.errors import StudyError
from ucd_ray.tune.stoppable import stoppable

TAKEN = StudyError("taken over")
BACKGROUND = """
import signal, threading, time
from ucd_ray.errors import StudyError
from ucd_ray.tune.stoppable import stoppable
signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    with stoppable() as outer, stoppable():
        signal.raise_signal(signal.SIGINT)
        print("ignored", flush=True)
        threading.Timer(0.2, outer, [StudyError("taken over")]).start()
        time.sleep(60)
except StudyError as error:
    print(error)
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
"""


def stopped_soon(stop: Callable[[StudyError], None]) -> None:
    """Waits for a minute, and is stopped from another thread at once."""
    threading.Timer(0.1, stop, [TAKEN]).start()
    threading.Event().wait(60)


def test_it_raises_what_the_other_thread_says() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StudyError, match="taken over"), stoppable() as stop:
        stopped_soon(stop)
    assert signal.getsignal(signal.SIGINT) is before


def test_inside_another_block_the_outer_one_ends_too() -> None:
    with pytest.raises(StudyError, match="taken over"), stoppable() as stop, stoppable():
        stopped_soon(stop)


def test_ctrl_c_stays_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt), stoppable():
        signal.raise_signal(signal.SIGINT)


def test_in_the_background_of_a_script_it_ends_too_and_ctrl_c_stays_ignored() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BACKGROUND], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (0, "ignored\ntaken over\n"), done.stderr


def test_in_another_thread_it_raises_at_its_end() -> None:
    raised: list[StudyError] = []

    def work() -> None:
        try:
            with stoppable() as stop:
                stop(TAKEN)
        except StudyError as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert raised == [TAKEN]
