"""The metrics of the service."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from ucd_ray.service.auth import Reader
from ucd_ray.service.core import CoreOf
from ucd_ray.service.problems import responses
from ucd_ray.service.query import Route

router = APIRouter(route_class=Route, tags=["operations"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Text that Prometheus reads.", "content": {"text/plain": {}}},
        **responses(),
    },
)
def get_metrics(viewer: Reader, core: CoreOf) -> Response:
    """Studies and trials by state, waits, cache hits, GPU seconds, request times by route."""
    return Response(core.metrics.text(), media_type=CONTENT_TYPE_LATEST)
