"""Which form of an answer a client wants: `Accept`, or `?format=` where no header can be set."""

from __future__ import annotations

from collections.abc import Mapping

import mimeparse
from fastapi import Request

from ucd_ray.service.problems import Problem

TABLES: dict[str, str] = {
    "application/json": "json",
    "text/csv": "csv",
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.apache.arrow.stream": "arrow-stream",
    "application/vnd.apache.arrow.file": "arrow",
    "text/markdown": "markdown",
    "application/x-latex": "latex",
}
CHARTS: dict[str, str] = {
    "application/json": "json",
    "image/svg+xml": "svg",
    "image/png": "png",
}
RECIPES: dict[str, str] = {"application/yaml": "yaml", "application/json": "json"}


def wanted(request: Request, offered: Mapping[str, str], asked: str | None) -> tuple[str, str]:
    """Media type and name of the form to answer in; the first of those offered if all are welcome.

    asked: name of a form that was given in the query
    Raises Problem (406 if none is acceptable, 422 for a name that is none).
    """
    if asked is not None:
        media = next((m for m, name in offered.items() if name == asked), None)
        if media is None:
            told = f"format '{asked}' is none of {', '.join(offered.values())}"
            error = {"pointer": "#query/format", "code": "INVALID", "detail": told}
            raise Problem(422, "INVALID", told, [error])
        return media, asked
    header = request.headers.get("accept") or "*/*"
    try:  # of equally welcome ones the last is taken
        media = mimeparse.best_match(list(offered)[::-1], header)
    except (mimeparse.MimeTypeParseException, ValueError):
        media = ""
    if not media:
        told = (
            f"cannot answer as '{header[:200]}'; send one of these in Accept: {', '.join(offered)}"
        )
        raise Problem(406, "NOT_ACCEPTABLE", told)
    return media, offered[media]


def media_types(offered: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """The `content` of a route's OpenAPI."""
    return {media: {"schema": {}} for media in offered}
