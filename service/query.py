"""Unknown query parameters are refused: a mistyped filter must not list everything."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from ucd_ray.errors import ConfigError, did_you_mean
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
    told = {
        name: f"unknown query parameter '{name}'; "
        + (did_you_mean(name, known) if known else "there is none here")
        for name in given
        if name not in known
    }
    if told:
        raise wrong_query(told, "UNKNOWN")


def wrong_query(told: Mapping[str, str], code: str = "INVALID") -> Problem:
    """What is wrong with query parameters, a sentence for each."""
    errors = [
        {"pointer": f"#query/{name}", "code": code, "detail": text} for name, text in told.items()
    ]
    return Problem(422, "INVALID", "; ".join(told.values()), errors)


@contextmanager
def of_query(name: str) -> Iterator[None]:
    """Turns a ConfigError into a Problem (422) that points at a query parameter."""
    try:
        yield
    except ConfigError as error:
        raise wrong_query({name: str(error)}) from None
