"""A real study on a private Ray head, commanded from this process as a user does from another terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from tests.tune.test_study_on_ray import home, read_until, start
from ucd_ray.tune import manage
from ucd_ray.tune.database import Database
from ucd_ray.tune.overview import overview
from ucd_ray.tune.places import places
from ucd_ray.tune.tables import command_table

CANCELLED = "trial 1 of study 'tiny' is cancelled\n"

pytestmark = [pytest.mark.ray, pytest.mark.slow]
__all__ = ["home"]  # a fixture


def command(*arguments: str) -> str:
    """What `ucd-ray study ...` prints; it must end well."""
    return output_of(start_command(*arguments))


def command_while_training(database: Database, driver: int, *arguments: str) -> str:
    """As `command`, of a trial that cannot end before its driver has taken it.

    Its workers are stopped meanwhile: on a busy machine a process starts slower than an epoch ends.
    """
    workers, given = training_workers(driver), answered(database)
    assert workers
    for worker in workers:
        worker.suspend()
    try:
        process = start_command(*arguments)
        wait_for(lambda: answered(database) > given, "the driver does not take the command")
    finally:
        for worker in workers:
            worker.resume()
    return output_of(process)


def answered(database: Database) -> int:
    """How many commands drivers have taken."""
    query = sa.select(sa.func.count()).where(command_table.c.done.is_not(None))
    return int(database.read(lambda connection: connection.scalar(query)))


def start_command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ucd_ray.cli", "study", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ),
    )


def output_of(process: subprocess.Popen[str]) -> str:
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output


def wait_for(ready: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)


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
    database = Database(f"sqlite:///{home}/studies.db")

    told = command_while_training(database, process.pid, "pause", "tiny")
    assert "is paused; it holds no workers" in told
    # Their processes end after the hold was given back.
    wait_for(lambda: not training_workers(process.pid), "a paused study keeps its workers")
    found = overview(database, "tiny", places())
    assert found.state == "paused"
    assert found.driver is not None
    assert found.driver.pid == process.pid
    assert [trial.number for trial in found.open] == [0]
    assert found.checkpoint_bytes

    assert "goes on" in command("resume", "tiny")
    epochs = read_until(process, r"trial 0 step 1 epoch [3-9]/10")
    assert sum("trial 0 step 1 epoch 2/10" in line for line in epochs) <= 1

    told = command_while_training(database, process.pid, "stop", "tiny")
    assert "has stopped; `ucd-ray study run tiny` goes on" in told
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert "not running" in command("show", "tiny")

    again = start(home, *more)
    lines = read_until(again, r"trial 0 COMPLETE")
    assert not any("trial 0 step 1 epoch 1/10" in line for line in lines), "it went on"
    read_until(again, r"trial 1 step 1 epoch 1/10")
    assert command_while_training(database, again.pid, "cancel", "tiny", "1") == CANCELLED
    again.communicate(timeout=60)
    trials = manage.stored_trials(database, "tiny")
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL"]
    assert "CANCELLED 1  COMPLETE 1" in command("show", "tiny")

    assert "is deleted" in command("delete", "tiny", "--yes")
    assert database.studies() == []
    assert not (home / "runs" / "tiny").exists()
    assert any((home / "steps").iterdir()), "the step cache stays"
