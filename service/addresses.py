"""What an address has instead of what was asked of it: other methods, other actions."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.routing import Route

from ucd_ray.errors import did_you_mean
from ucd_ray.service.problems import Problem, render, request_id


def install(app: FastAPI, routers: Iterable[APIRouter]) -> None:
    """Makes the app say so; by itself it names the methods of the first route that fits."""
    every = [*app.routes, *(route for router in routers for route in router.routes)]
    routes = [route for route in every if isinstance(route, Route)]

    async def on_method(request: Request, _: Exception) -> JSONResponse:
        problem = wrong_method(request.method, request.scope["path"], routes)
        return render(problem, request_id(request))

    app.add_exception_handler(405, on_method)


def wrong_method(method: str, path: str, routes: Iterable[Route]) -> Problem:
    """What is wrong with a request of a method that no route takes: 405, or 404 for an unknown action."""
    base, colon, action = path.rpartition(":")
    actions = {}
    for route in routes:
        name = route.path.rpartition(":")[2]
        if colon and ":" in route.path and route.path_regex.match(f"{base}:{name}"):
            actions[name] = route
    if actions and action not in actions:
        told = f"there is no action '{action}' here; {did_you_mean(action, actions)}"
        return Problem(404, "NO_ACTION", told)
    fitting = [actions[action]] if actions else [r for r in routes if r.path_regex.match(path)]
    allowed = ", ".join(sorted({name for route in fitting for name in route.methods or ()}))
    told = f"{method} is not possible here; what is: {allowed}"
    return Problem(405, "METHOD_NOT_ALLOWED", told, headers={"Allow": allowed})
