"""Studies as jobs of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from pydantic import BaseModel

from ucd_ray.errors import ClusterError, ConfigError
from ucd_ray.service.jobs import Jobs, JobStatus, Resources, State
from ucd_ray.service.ray_api import RayApi
from ucd_ray.service.settings import Settings
from ucd_ray.tune.cluster import LEAN, local_head
from ucd_ray.tune.places import places

MOST_NODES = 10_000  # that Ray lists at a time


class Anything(BaseModel):
    """An answer whose content does not matter."""


class Job(BaseModel):
    """What the Jobs API says of a job."""

    status: State
    message: str | None = None
    driver_exit_code: int | None = None


class Log(BaseModel):
    """What a job has printed."""

    logs: str


class Node(BaseModel):
    """What the State API says of a node."""

    state: str
    resources_total: dict[str, float] | None


class Nodes(BaseModel):
    """The nodes that could be asked for, and what is missing."""

    result: list[Node]
    total: int
    num_after_truncation: int
    partial_failure_warning: str | None = None


class NodesData(BaseModel):
    """Inside of an answer."""

    result: Nodes


class NodesAnswer(BaseModel):
    """An answer of the State API."""

    data: NodesData


class RayJobs:
    """The jobs of one cluster, which starts a study with `python`."""

    def __init__(self, api: RayApi, database: str, python: str) -> None:
        self.api, self.python = api, python
        self.environment = job_environment(database)

    def submit(self, job: str, study: str) -> None:
        """See Jobs."""
        body = {
            "entrypoint": shlex.join((self.python, "-m", "ucd_ray.service.job", study)),
            "submission_id": job,
            "runtime_env": {"env_vars": self.environment},
            "metadata": {"study": study},
        }
        try:
            self.api.ask(Anything, "POST", "/api/jobs/", json=body)
        except ClusterError:
            if self.status(job) is None:  # else it was there already
                raise

    def status(self, job: str) -> JobStatus | None:
        """See Jobs."""
        answer = self.api.send("GET", f"/api/jobs/{job}")
        if answer.status_code == 404 and f"Job {job} does not exist" in answer.text:
            return None  # Ray's own words: a proxy's 404 says nothing about the job
        found = self.api.content(Job, answer)
        return JobStatus(found.status, found.message or "", found.driver_exit_code)

    def stop(self, job: str) -> None:
        """See Jobs."""
        self.api.ask(Anything, "POST", f"/api/jobs/{job}/stop")

    def logs(self, job: str) -> str:
        """See Jobs."""
        return self.api.ask(Log, "GET", f"/api/jobs/{job}/logs").logs

    def resources(self) -> Resources:
        """See Jobs."""
        params = {"detail": True, "limit": MOST_NODES}
        found = self.api.ask(NodesAnswer, "GET", "/api/v0/nodes", params=params).data.result
        if found.partial_failure_warning or found.total != found.num_after_truncation:
            raise self.api.failure(
                found.partial_failure_warning or "its list of nodes is cut short"
            )
        alive = [node.resources_total or {} for node in found.result if node.state == "ALIVE"]
        return Resources(*(sum(n.get(kind, 0.0) for n in alive) for kind in ("CPU", "GPU")))


def job_environment(database: str) -> dict[str, str]:
    """The environment of a study's driver: places without secrets.  Raises ConfigError.

    The dashboard shows it.  A password reaches the driver by a file, or by what libpq reads on its host.
    """
    url = sa.make_url(database)
    if url.password or any("password" in key for key in url.query):
        raise ConfigError(
            "the database's URL has a password in it, which the jobs of studies must not carry; "
            "give it in the file that UCD_RAY_DATABASE_PASSWORD_FILE names, or in ~/.pgpass"
        )
    own = {
        key: value
        for key, value in os.environ.items()
        if key.startswith("UCD_RAY_") and not key.startswith("UCD_RAY_SERVICE_")
    }
    return {**own, "UCD_RAY_HOME": str(places().home), "UCD_RAY_DATABASE": database}


@contextlib.contextmanager
def cluster(settings: Settings) -> Iterator[tuple[Jobs, str]]:
    """The cluster of the settings, or a head on this machine that ends with the block; its dashboard.

    Raises ClusterError, ConfigError.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in LEAN.items()})
    job_environment(settings.database)  # refused before a head is started
    home = places().home
    if settings.ray_dashboard is None:
        with local_head(home) as (_, dashboard):
            url = f"http://{dashboard}"
            yield RayJobs(RayApi(url), settings.database, sys.executable), url
        return
    use_token(settings.ray_token_file)
    api = RayApi(settings.ray_dashboard)
    yield RayJobs(api, settings.database, "python"), settings.ray_dashboard


def use_token(file: Path | None) -> None:
    """Has requests to the cluster carry its token.  Raises ConfigError if others can read the file."""
    if file is None:
        return
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"ray_token_file '{file}': {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(
            f"ray_token_file '{file}' can be read by others (mode {mode:04o}); `chmod 600` it"
        )
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(file))
