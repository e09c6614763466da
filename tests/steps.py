"""Runs in processes of their own, for tests of what they share; `python -m tests.steps JOB OUT [HANG]`."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ucd_ray.job import Job
from ucd_ray.train import LocalContext, Report, train_run

PATIENCE_S = 240.0  # a busy machine


class Process:
    """A run in another process; it begins when `go` is called."""

    def __init__(self, job: Job, folder: Path, *, hang: bool = False) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        (folder / "job").write_bytes(pickle.dumps(job))
        command = [sys.executable, "-m", "tests.steps", str(folder), *(["hang"] if hang else [])]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def is_ready(self) -> bool:
        """Whether the process waits for `go`."""
        return (self.folder / "ready").exists() or self._ended()

    def go(self) -> None:
        """Lets the run begin, once the process is ready."""
        wait_until(self.is_ready)
        (self.folder / "go").touch()

    def reports(self) -> list[Report]:
        """The reports so far."""
        path = self.folder / "reports"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_for(self, kind: str) -> Report:
        """The first report of a kind."""
        wait_until(lambda: any(r["kind"] == kind for r in self.reports()) or self._ended())
        return next(report for report in self.reports() if report["kind"] == kind)

    def end(self) -> list[Report]:
        """All reports of a run that ends by itself."""
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, errors
        return self.reports()

    def kill(self) -> None:
        """As the kernel does when memory is short; the process stays a zombie until `reap`."""
        self.process.kill()

    def reap(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.communicate()

    def _ended(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the process ended: {self.process.communicate()[1]}")
        return False


def wait_until(happened: Any) -> None:
    """Returns when `happened()` is true."""
    limit = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.05)


def main(folder: Path, *, hang: bool) -> None:
    """Runs the job of a folder; with `hang` it stops for ever after its first epoch."""
    job = pickle.loads((folder / "job").read_bytes())
    (folder / "ready").touch()
    wait_until((folder / "go").exists)
    with (folder / "reports").open("w", buffering=1) as out:

        def write(report: Report) -> None:
            out.write(json.dumps(report) + "\n")
            while hang and report["kind"] == "epoch":
                time.sleep(1)

        train_run(job, LocalContext(write))


if __name__ == "__main__":
    main(Path(sys.argv[1]), hang="hang" in sys.argv)
