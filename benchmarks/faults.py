"""Does a study survive?  Kills its driver at random moments, or stops many trials, and looks what is left.

    python benchmarks/faults.py kills --count 20
    python benchmarks/faults.py stops --count 100 [--per-trial]

`kills` runs a study once undisturbed and once with its driver killed (SIGKILL) `count` times, both on one
private Ray head, one trial at a time, and compares every number.  `stops` runs a study whose trials are all
stopped early, half of them by a command, and counts processes, placement groups and files 30 s later.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

TINY = {
    "model.backbone": "test_resnet",
    "model.width": 16,
    "model.output_stride": 16,
    "data.crop": 48,
    "data.batch_size": 16,
    "optim.iterations_base": 6,
    "optim.iterations_new": "null",
    "optim.lr_base": 0.05,
    "eval.max_images": 8,
}
OF_THE_CLUSTER = ("DashboardAgent", "RuntimeEnvAgent", "_AutoscalingCoordinatorActor")  # one each
console = Console()


def tune(home: Path, address: str, *options: str, **values: Any) -> subprocess.Popen[str]:
    """`ucd-ray tune` on a tiny scenario, in a process of its own."""
    pairs = [f"{key}={value}" for key, value in {**TINY, **values}.items()]
    sets = [word for pair in pairs for word in ("--set", pair)]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "ucd_ray.cli", "tune", "--scenario", "shapes-8-4"),
            *("--method", "mib", "--name", "study", "--deterministic", "--address", address),
            *sets,
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "UCD_RAY_HOME": str(home), "OMP_NUM_THREADS": "1"},
    )


def rows(home: Path) -> list[dict[str, Any]]:
    """The table of trials of the study."""
    done = subprocess.run(
        [sys.executable, "-m", "ucd_ray.cli", "results", "study", "--format", "json"],
        env={**os.environ, "UCD_RAY_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def end(process: subprocess.Popen[str]) -> str:
    """The output of a process that shall end well."""
    output = process.communicate(timeout=1200)[0]
    if process.returncode != 0:
        raise SystemExit(f"a study ended with {process.returncode}:\n{output[-3000:]}")
    return output


def kills(count: int, trials: int, seed: int, per_trial: bool) -> None:
    """Compares a study with one whose driver is killed `count` times."""
    from ucd_ray.tune.cluster import local_head

    options = ["--trials", str(trials), "--max-concurrent", "1"]
    options += ["--trials-per-run", "1"] if per_trial else []
    values = {"optim.epochs_new": 6}
    folder = Path(tempfile.mkdtemp(prefix="ucd-"))
    chance = random.Random(seed)
    outputs: list[str] = []
    with local_head(folder) as (address, _):
        started = time.monotonic()
        end(tune(folder / "whole", address, *options, **values))
        whole_s = time.monotonic() - started
        killed = 0
        while True:
            process = tune(folder / "killed", address, *options, **values)
            if killed == count:
                outputs.append(end(process))
                break
            wait = chance.uniform(1.0, 35.0)
            try:
                process.wait(timeout=wait)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
                console.print(f"kill {killed} after {wait:.1f} s", highlight=False)
            outputs.append(process.communicate()[0])
            if process.returncode == 0 and killed < count:
                console.print(f"the study ended after {killed} kills: too few trials for {count}")
                break
        whole, after = rows(folder / "whole"), rows(folder / "killed")
    lines = [line for output in outputs for line in output.splitlines()]
    epochs = Counter(
        m[0] for line in lines if (m := re.match(r"trial \d+ step \d+ epoch \d+", line))
    )
    again = sum(n - 1 for n in epochs.values())
    finished = Counter(
        m[1] for line in lines if (m := re.match(r"trial (\d+) (COMPLETE|PRUNED)", line))
    )
    table = Table(title=f"{killed} kills, {trials} trials, undisturbed in {whole_s:.0f} s")
    table.add_column("what")
    table.add_column("found", justify="right")
    table.add_row("trials undisturbed / with kills", f"{len(whole)} / {len(after)}")
    table.add_row("trials with another number, state, param or value", str(differing(whole, after)))
    table.add_row("trials that ended more than once", str(sum(n > 1 for n in finished.values())))
    table.add_row(
        "epochs trained again (at most one per kill)", f"{again} of {sum(epochs.values())}"
    )
    console.print(table)
    shutil.rmtree(folder, ignore_errors=True)
    if whole != after or again > killed or any(n > 1 for n in finished.values()):
        raise SystemExit(1)


def differing(whole: list[dict[str, Any]], after: list[dict[str, Any]]) -> int:
    """How many rows differ."""
    pairs = zip(whole, after, strict=False)
    return sum(a != b for a, b in pairs) + abs(len(whole) - len(after))


def children() -> list[psutil.Process]:
    """All processes below this one."""
    return psutil.Process().children(recursive=True)


def busy(process: psutil.Process) -> str | None:
    """The name of a Ray worker that is no idle one of the pool."""
    try:
        name = "".join(process.cmdline()[:1])
    except psutil.Error:
        return None
    if not name.startswith("ray::") or name.startswith("ray::IDLE"):
        return None
    return None if any(word in name for word in OF_THE_CLUSTER) else name


def stops(count: int, per_trial: bool) -> None:
    """Stops `count` trials early and counts what is left 30 s after the study."""
    import ray
    from ray.util.state import list_placement_groups

    from ucd_ray.tune.cluster import LEAN, local_head

    folder = Path(tempfile.mkdtemp(prefix="ucd-"))
    with local_head(folder) as (address, _):
        head = {process.pid for process in children()}
        before = set(os.listdir(tempfile.gettempdir()))
        options = ["--trials", str(count), "--pruner", "threshold:lower=1000,warmup=0"]
        options += ["--trials-per-run", "1"] if per_trial else []
        started = time.monotonic()
        end(tune(folder / "home", address, *options, **{"optim.epochs_new": 50}))
        seconds = time.monotonic() - started
        time.sleep(30)
        os.environ.update({k: os.environ.get(k, v) for k, v in LEAN.items()})
        ray.init(address, log_to_driver=False, logging_level="ERROR")
        groups = [g for g in list_placement_groups(address, limit=10000) if g.state != "REMOVED"]
        free = ray.available_resources().get("CPU", 0.0)
        total = ray.cluster_resources()["CPU"]
        ray.shutdown()
        left = [
            name for process in children() if process.pid not in head and (name := busy(process))
        ]
        files = sorted(set(os.listdir(tempfile.gettempdir())) - before)
        runs = [p for p in (folder / "home" / "runs").rglob("*") if p.is_file()]
        states = Counter(row["state"] for row in rows(folder / "home"))
    table = Table(title=f"{count} stopped trials in {seconds:.0f} s: what is left 30 s later")
    table.add_column("what")
    table.add_column("left", justify="right")
    table.add_row("states", ", ".join(f"{n} {state}" for state, n in states.items()))
    table.add_row("processes of trials", ", ".join(left) or "0")
    table.add_row("placement groups", str(len(groups)))
    table.add_row("CPUs not free", f"{total - free:g}")
    table.add_row("files in the temporary directory", str(files or 0))
    table.add_row("files of runs", str([str(p) for p in runs] or 0))
    console.print(table)
    shutil.rmtree(folder, ignore_errors=True)
    if left or groups or runs or free < total or states["PRUNED"] != count:
        raise SystemExit(1)


def main() -> None:
    """Parses and runs one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("kills", "stops"))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-trial", action="store_true", help="new workers for every trial")
    arguments = parser.parse_args()
    if arguments.what == "kills":
        kills(arguments.count, arguments.trials, arguments.seed, arguments.per_trial)
    else:
        stops(arguments.count, arguments.per_trial)


if __name__ == "__main__":
    main()
