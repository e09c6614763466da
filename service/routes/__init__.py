"""The routes.  `ROUTERS` lists them, in the order in which the OpenAPI shows them."""

from __future__ import annotations

from fastapi import APIRouter

from ucd_ray.service.routes import (
    catalogue,
    events,
    health,
    metrics,
    networks,
    results,
    studies,
    trials,
)

ROUTERS: tuple[APIRouter, ...] = (
    studies.router,
    results.router,
    trials.router,
    events.router,
    networks.router,
    catalogue.router,
    health.router,
    metrics.router,
)
