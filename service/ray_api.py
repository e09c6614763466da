"""A Ray cluster asked over HTTP: the Jobs API and the State API, which its dashboard serves.

Ray's own client sends the same requests, and brings 45 MB of Ray into a process that only asks.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from ucd_ray.errors import ClusterError, ConfigError

TIMEOUT = httpx.Timeout(30.0, connect=10.0)  # Ray gives itself 24 s for the list of nodes
SERVICE_ACCOUNT = "/var/run/secrets/ray.io/serviceaccount/token"  # Kubernetes

Shape = TypeVar("Shape", bound=BaseModel)


class RayApi:
    """Requests to one cluster.

    dashboard: its URL
    transport: instead of a network
    Raises ConfigError if that is no URL.
    """

    def __init__(self, dashboard: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self.dashboard = dashboard
        wrong = ConfigError(f"ray_dashboard '{dashboard}' must be a URL such as http://head:8265")
        try:
            self._client = httpx.Client(base_url=dashboard, timeout=TIMEOUT, transport=transport)
        except httpx.InvalidURL:
            raise wrong from None
        if self._client.base_url.scheme not in ("http", "https") or not self._client.base_url.host:
            raise wrong

    def send(self, method: str, path: str, **sent: Any) -> httpx.Response:
        """The answer, whatever its status.  Raises ClusterError."""
        try:
            return self._client.request(method, path, headers=headers(), **sent)
        except httpx.HTTPError as error:
            raise self.failure(str(error) or type(error).__name__) from None

    def ask(self, shape: type[Shape], method: str, path: str, **sent: Any) -> Shape:
        """What is answered.  Raises ClusterError."""
        return self.content(shape, self.send(method, path, **sent))

    def content(self, shape: type[Shape], answer: httpx.Response) -> Shape:
        """What an answer says.  Raises ClusterError."""
        if answer.status_code != 200:
            raise self.failure(_refusal(answer))
        try:
            return shape.model_validate_json(answer.content)
        except ValidationError:
            raise self.failure(f"its answer to {answer.url.path} is not one of Ray's") from None

    def failure(self, cause: str) -> ClusterError:
        """The error that tells of a cause, which may be long."""
        first = (cause.strip().splitlines() or ["no reason given"])[0]
        return ClusterError(f"the Ray cluster at {self.dashboard} failed: {first}")


def _refusal(answer: httpx.Response) -> str:
    """Why a request failed, in one line."""
    try:
        text = str(answer.json()["msg"])
    except (ValueError, KeyError, TypeError):
        text = answer.text
    lines = text.strip().splitlines() or [answer.reason_phrase]
    line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    mend = "; --ray-token-file names the file with its token"
    return f"it answers {answer.status_code}: {line}{mend * (answer.status_code in (401, 403))}"


def headers() -> dict[str, str]:
    """With the cluster's token, if Ray's environment asks for one.  Raises ClusterError."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return {}
    source, text = _token()
    if not re.fullmatch(r"[!-~]+", text):  # an error of HTTP would show it
        raise ClusterError(f"{source}, Ray's token, is empty or has characters that no token has")
    return {"Authorization": f"Bearer {text}"}


def _token() -> tuple[str, str]:
    """Where Ray would look for its token, and what is there."""
    if text := os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN", text.strip()
    kubernetes = os.environ.get("RAY_ENABLE_K8S_TOKEN_AUTH", "").lower() in ("1", "true")
    usual = SERVICE_ACCOUNT if kubernetes else "~/.ray/auth_token"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or usual).expanduser()
    try:
        return f"'{path}'", path.read_text(errors="replace").strip()
    except OSError as error:
        raise ClusterError(f"'{path}', the file of Ray's token: {error.strerror}") from None
