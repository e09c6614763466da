"""The loop that keeps rows and cluster together.  Of all replicas, the one with the lease runs it."""

from __future__ import annotations

import logging
import threading
import time

import sqlalchemy as sa

from ucd_ray.errors import ClusterError, StudyError, UcdRayError
from ucd_ray.service import once, usage
from ucd_ray.service.attempts import Attempts
from ucd_ray.service.jobs import Jobs
from ucd_ray.service.lease import Lease
from ucd_ray.service.settings import Settings
from ucd_ray.service.sharing import Sharing
from ucd_ray.service.states import DELETED, QUEUED, WITH_JOB
from ucd_ray.service.studies import StudyRow, row_of
from ucd_ray.service.tables import meter_table, study_table
from ucd_ray.store import Store
from ucd_ray.tune import manage
from ucd_ray.tune.database import Database
from ucd_ray.tune.places import places

HOUSEKEEPING_S = 3600.0
log = logging.getLogger("ucd_ray.service")


class Reconciler:
    """Reconciles one database with one cluster."""

    def __init__(self, settings: Settings, database: Database, jobs: Jobs) -> None:
        self.database, self.jobs, self.tick_s = database, jobs, settings.tick_s
        self.lease = Lease(database, settings.lease_s)
        self.attempts = Attempts(database, jobs, settings.max_attempts)
        self.sharing = Sharing(database, settings, self.attempts)
        self.problem: str | None = None  # that the last look met
        self._clean_at = 0.0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        """Looks from now on, in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the looking, and lets another replica take over at once."""
        self._ends.set()
        self._thread.join(10.0)
        try:
            self.lease.release()
        except StudyError as error:
            log.warning("the lease is not given back: %s", error)

    def _run(self) -> None:
        while not self._ends.is_set():
            try:
                self.tick()
                self._said(None)
            except UcdRayError as error:
                self._said(str(error))
            except Exception:
                log.exception("the reconciler met a bug, and goes on")
            self._ends.wait(self.tick_s)

    def _said(self, problem: str | None) -> None:
        if problem != self.problem:
            log.warning("%s", problem or "the cluster and the database answer again")
        self.problem = problem

    def tick(self) -> bool:
        """One look.  Returns whether this process has the lease.  Raises UcdRayError."""
        if not self.lease.take():
            return False
        there = self.jobs.resources()  # first: a cluster that does not answer has lost nothing yet
        if there.cpus <= 0:  # a head that has just started: nothing can be said about it
            raise ClusterError("the Ray cluster has no living node yet")
        for row in self._rows(*WITH_JOB):
            if not self.lease.is_held:
                return False
            self._settle(row)
        if self.lease.is_held:
            self.sharing.share(self._rows(QUEUED, *WITH_JOB), there)
        if time.monotonic() >= self._clean_at and self.lease.is_held:
            self._clean_at = time.monotonic() + HOUSEKEEPING_S
            self._clean()
        return True

    def _settle(self, row: StudyRow) -> None:
        """One study must not keep the others from being looked at."""
        try:
            usage.count(self.database, row)
            self.attempts.settle(row)
        except ClusterError:
            raise
        except UcdRayError as error:
            log.warning("study %s: %s", row.id, error)

    def _rows(self, *states: str) -> list[StudyRow]:
        query = sa.select(study_table).where(study_table.c.state.in_(states))
        query = query.order_by(study_table.c.created)
        return [row_of(row) for row in self.database.read(lambda c: c.execute(query).all())]

    def _clean(self) -> None:
        once.forget_old(self.database)
        now = time.time()
        for row in self._rows(DELETED):
            if row.purge is not None and row.purge <= now:
                self._purge(row)

    def _purge(self, row: StudyRow) -> None:
        """Removes a deleted study for good; the library's part first, so that it can be done again."""
        try:
            manage.delete(self.database, row.name, Store(places().runs))
        except UcdRayError as error:  # somebody runs it on the cluster
            log.warning("study %s is not purged: %s", row.id, error)
            return

        def work(connection: sa.Connection) -> None:
            connection.execute(meter_table.delete().where(meter_table.c.study == row.id))
            connection.execute(study_table.delete().where(study_table.c.id == row.id))

        self.database.write(work)
