"""A real study on a private Ray head, commanded from this process as a user does from another terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.tune.test_study_on_ray import home, read_until, start
from ucd_ray.tune import manage
from ucd_ray.tune.database import Database
from ucd_ray.tune.overview import overview
from ucd_ray.tune.places import places

pytestmark = [pytest.mark.ray, pytest.mark.slow]
__all__ = ["home"]  # a fixture


def command(*arguments: str) -> str:
    """What `ucd-ray study ...` prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-m", "ucd_ray.cli", "study", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def training_workers(driver: int) -> list[psutil.Process]:
    """The processes below a driver that train."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_study_is_paused_resumed_stopped_started_again_and_deleted(home: Path) -> None:
    more = ("--trials", "2", "--set", "optim.epochs_new=10")
    process = start(home, *more)
    read_until(process, r"trial 0 step 1 epoch 1/10")
    assert training_workers(process.pid)

    assert "is paused; it holds no workers" in command("pause", "tiny")
    deadline = time.monotonic() + 20
    while training_workers(process.pid):  # their processes end after the hold was given back
        assert time.monotonic() < deadline, "a paused study keeps its workers"
        time.sleep(0.2)
    database = Database(f"sqlite:///{home}/studies.db")
    found = overview(database, "tiny", places())
    assert found.state == "paused"
    assert found.driver is not None
    assert found.driver.pid == process.pid
    assert [trial.number for trial in found.open] == [0]
    assert found.checkpoint_bytes

    assert "goes on" in command("resume", "tiny")
    epochs = read_until(process, r"trial 0 step 1 epoch [3-9]/10")
    assert sum("trial 0 step 1 epoch 2/10" in line for line in epochs) <= 1

    assert "has stopped; `ucd-ray study run tiny` goes on" in command("stop", "tiny")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert "not running" in command("show", "tiny")

    again = start(home, *more)
    lines = read_until(again, r"trial 0 COMPLETE")
    assert not any("trial 0 step 1 epoch 1/10" in line for line in lines), "it went on"
    read_until(again, r"trial 1 step 1 epoch 1/10")
    assert command("cancel", "tiny", "1") == "trial 1 of study 'tiny' is cancelled\n"
    again.communicate(timeout=60)
    trials = manage.stored_trials(database, "tiny")
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL"]
    assert "CANCELLED 1  COMPLETE 1" in command("show", "tiny")

    assert "is deleted" in command("delete", "tiny", "--yes")
    assert database.studies() == []
    assert not (home / "runs" / "tiny").exists()
    assert any((home / "steps").iterdir()), "the step cache stays"
