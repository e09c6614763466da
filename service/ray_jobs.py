"""Studies as jobs of a Ray cluster, through Ray's Jobs API."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from ucd_ray.errors import ClusterError, ConfigError
from ucd_ray.service.jobs import Jobs, JobStatus, Resources
from ucd_ray.service.settings import Settings
from ucd_ray.tune.cluster import LEAN, local_head
from ucd_ray.tune.places import places

T = TypeVar("T")


class RayJobs:
    """The jobs of one cluster.  dashboard: address of its dashboard, which serves the Jobs API"""

    def __init__(self, dashboard: str, database: str, python: str) -> None:
        self.dashboard, self.python = dashboard, python
        self.environment = job_environment(database)
        self._client: Any = None

    def submit(self, job: str, study: str) -> None:
        """See Jobs."""
        words = (self.python, "-m", "ucd_ray.service.job", study)
        environment = {"env_vars": self.environment}

        def call(client: Any) -> None:
            client.submit_job(
                entrypoint=shlex.join(words),
                submission_id=job,
                runtime_env=environment,
                metadata={"study": study},
            )

        try:
            self._ask(call)
        except ClusterError:
            if self.status(job) is None:  # else it was there already
                raise

    def status(self, job: str) -> JobStatus | None:
        """See Jobs."""

        def call(client: Any) -> JobStatus | None:
            try:
                found = client.get_job_info(job)
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise
            return JobStatus(found.status.value, found.message or "", found.driver_exit_code)

        return self._ask(call)

    def stop(self, job: str) -> None:
        """See Jobs."""
        self._ask(lambda client: client.stop_job(job))

    def logs(self, job: str) -> str:
        """See Jobs."""
        return str(self._ask(lambda client: client.get_job_logs(job)))

    def resources(self) -> Resources:
        """See Jobs."""

        def call(_: Any) -> Resources:
            from ray.util.state import list_nodes

            nodes = list_nodes(address=self.dashboard, detail=True, limit=10_000)
            alive = [node.resources_total or {} for node in nodes if node.state == "ALIVE"]
            return Resources(*(sum(n.get(kind, 0.0) for n in alive) for kind in ("CPU", "GPU")))

        return self._ask(call)

    def _ask(self, call: Callable[[Any], T]) -> T:
        import requests
        from ray.exceptions import RayError

        try:
            if self._client is None:
                from ray.job_submission import JobSubmissionClient

                self._client = JobSubmissionClient(self.dashboard)
            return call(self._client)
        except (requests.RequestException, OSError, RuntimeError, RayError) as error:
            self._client = None
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ClusterError(f"the Ray cluster at {self.dashboard} failed: {cause}") from None


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
            yield RayJobs(url, settings.database, sys.executable), url
        return
    use_token(settings.ray_token_file)
    yield RayJobs(settings.ray_dashboard, settings.database, "python"), settings.ray_dashboard


def use_token(file: Path | None) -> None:
    """Has Ray's client send the cluster's token.  Raises ConfigError if others can read the file."""
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
