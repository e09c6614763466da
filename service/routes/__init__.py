"""The routes.  `ROUTERS` is looked through in order: those first that are asked for most."""

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
    trials.router,
    studies.router,
    results.router,
    events.router,
    networks.router,
    catalogue.router,
    health.router,
    metrics.router,
)
