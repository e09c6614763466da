"""One replica of the service as a process, on a cluster that is a folder.

python -m tests.service.replica DATABASE FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from ucd_ray.service.app import create_app
from ucd_ray.service.jobs import JobStatus, Resources
from ucd_ray.service.serve import listener
from ucd_ray.service.settings import Settings


class FolderCluster:
    """Keeps a file for each job, whoever asks; every start is a line of `starts`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def submit(self, job: str, study: str) -> None:
        try:
            (self.folder / job).touch(exist_ok=False)
        except FileExistsError:
            return
        with (self.folder / "starts").open("a") as lines:
            lines.write(f"{study}\n")

    def status(self, job: str) -> JobStatus | None:
        return JobStatus("RUNNING") if (self.folder / job).exists() else None

    def stop(self, job: str) -> None:
        raise AssertionError("nothing is stopped here")

    def logs(self, job: str) -> str:
        return ""

    def resources(self) -> Resources:
        return Resources(1000.0, 0.0)


def main() -> None:
    """Serves on a free port, which is the first line that it prints."""
    database, folder = sys.argv[1:]
    settings = Settings(database=database, tick_s=0.1, lease_s=1.5, requests_per_minute=10**6)
    with listener("127.0.0.1", 0) as taken:
        app = create_app(settings, FolderCluster(Path(folder)))
        print(taken.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[taken])


if __name__ == "__main__":
    main()
