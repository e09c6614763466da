"""The events of a study as a stream, and the log of a trial."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from sse_starlette import EventSourceResponse, ServerSentEvent

from ucd_ray.service.core import CoreOf
from ucd_ray.service.events import Event, Tail
from ucd_ray.service.problems import Problem, responses
from ucd_ray.service.query import Route
from ucd_ray.service.routes.trials import MOST, TrialNumber, check_trial
from ucd_ray.service.studies import Visible
from ucd_ray.service.trial_views import Lines
from ucd_ray.tune.event_data import ENDED, is_by
from ucd_ray.tune.events import events

router = APIRouter(route_class=Route, prefix="/v1/studies/{study_id}", tags=["events"])

PING_S = 15  # between signs of life
SEND_S = 30.0  # that a client may take for one event before it is cut off
LINES = 1000  # of one answer
LARGEST = 2**62

OfTrial = Annotated[int | None, Query(ge=0, le=MOST, description="Of this trial only.")]
Follow = Annotated[bool, Query(description="Also those that are still to come.")]
Since = Annotated[
    int, Query(ge=0, le=LARGEST, description="Only lines after the one with this id.")
]
Replicate = Annotated[
    int | None, Query(ge=0, le=MOST, description="Of the workers of this replicate only.")
]
Worker = Annotated[
    int | None, Query(ge=0, le=MOST, description="Only what the workers of this rank said.")
]


@router.get(
    "/events",
    response_class=EventSourceResponse,
    responses={
        200: {"description": "The stream.", "content": {"text/event-stream": {}}},
        **responses(),
    },
)
async def get_events(
    study: Visible,
    core: CoreOf,
    last_event_id: Annotated[
        str | None, Header(description="The stream goes on after the event with this id.")
    ] = None,
    number: OfTrial = None,
    follow: Follow = True,
) -> Response:
    """States, steps, values and reasons as they come, from the beginning or after `Last-Event-ID`.

    A message is JSON: `id time number kind text data`.  Messages named `study` have no id: they tell the
    state of the study and its conditions, first as it is, then as it changes.
    """
    after = _last_id(last_event_id)
    tail = core.tails.of(study.id, study.name)
    return EventSourceResponse(
        _frames(tail, after, number, follow=follow),
        ping=PING_S,
        send_timeout=SEND_S,
        sep="\n",
        headers={"Cache-Control": "no-store"},
    )


def _last_id(text: str | None) -> int:
    if not text:
        return 0
    if not re.fullmatch(r"\d{1,18}", text):
        raise Problem(400, "LAST_EVENT_ID", "Last-Event-ID is none that a stream of ours gave")
    return int(text)


async def _frames(
    tail: Tail, after: int, number: int | None, *, follow: bool
) -> AsyncIterator[bytes]:
    async for event in tail.follow(after, number, on=follow):
        if isinstance(event, Event):
            yield event.frame
        else:
            yield ServerSentEvent(json.dumps(event), event="study", sep="\n").encode()


@router.get(
    "/trials/{number}/logs",
    response_model=Lines,
    responses={
        200: {"description": "Lines; with `follow` plain text.", "content": {"text/plain": {}}},
        **responses(409),
    },
)
async def get_logs(
    study: Visible,
    core: CoreOf,
    number: TrialNumber,
    since: Since = 0,
    replicate: Replicate = None,
    worker: Worker = None,
    follow: Follow = False,
) -> Response:
    """What was said about a trial by the study's driver and its workers, at most 1000 lines at a time.

    `next` is the `since` of the lines that follow.  With `follow` lines come as text until the trial ends.
    """
    await run_in_threadpool(check_trial, core, study, number)
    if follow:
        tail = core.tails.of(study.id, study.name)
        lines = _lines(tail, since, number, replicate, worker)
        return StreamingResponse(lines, media_type="text/plain; charset=utf-8")
    rows = await run_in_threadpool(
        events, core.database, study.name, number=number, worker=worker, after=since, first=LINES
    )
    found = [event for row in rows if _is_of(event := Event.of(row), replicate)]
    content: dict[str, Any] = {"lines": [event.content() for event in found]}
    return JSONResponse({**content, "next": rows[-1].id if rows else since})


async def _lines(
    tail: Tail, since: int, number: int, replicate: int | None, worker: int | None
) -> AsyncIterator[bytes]:
    async for event in tail.follow(since, number):
        if not isinstance(event, Event):
            continue
        if _is_of(event, replicate) and is_by(event.kind, event.data, worker):
            stamp = datetime.datetime.fromtimestamp(event.time, datetime.UTC)
            yield f"{stamp:%Y-%m-%dT%H:%M:%SZ}  {event.text}\n".encode()
        if event.kind == "finished" and (event.data or {}).get("state") in ENDED:
            return


def _is_of(event: Event, replicate: int | None) -> bool:
    """Whether a line is about a replicate; the only run of a trial is its first."""
    if replicate is None:
        return True
    of = str((event.data or {}).get("of", ""))
    return of.endswith(f"-r{replicate}") or (replicate == 0 and "-r" not in of)
