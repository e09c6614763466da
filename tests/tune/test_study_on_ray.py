"""Studies on a real Ray cluster: what is trained, what survives, what is left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from ucd_ray import StudySpec, run_study
from ucd_ray.tune.cluster import LEAN, local_head

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TINY = {
    "scenario": "shapes-8-4",
    "model.backbone": "test_resnet",
    "model.width": 16,
    "model.output_stride": 16,
    "data.crop": 48,
    "data.batch_size": 16,
    "optim.iterations_base": 6,
    "optim.iterations_new": None,
    "optim.epochs_new": 2,
    "optim.lr_base": 0.05,
    "eval.max_images": 8,
}
SET = [
    part
    for key, value in TINY.items()
    if key != "scenario"
    for part in ("--set", f"{key}={'null' if value is None else value}")
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty UCD_RAY_HOME; afterwards no Ray process that was started from it is left."""
    short = Path(tempfile.mkdtemp(prefix="ucd-", dir="/tmp"))  # Ray's socket names must be short
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    monkeypatch.setenv("UCD_RAY_HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "UCD_RAY_DATABASE", "UCD_RAY_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    deadline = time.monotonic() + 15
    while left := [process for process in psutil.process_iter() if mentions(process, short)]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.2)
    shutil.rmtree(short, ignore_errors=True)


@pytest.fixture(scope="module")
def shared_head() -> Iterator[str]:
    """The address of one head for studies that need none of their own; at the end its CPUs are free."""
    folder = Path(tempfile.mkdtemp(prefix="ucd-", dir="/tmp"))
    with local_head(folder) as (address, _dashboard):
        yield address
        assert free_cpus(address)
    shutil.rmtree(folder, ignore_errors=True)


def free_cpus(address: str) -> bool:
    """Whether all CPUs of a cluster are free, or become so within 5 s."""
    import ray

    ray.init(address, log_to_driver=False, runtime_env={"env_vars": dict(LEAN)})
    try:
        total = ray.cluster_resources()["CPU"]
        deadline = time.monotonic() + 5
        while ray.available_resources().get("CPU", 0) < total:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
    finally:
        ray.shutdown()
    return True


def mentions(process: psutil.Process, folder: Path) -> bool:
    """Whether a live process was started with this folder among its arguments."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and any(
            str(folder) in word for word in process.cmdline()
        )
    except psutil.NoSuchProcess:
        return False


def spec(**values: object) -> StudySpec:
    """A study of tiny trials."""
    base: dict[str, object] = {
        "name": "tiny",
        "recipe": {**TINY, "method": "mib"},
        "search": {"kd.weight": {"low": 1, "high": 200, "log": True}},
        "first": {"kd.weight": 10},
        "trials": 2,
        "pruner": "none",
    }
    return StudySpec.model_validate({**base, **values})


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """`ucd-ray tune` in a process of its own."""
    command = [sys.executable, "-m", "ucd_ray.cli", "tune", "--scenario", "shapes-8-4", *SET]
    return subprocess.Popen(
        [
            *command,
            "--method",
            "mib",
            "--name",
            "tiny",
            "--pruner",
            "none",
            "--max-concurrent",
            "1",
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "UCD_RAY_HOME": str(home), "PYTHONUNBUFFERED": "1"},
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> list[str]:
    """Lines of output up to the first that matches."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        if re.search(pattern, line):
            return lines
    raise AssertionError(f"no line matched {pattern!r}:\n" + "\n".join(lines))


