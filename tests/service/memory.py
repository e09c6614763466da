"""A cluster in memory that outlives the service, and a service that is killed at a chosen point."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import sqlalchemy as sa

from ucd_ray.errors import ClusterError
from ucd_ray.service.database import open_database
from ucd_ray.service.jobs import JobStatus, Resources, State
from ucd_ray.service.reconciler import Reconciler
from ucd_ray.service.settings import Settings
from ucd_ray.service.studies import StudyRow, find_study
from ucd_ray.service.tables import lease_table
from ucd_ray.tune import tables as library
from ucd_ray.tune.database import Database


class MemoryCluster:
    """Keeps jobs as a Ray head does, and notes whether a study ever ran twice at a time."""

    def __init__(self, cpus: float = 4.0, gpus: float = 0.0) -> None:
        self.there = Resources(cpus, gpus)
        self.states: dict[str, State] = {}
        self.studies: dict[str, str] = {}
        self.starts: list[str] = []
        self.twice: list[str] = []
        self.said = ""
        self.exit_code: int | None = None  # of jobs that have failed
        self.is_away = False

    def submit(self, job: str, study: str) -> None:
        self._answer()
        if job in self.states:
            return
        if study in (self.studies[other] for other in self.active()):
            self.twice.append(study)
        self.states[job], self.studies[job] = "RUNNING", study
        self.starts.append(job)

    def status(self, job: str) -> JobStatus | None:
        self._answer()
        return JobStatus(self.states[job], "", self.exit_code) if job in self.states else None

    def stop(self, job: str) -> None:
        self._answer()
        if self.states.get(job) == "RUNNING":
            self.states[job] = "STOPPED"

    def logs(self, job: str) -> str:
        return self.said

    def resources(self) -> Resources:
        self._answer()
        return self.there

    def active(self) -> list[str]:
        return [job for job, state in self.states.items() if state == "RUNNING"]

    def lose_head(self) -> None:
        """A new head under the same address, which knows nothing."""
        self.states.clear()

    def _answer(self) -> None:
        if self.is_away:
            raise ClusterError("the cluster is away")


class Killed(BaseException):
    """The process ended here."""


class Deadly:
    """Kills its process at the n-th point: before and after every write and every call of the cluster."""

    def __init__(self, at: int) -> None:
        self.left = at

    def point(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **named: Any) -> Any:
            self.point()
            result = call(*args, **named)
            self.point()
            return result

        return wrapped


class DeadlyCluster:
    """A cluster as a process sees it that is killed around its calls."""

    def __init__(self, cluster: MemoryCluster, deadly: Deadly) -> None:
        self.submit = deadly.around(cluster.submit)
        self.status = deadly.around(cluster.status)
        self.stop = deadly.around(cluster.stop)
        self.logs = deadly.around(cluster.logs)
        self.resources = deadly.around(cluster.resources)


@cache
def opened(url: str) -> Database:
    """A database that all processes of a test share."""
    return open_database(url)


def service(settings: Settings, cluster: MemoryCluster, *, killed_at: int = -1) -> Reconciler:
    """A new process of the service, after the one before has died, and its lease has run out.

    What that one had claimed counts no more: here both are one process, which lives.
    """
    database = Database.__new__(Database)  # its own methods, the same connections
    vars(database).update(vars(opened(settings.database)))
    database.write(lambda c: c.execute(sa.delete(lease_table)))
    database.write(lambda c: c.execute(library.study_table.update().values(driver=None)))
    if killed_at < 0:
        return Reconciler(settings, database, cluster)
    deadly = Deadly(killed_at)
    database.write = deadly.around(database.write)  # type: ignore[method-assign]
    return Reconciler(settings, database, DeadlyCluster(cluster, deadly))


def row(settings: Settings, study_id: str) -> StudyRow:
    """The stored row of a study."""
    found = find_study(opened(settings.database), study_id)
    assert found is not None
    return found
