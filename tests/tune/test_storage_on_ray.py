"""Studies on a real Ray cluster whose database or storage fails, or is an object store."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import PostgresServer
from tests.test_s3 import CREDENTIALS, endpoint, url
from tests.tune.test_faults_on_ray import epochs
from tests.tune.test_study_on_ray import home, read_until, start
from ucd_ray.tune.cluster import local_head

pytestmark = [pytest.mark.ray, pytest.mark.slow]
__all__ = ["endpoint", "home", "url"]  # fixtures

OUTAGE_S = 30.0
LONG = ("--trials", "1", "--set", "optim.epochs_new=8")
DONE = "mIoU in percent on val"


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a head for all tests of this file, whose nodes know their object store."""
    folder = Path(tempfile.mkdtemp(prefix="ucd-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with local_head(folder) as (address, _dashboard):
            yield address
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_study_waits_for_a_database_that_is_down(
    home: Path, head: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_DATABASE", postgres.url(postgres.new_database()))
    process = start(home, *LONG, "--address", head)
    lines = read_until(process, r"trial 0 step 1 epoch 2/8")
    postgres.crash()
    try:
        time.sleep(OUTAGE_S)
    finally:
        postgres.start()
    lines += read_until(process, DONE)
    assert process.wait(timeout=60) == 0
    assert any("does not answer" in line for line in lines), "\n".join(lines)
    assert any("answers again" in line for line in lines), "\n".join(lines)
    assert epochs(lines, 0) == list(range(1, 9)), "nothing is lost, nothing trained again"
    assert "COMPLETE" in "\n".join(lines)


def test_a_full_disk_ends_the_study_and_its_trial_goes_on_later(
    home: Path, head: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_STORAGE", str(small_disk))
    process = start(home, *LONG, "--address", head)
    lines = read_until(process, r"trial 0 step 1 epoch 2/8")
    filler = small_disk / "filler"
    with open(filler, "wb") as file:
        try:
            while True:
                file.write(bytes(65536))
                file.flush()
        except OSError:
            pass
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2, output
    assert "No space left on device" in output
    assert "Traceback" not in output
    filler.unlink()
    again = start(home, *LONG, "--address", head)
    lines += output.splitlines() + read_until(again, DONE)
    assert again.wait(timeout=60) == 0
    found = epochs(lines, 0)
    assert sorted(set(found)) == list(range(1, 9))
    assert len(found) - 8 <= 1, "at most one epoch is trained again"
    assert not any("base step" in line for line in lines[len(lines) // 2 :])


def test_a_killed_study_on_an_object_store_goes_on(
    home: Path, head: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCD_RAY_STORAGE", url)
    process = start(home, *LONG, "--address", head)
    lines = read_until(process, r"trial 0 step 1 epoch 3/8")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = start(home, *LONG, "--address", head)
    more = read_until(again, DONE)
    assert again.wait(timeout=60) == 0
    found = epochs([*lines, *more], 0)
    assert sorted(set(found)) == list(range(1, 9))
    assert len(found) - 8 <= 1, "at most one epoch is trained again"
    assert not any(re.search("base step step 0 done", line) for line in more)
    assert "hidden" not in "\n".join([*lines, *more])
    assert not list(home.glob("steps/*")) and not list(home.glob("runs/*"))
