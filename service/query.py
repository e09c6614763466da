"""Unknown query parameters are refused: a mistyped filter must not list everything."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from ucd_ray.errors import did_you_mean
from ucd_ray.service.problems import Problem

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Route(APIRoute):
    """A route that looks at the query before its dependencies are solved."""

    def get_route_handler(self) -> Handler:
        """What answers."""
        answer = super().get_route_handler()

        async def checked(request: Request) -> Response:
            if request.scope["query_string"]:
                check_query(request)
            return await answer(request)

        return checked


def check_query(request: Request) -> None:
    """Raises Problem (422) for a query parameter that the OpenAPI does not list for this route."""
    given = request.query_params.keys()
    paths = request.app.openapi()["paths"]
    operation = paths.get(request.scope["route"].path, {}).get(request.method.lower(), {})
    parameters = operation.get("parameters", ())
    known = [p["name"] for p in parameters if p["in"] == "query"]
    errors = [
        {
            "pointer": f"#query/{name}",
            "code": "UNKNOWN",
            "detail": f"unknown query parameter '{name}'; "
            + (did_you_mean(name, known) if known else "there is none here"),
        }
        for name in given
        if name not in known
    ]
    if errors:
        raise Problem(422, "INVALID", "; ".join(error["detail"] for error in errors), errors)
