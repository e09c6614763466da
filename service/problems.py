"""Errors as `application/problem+json` (RFC 9457): all wrong fields at once, each with a JSON pointer."""

from __future__ import annotations

import http
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ucd_ray.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DatabaseError,
    DataError,
    StudyError,
    UcdRayError,
    WeightsError,
    did_you_mean,
)
from ucd_ray.service.wording import worded

MEDIA = "application/problem+json"
log = logging.getLogger("ucd_ray.service")

# The first class that fits decides.
STATUS: tuple[tuple[type[UcdRayError], int, str], ...] = (
    (ConfigError, 422, "INVALID"),
    (DataError, 422, "DATA"),
    (WeightsError, 422, "WEIGHTS"),
    (DatabaseError, 503, "DATABASE_AWAY"),
    (ClusterError, 503, "CLUSTER_AWAY"),
    (CheckpointError, 404, "NOT_STORED"),
    (StudyError, 409, "CONFLICT"),
)


class FieldProblem(BaseModel):
    """One wrong field of a request."""

    pointer: str = Field(
        description="JSON pointer into the body, or `#query/name`, `#header/name`."
    )
    code: str
    detail: str


class ProblemBody(BaseModel):
    """What an error answers with."""

    type: str = "about:blank"
    title: str
    status: int
    code: str = Field(description="What went wrong, for programs.")
    detail: str = Field(description="What went wrong, and what would work.")
    request_id: str
    errors: list[FieldProblem] = []


class Problem(Exception):  # noqa: N818
    """Ends a request with a status, a code for programs and a sentence for people.

    errors: of single fields, each a mapping with pointer, code and detail
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: Sequence[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.errors = [dict(error) for error in errors]
        self.headers = dict(headers or {})


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The part of a route's OpenAPI that lists its errors."""
    content = {MEDIA: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    always = (400, 401, 403, 404, 413, 415, 422, 429, 503)
    return {
        status: {"description": http.HTTPStatus(status).phrase, "content": content}
        for status in sorted({*always, *statuses})
    }


SAME: dict[int | str, dict[str, Any]] = {304: {"description": "It is as `If-None-Match` has it."}}


def tagged(what: str, content: dict[str, Any], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same of a route that answers with a tagged body of one of these media types."""
    return {200: {"description": what, "content": content}, **SAME, **responses(*statuses)}


def problem_of(error: UcdRayError) -> Problem:
    """What an error of the library is over HTTP, with the library's own sentence."""
    for kind, status, code in STATUS:
        if isinstance(error, kind):
            retry = {"Retry-After": "5"} if status == 503 else {}
            return Problem(status, code, str(error), headers=retry)
    return Problem(500, "FAILED", str(error))


def answer(request: Request, problem: Problem) -> JSONResponse:
    """The response of a problem, in words for who asked."""
    problem.detail = worded(problem.detail, getattr(request.state, "studies", ()))
    return render(problem, request_id(request))


def render(problem: Problem, request_id: str) -> JSONResponse:
    """The response of a problem."""
    body = {
        "type": "about:blank",
        "title": http.HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "code": problem.code,
        "detail": problem.detail,
        "request_id": request_id,
        "errors": problem.errors,
    }
    return JSONResponse(body, problem.status, problem.headers, MEDIA)


def pointer(location: Sequence[Any]) -> str:
    """The JSON pointer of where pydantic found something."""
    kind, *path = location or ("body",)
    if path[2:] == ["[key]"]:  # a key of a mapping, such as a label's, is wrong: not its value
        del path[2]
    escaped = [str(part).replace("~", "~0").replace("/", "~1") for part in path]
    base = "" if kind == "body" else f"#{kind}"
    return base + "".join(f"/{part}" for part in escaped)


def field_problems(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Pydantic's findings as errors of fields."""
    return [
        {
            "pointer": pointer(finding["loc"]),
            "code": str(finding["type"]).upper(),
            "detail": str(finding["msg"]).removeprefix("Value error, "),
        }
        for finding in findings
    ]


def _not_there(finding: Mapping[str, Any]) -> str:
    """What is said of a wrong part of a path: which there are, where they can be listed."""
    if finding["type"] != "literal_error":
        return "there is nothing under this address"
    known = re.findall(r"'([^']+)'", finding["ctx"]["expected"])
    return f"there is no '{finding['input']}' under this address; {did_you_mean(finding['input'], known)}"


def _not_sent_as_json(sent: str | None) -> Problem:
    came = "without Content-Type" if sent is None else f"as '{sent[:100]}'"
    told = f"send the body with the header Content-Type: application/json; it came {came}"
    error = {"pointer": "#header/content-type", "code": "NOT_JSON", "detail": told}
    return Problem(415, "UNSUPPORTED_MEDIA_TYPE", told, [error])


def describe_problems(app: FastAPI) -> None:
    """Adds what an error looks like to the app's OpenAPI."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            content = plain()
            template = "#/components/schemas/{model}"
            body = ProblemBody.model_json_schema(ref_template=template)
            parts = body.pop("$defs")
            content.setdefault("components", {}).setdefault("schemas", {}).update(
                ProblemBody=body, **parts
            )
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def install(app: FastAPI) -> None:
    """Makes every error of the app a problem."""
    describe_problems(app)

    async def on_problem(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Problem)
        return answer(request, error)

    async def on_library(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, UcdRayError)
        return answer(request, problem_of(error))

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        found = field_problems(error.errors())
        of_path = [finding for finding in error.errors() if finding["loc"][0] == "path"]
        if any(finding["type"] == "json_invalid" for finding in error.errors()):
            problem = Problem(400, "NOT_JSON", "the body is not JSON", found)
        elif of_path:
            problem = Problem(404, "NOT_FOUND", _not_there(of_path[0]))
        elif error.body and isinstance(error.body, bytes):  # which nobody has parsed
            problem = _not_sent_as_json(request.headers.get("content-type"))
        else:
            told = "; ".join(f"{e['pointer'] or 'the body'}: {e['detail']}" for e in found)
            problem = Problem(422, "INVALID", told, found)
        return render(problem, request_id(request))

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = http.HTTPStatus(error.status_code).name
        problem = Problem(error.status_code, code, str(error.detail), headers=error.headers)
        return render(problem, request_id(request))

    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        log.error("request %s failed", request_id(request), exc_info=error)
        told = f"the service has a bug; its log has the cause under {request_id(request)}"
        return render(Problem(500, "BUG", told), request_id(request))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(UcdRayError, on_library)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_bug)


def request_id(request: Request) -> str:
    """The id under which a request is found in the log."""
    return str(request.scope.get("state", {}).get("request_id", ""))
