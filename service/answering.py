"""Answers that may be long or the same as before: from memory, as 304, whole or in pieces."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from ucd_ray.service.core import Core
from ucd_ray.service.freshness import Answer, headers, tag_of, unchanged
from ucd_ray.service.problems import Problem
from ucd_ray.service.spool import Fill, Spool
from ucd_ray.service.studies import StudyRow

to_json = json.JSONEncoder(allow_nan=False).encode  # made once


async def version_of(core: Core, study: StudyRow) -> str:
    """The version of a study; from memory if it was read a moment ago.

    Raises Problem (409) as long as nothing of the study is in the library's database.
    """
    fresh = core.versions.fresh(study.name)
    return fresh if fresh is not None else await run_in_threadpool(_read, core, study)


def _read(core: Core, study: StudyRow) -> str:
    check_started(core, study)
    core.database.optuna_storage()  # makes Optuna's tables, if they are not there yet
    return core.versions.read(study.name)


def check_started(core: Core, study: StudyRow) -> None:
    """Raises Problem (409) if no driver has opened the study yet."""
    if core.database.spec(study.name) is None:
        told = f"study '{study.id}' has not started yet, so it has no trials; it is {study.state}"
        raise Problem(409, "NOT_STARTED", told)


async def answered(core: Core, request: Request, version: str, media: str, fill: Fill) -> Response:
    """The answer that `fill` writes, unless the client or our memory has it of this version."""
    tag = tag_of(request, version, media)
    if (same := unchanged(request, tag)) is not None:
        return same
    if (known := core.answers.get(tag)) is not None:
        return Response(known.body, media_type=known.media, headers=headers(tag))
    spool = await Spool.filled(core.writers, fill)
    if (body := spool.whole) is not None:
        core.answers.put(tag, Answer(media, body))
        return Response(body, media_type=media, headers=headers(tag))
    return StreamingResponse(spool.pieces(), media_type=media, headers=headers(tag))


async def answered_json(
    core: Core, request: Request, study: StudyRow, make: Callable[[], Awaitable[Any]]
) -> Response:
    """The same of a short answer: what `make` returns, as JSON."""
    tag = tag_of(request, await version_of(core, study))
    if (same := unchanged(request, tag)) is not None:
        return same
    known = core.answers.get(tag)
    if known is None:
        content = await make()
        known = Answer("application/json", to_json(content).encode())
        core.answers.put(tag, known)
    return Response(known.body, media_type=known.media, headers=headers(tag))
