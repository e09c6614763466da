"""Requests to a service: tried again while it is away, refused with its own sentences."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import httpx
import tenacity

from ucd_ray.errors import ConfigError, RequestRefused, ServiceError

TIMEOUT = httpx.Timeout(60.0, connect=10.0)  # an edit waits for a study's driver
AGAIN = (429, 503)  # nothing was done, or the service or its database is away
IN_FLIGHT = "IN_FLIGHT"  # another try of the same request is being answered

T = TypeVar("T")


class Away(Exception):  # noqa: N818
    """A try that is worth another.  after_s: when, if the service has said so"""

    def __init__(self, cause: ServiceError, after_s: float | None = None) -> None:
        super().__init__(str(cause))
        self.cause, self.after_s = cause, after_s


class Http:
    """The requests of one client.

    transport: instead of a network, such as an application in this process
    patience_s: how long a request is tried again
    """

    def __init__(
        self,
        server: str,
        token: str | None,
        *,
        transport: httpx.BaseTransport | None = None,
        patience_s: float = 60.0,
    ) -> None:
        self.server, self.patience_s = server.rstrip("/"), patience_s
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self.client = httpx.Client(
                base_url=self.server, headers=headers, timeout=TIMEOUT, transport=transport
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ConfigError(f"server '{server}' or its token: {error}") from None
        if self.client.base_url.scheme not in ("http", "https") or not self.client.base_url.host:
            raise ConfigError(f"server '{server}' must be a URL such as http://127.0.0.1:8080")

    def send(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> httpx.Response:
        """The answer, read whole.  Raises RequestRefused, ServiceError.

        repeatable: the same request again does no harm; else it is sent again only if the service cannot
        have seen it, or has refused it for now
        """
        request = self.client.build_request(
            method, path, json=json, params=_given(params), headers=headers
        )
        return self.trying(lambda: self._once(request, repeatable=repeatable))

    @contextlib.contextmanager
    def streamed(
        self, path: str, *, params: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> Iterator[httpx.Response]:
        """An answer that is read piece by piece.  Raises RequestRefused, ServiceError."""
        request = self.client.build_request("GET", path, params=_given(params), headers=headers)
        response = self.trying(lambda: self._once(request, stream=True))
        try:
            with self.failures():
                yield response
        finally:
            response.close()

    def trying(self, call: Callable[[], T]) -> T:
        """What `call` returns, tried again while it raises Away.  Raises ServiceError."""
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Away),
            wait=_pause,
            stop=tenacity.stop_before_delay(self.patience_s),
            reraise=True,
        )
        try:
            return again(call)
        except Away as away:
            raise away.cause from None

    def _once(
        self, request: httpx.Request, *, stream: bool = False, repeatable: bool = True
    ) -> httpx.Response:
        try:
            response = self.client.send(request, stream=stream)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # it was not sent
            raise Away(self._away(error)) from None
        except httpx.TransportError as error:
            if repeatable:
                raise Away(self._away(error)) from None
            raise self._away(error) from None
        if response.is_success or response.status_code == 304:
            return response
        try:
            with self.failures():
                response.read()
        finally:
            response.close()
        problem = refusal(response)
        waits = response.status_code in AGAIN or getattr(problem, "code", "") == IN_FLIGHT
        if waits and (repeatable or response.status_code == 429):
            raise Away(problem, _retry_after(response))
        raise problem

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Turns a connection that breaks into a ServiceError."""
        try:
            yield
        except httpx.TransportError as error:
            raise self._away(error) from None

    def _away(self, error: httpx.TransportError) -> ServiceError:
        cause = str(error) or type(error).__name__
        return ServiceError(f"the service at {self.server} does not answer: {cause}")


GROWING = tenacity.wait_random_exponential(0.2, max=10.0)


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds until the next try: what the service asks for, else more and more."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.after_s if isinstance(error, Away) else None
    return GROWING(state) if asked is None else asked


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() else None


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (params or {}).items() if value is not None}


def refusal(response: httpx.Response) -> ServiceError:
    """The error that an answer tells of, in the words of the service."""
    status = response.status_code
    try:
        content = response.json()
        detail, code = str(content["detail"]), str(content["code"])
        fields = [{str(k): str(v) for k, v in field.items()} for field in content["errors"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        told = f"{response.request.url} answers with {status} {response.reason_phrase}"
        return ServiceError(f"{told}: is it a ucd-ray service?")
    if status >= 500:
        return ServiceError(detail)
    return RequestRefused(detail, status, code, fields)
