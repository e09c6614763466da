"""The events of a study, without a gap however often the connection breaks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import httpx_sse
from pydantic import BaseModel

from ucd_ray.client.http import Away, Http
from ucd_ray.errors import ServiceError
from ucd_ray.service.states import Condition
from ucd_ray.service.trial_views import Line

FIRST_PAUSE_S, MOST_PAUSE_S = 0.05, 5.0  # before a broken stream is opened again


class StudyState(BaseModel):
    """What a study does, and why it does not go on."""

    state: str
    conditions: list[Condition]


def events(
    http: Http, study: str, *, after: int = 0, number: int | None = None, follow: bool = True
) -> Iterator[Line | StudyState]:
    """Events with ids above `after` in order, each once; and the study's state, as it is and as it changes.

    number: of one trial only; follow: also those that come, until the caller has enough
    Raises RequestRefused, ServiceError once the service has been away for longer than our patience.
    """
    path = f"/v1/studies/{study}/events"
    query = {"number": number, "follow": "true" if follow else "false"}
    params = {key: value for key, value in query.items() if value is not None}
    empty = 0  # connections in a row that brought nothing
    while True:
        seen = after
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        try:
            with http.streamed(path, params=params, headers=headers) as response:
                for message in httpx_sse.EventSource(response).iter_sse():
                    if message.event == "study":
                        yield StudyState.model_validate_json(message.data)
                    elif message.data:
                        line = Line.model_validate_json(message.data)
                        after = line.id
                        yield line
        except ServiceError as error:
            if type(error) is not ServiceError:
                raise
            _reach(http)  # it waits with patience; raises if the service is gone
        else:
            if not follow:
                return
        empty = empty + 1 if after == seen else 0
        time.sleep(min(MOST_PAUSE_S, FIRST_PAUSE_S * 2**empty))


def _reach(http: Http) -> None:
    """Waits until the service answers again."""

    def look() -> httpx.Response:
        try:
            response = http.client.get("/healthz")
        except httpx.TransportError as error:
            told = f"the service at {http.server} does not answer: {error}"
            raise Away(ServiceError(told)) from None
        if not response.is_success:
            raise Away(ServiceError(f"the service at {http.server} answers {response.status_code}"))
        return response

    http.trying(look)
