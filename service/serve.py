"""`ucd-ray serve`: the service as a process, with a Ray head of its own unless it is given a cluster."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from ucd_ray.errors import ConfigError
from ucd_ray.service.app import create_app
from ucd_ray.service.auth import is_loopback
from ucd_ray.service.database import open_database
from ucd_ray.service.ray_jobs import cluster
from ucd_ray.service.settings import Settings
from ucd_ray.service.tokens import has_tokens

SHUTDOWN_S = 5  # for open streams


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serves until it is interrupted.  Studies that run are adopted at the next start.

    say: is told where the service is, and who may use it
    Raises ConfigError for an address that is taken or would be open to everybody; ClusterError, StudyError.
    """
    tokens = open_database(settings.database).read(has_tokens)
    if not tokens and not is_loopback(settings.host):
        raise ConfigError(
            f"host '{settings.host}' can be reached by others, and there is no token yet; make one with "
            "`ucd-ray token create OWNER`, or listen on 127.0.0.1"
        )
    with listener(settings.host, settings.port) as taken, cluster(settings) as (jobs, dashboard):
        signal.signal(signal.SIGTERM, _end)  # else it would end before the head does
        app = create_app(settings, jobs, dashboard=dashboard)
        config = uvicorn.Config(
            app,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        host, port = taken.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        say(f"ucd-ray serves http://{shown}:{port}  (Ray dashboard: {dashboard})")
        if not tokens:
            say("there is no token: only programs on this machine are answered, as owner 'local'")
        Server(config).run(sockets=[taken])


class Server(uvicorn.Server):
    """Ends open streams in order before their connections are closed."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Once no new requests are to be answered."""
        app: Any = self.config.app
        app.state.core.tails.end()
        await super().shutdown(sockets)


def listener(host: str, port: int) -> socket.socket:
    """A socket on an address.  Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port"
        ) from None


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
