"""The application: routes, errors and limits put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from ucd_ray.service import addresses, problems
from ucd_ray.service.auth import describe_tokens
from ucd_ray.service.core import Core
from ucd_ray.service.database import open_database
from ucd_ray.service.jobs import Jobs
from ucd_ray.service.limits import Limits
from ucd_ray.service.metrics import Timed
from ucd_ray.service.reconciler import Reconciler
from ucd_ray.service.repeated import Repeated
from ucd_ray.service.routes import ROUTERS
from ucd_ray.service.settings import Settings

TAGS = ("studies", "trials", "results", "events", "catalogue", "operations")  # as shown


def create_app(
    settings: Settings, jobs: Jobs | None = None, *, dashboard: str | None = None
) -> FastAPI:
    """The service over one database.  Raises StudyError if that cannot be opened.

    jobs: the cluster that studies run on; None: they are queued only
    dashboard: its address, for links
    """
    database = open_database(settings.database, wait_s=settings.database_wait_s)
    reconciler = None if jobs is None else Reconciler(settings, database, jobs)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if reconciler is not None:
            reconciler.start()
        yield
        if reconciler is not None:
            reconciler.stop()
        app.state.core.close()

    app = FastAPI(
        title="ucd-ray",
        summary="Hyperparameter studies for incremental semantic segmentation.",
        version=version("ucd-ray"),
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        openapi_tags=[{"name": name} for name in TAGS],
    )
    app.state.core = Core(settings, database, jobs, dashboard or settings.ray_dashboard, reconciler)
    for router in ROUTERS:
        app.include_router(router)
    problems.install(app)
    addresses.install(app, ROUTERS)
    describe_tokens(app)
    app.add_middleware(Repeated, stamp=app.state.core.recent.stamp)
    app.add_middleware(Limits, settings=settings)
    app.add_middleware(Timed, metrics=app.state.core.metrics)
    return app
