"""What the routes work with: settings, database, cluster, and what they share from request to request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from ucd_ray.service.drawer import Drawer
from ucd_ray.service.events import Tails
from ucd_ray.service.freshness import Answers, Versions
from ucd_ray.service.jobs import Jobs
from ucd_ray.service.metrics import Metrics
from ucd_ray.service.recent import Reader, Recent, Stamp
from ucd_ray.service.settings import Settings
from ucd_ray.tune.database import Database

if TYPE_CHECKING:  # it imports what the routes of studies work with, and they import this
    from ucd_ray.service.reconciler import Reconciler

WRITERS = 4  # tables that are written at a time


@dataclass
class Core:
    """One instance of the service."""

    settings: Settings
    database: Database
    jobs: Jobs | None = None  # None: studies are queued only, another instance runs them
    dashboard: str | None = None  # address of the cluster's dashboard
    reconciler: Reconciler | None = None
    reader: Reader = field(init=False)
    recent: Recent = field(init=False)
    versions: Versions = field(init=False)
    tails: Tails = field(init=False)
    metrics: Metrics = field(init=False)
    answers: Answers = field(default_factory=Answers)
    drawer: Drawer = field(default_factory=Drawer)
    writers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(WRITERS, "table")
    )

    def __post_init__(self) -> None:
        self.reader = Reader(self.database)
        self.recent = Recent(Stamp(self.database), self.reader)
        self.versions = Versions(self.database, self.recent.stamp)
        self.tails = Tails(self.database)
        self.metrics = Metrics(self.database, self.tails)

    def close(self) -> None:
        """Ends the threads and processes that work for it."""
        self.recent.stamp.close()
        self.reader.close()
        self.drawer.close()
        self.writers.shutdown(wait=False, cancel_futures=True)


def core_of(request: Request) -> Core:
    """The instance that answers a request."""
    found: Core = request.app.state.core
    return found


async def _core_of(request: Request) -> Core:  # else a thread would be taken for it
    return core_of(request)


CoreOf = Annotated[Core, Depends(_core_of)]
