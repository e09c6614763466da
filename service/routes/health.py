"""Whether the service lives, and whether it can work."""

from __future__ import annotations

import sqlalchemy as sa
from fastapi import APIRouter
from pydantic import BaseModel

from ucd_ray.service.core import CoreOf
from ucd_ray.service.problems import responses
from ucd_ray.service.query import Route

router = APIRouter(route_class=Route, tags=["operations"])


class Health(BaseModel):
    """An answer is the message."""

    status: str = "ok"
    problem: str | None = None
    """Why studies do not start, if the cluster does not answer."""


@router.head("/healthz", include_in_schema=False)  # as load balancers ask
@router.get("/healthz", responses=responses())
def healthz() -> Health:
    """The process answers."""
    return Health()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses=responses())
def readyz(core: CoreOf) -> Health:
    """The database answers as well; without the cluster studies are still taken, and wait."""
    core.database.read(lambda connection: connection.execute(sa.select(1)).scalar())
    return Health(problem=core.reconciler.problem if core.reconciler else None)