def test_a_study_trains_the_base_step_once_for_all_trials_on_two_workers(home: Path) -> None:
    process = start(home, "--trials", "2", "--workers", "2")
    output = "\n".join(read_until(process, "mIoU in percent on val"))
    assert process.wait(timeout=60) == 0
    assert len(re.findall(r"base step step 0 done \(\d", output)) == 1
    assert output.count("step 0 done (from the step cache)") == 2
    assert re.search(r"Ray dashboard: http://127\.0\.0\.1:\d+", output)
    assert stat.S_IMODE((home / "ray-token").stat().st_mode) == 0o600
    done = subprocess.run(
        [sys.executable, "-m", "ucd_ray.cli", "results", "tiny", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(done.stdout)
    assert [row["state"] for row in rows] == ["COMPLETE", "COMPLETE"]
    assert rows[0]["kd.weight"] == 10
    assert all(row["step1_miou_all"] is not None and row["seconds"] > 0 for row in rows)


def test_a_killed_driver_goes_on_with_the_same_trials(home: Path) -> None:
    two = ("--trials", "2", "--set", "optim.epochs_new=6")
    process = start(home, *two)
    created = read_until(process, r"trial 1 step 1 epoch 1/6")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = start(home, *two)
    output = read_until(again, "mIoU in percent on val")
    assert again.wait(timeout=60) == 0
    first, second = (line for line in created if "created: kd" in line)
    assert second in output, "the open trial keeps number and params"
    assert first not in output, "the finished trial is not repeated"
    assert not any("base step" in line for line in output)
    table = "\n".join(output)
    assert table.count("COMPLETE") >= 2


def test_ctrl_c_ends_everything_and_the_same_command_goes_on(home: Path) -> None:
    one = ("--trials", "1", "--set", "optim.epochs_new=6")
    process = start(home, *one)
    read_until(process, r"trial 0 step 1 epoch 1/6")
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "the same command goes on where it stopped" in output
    assert "Traceback" not in output
    again = start(home, *one)
    lines = read_until(again, "mIoU in percent on val")
    assert again.wait(timeout=60) == 0
    assert not any("base step" in line for line in lines)
    assert "COMPLETE" in "\n".join(lines)


def test_pruned_trials_leave_all_cpus_free(home: Path, shared_head: str) -> None:
    recipe = {**TINY, "method": "mib", "optim.epochs_new": 50}
    pruner = "threshold:lower=1000,warmup=0"
    table = run_study(spec(trials=5, recipe=recipe, pruner=pruner), address=shared_head)
    assert table["state"].to_pylist() == ["PRUNED"] * 5
    assert set(table["code"].to_pylist()) == {"PRUNER"}
    assert free_cpus(shared_head)


def test_a_nan_loss_fails_its_trial_and_the_study_goes_on(home: Path, shared_head: str) -> None:
    search = {"kd.weight": {"choices": [10.0, 1e38]}}
    values = spec(search=search, first={"kd.weight": 1e38}, sampler="random", trials=3)
    table = run_study(values, address=shared_head)
    rows = table.to_pylist()
    assert rows[0]["state"] == "FAILED"
    assert rows[0]["code"] == "NAN"
    assert re.search(r"loss term '\w+' became (nan|inf) at step 1, iteration \d", rows[0]["reason"])
    assert table.num_rows == 3
    assert "COMPLETE" in {row["state"] for row in rows if row["kd.weight"] == 10}


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_worker_that_is_lost_costs_at_most_one_epoch(
    home: Path, fault: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "10")
    process = start(home, "--trials", "1", "--set", "optim.epochs_new=6")
    read_until(process, r"trial 0 step 1 epoch 2/6")
    training_worker(process.pid).send_signal(fault)
    lines = read_until(process, "mIoU in percent on val")
    assert process.wait(timeout=60) == 0
    epochs = [int(m[1]) for line in lines if (m := re.search(r"step 1 epoch (\d)/6", line))]
    assert sorted(set(epochs)) == epochs[: len(set(epochs))] or len(epochs) - len(set(epochs)) <= 1
    assert epochs[-1] == 6
    assert len(epochs) - len(set(epochs)) <= 1, "at most one epoch is trained twice"
    assert "COMPLETE" in "\n".join(lines)


def training_worker(driver: int) -> psutil.Process:
    """The worker of the only open trial."""
    for process in psutil.Process(driver).children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            return process
    raise AssertionError("no training worker found")


def test_results_are_arrow_tables_with_one_row_per_trial(home: Path, shared_head: str) -> None:
    table = run_study(spec(trials=1), address=shared_head)
    assert isinstance(table, pa.Table)
    assert table.num_rows == 1
    again = run_study(spec(trials=1), address=shared_head)
    assert again.equals(table), "a finished study is not started again"


def test_a_killed_head_ends_the_study_with_a_reason_and_a_new_one_goes_on(home: Path) -> None:
    process = start(home, "--trials", "1", "--set", "optim.epochs_new=6")
    lines = read_until(process, r"trial 0 step 1 epoch 2/6")
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.name() in ("gcs_server", "raylet"):
            child.kill()
    output = process.communicate(timeout=150)[0]
    assert process.returncode == 2, output
    assert "lost the Ray cluster" in output and "the same command goes on" in output
    assert "Traceback" not in output
    again = start(home, "--trials", "1", "--set", "optim.epochs_new=6")
    lines += output.splitlines() + read_until(again, "mIoU in percent on val")
    assert again.wait(timeout=60) == 0
    epochs = [int(m[1]) for line in lines if (m := re.search(r"step 1 epoch (\d)/6", line))]
    assert sorted(set(epochs)) == list(range(1, 7))
    assert len(epochs) - 6 <= 1, "at most one epoch is trained again"
