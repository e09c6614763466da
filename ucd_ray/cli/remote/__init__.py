"""`ucd-ray --server URL`: which commands a service carries out, and how they get there.

The root of the command line chooses the server.  A command with `over_http` then runs its namesake of this
package, with those of its options that the namesake has; any other that is given is refused.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from ucd_ray.errors import ConfigError

if TYPE_CHECKING:
    from ucd_ray.client import Client

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

OVER_HTTP = ("tune", "results", "report", "study")
EVERYWHERE = ("scenarios", "presets", "config", "doctor")  # the same with and without a server
_server: ContextVar[str | None] = ContextVar("server", default=None)


class Left(SystemExit):
    """Ctrl-C while a study of a service was followed: it goes on."""


def choose_server(url: str | None, command: str | None) -> None:
    """The server of this invocation.  Raises ConfigError for a command that works on this machine only."""
    if url and command is not None and command not in (*OVER_HTTP, *EVERYWHERE):
        raise _only_here(command)
    _server.set(url or None)


def server() -> str | None:
    """The URL of the service that carries commands out; None: they run here."""
    return _server.get()


def connected() -> Client:
    """A client of the chosen server."""
    from ucd_ray.client import Client

    url = server()
    assert url is not None
    return Client(url)


def over_http(place: str) -> Callable[[CommandT], CommandT]:
    """With a server, the command is a function of this package.  place: `module:function`"""

    def decorate(command: CommandT) -> CommandT:
        @functools.wraps(command)
        def run(*arguments: Any, **options: Any) -> Any:
            if server() is None:
                return command(*arguments, **options)
            module, _, name = place.partition(":")
            function = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            given = inspect.signature(command).bind(*arguments, **options).arguments
            known = inspect.signature(function).parameters
            refuse(command, {name: value for name, value in given.items() if name not in known})
            return function(**{name: value for name, value in given.items() if name in known})

        return run  # type: ignore[return-value]

    return decorate


def here_only(instead: str) -> Callable[[CommandT], CommandT]:
    """Refuses the command if there is a server.  instead: what there is over HTTP"""

    def decorate(command: CommandT) -> CommandT:
        @functools.wraps(command)
        def run(*arguments: Any, **options: Any) -> Any:
            if server() is not None:
                raise _only_here(command.__name__.replace("_", " "), instead)
            return command(*arguments, **options)

        return run  # type: ignore[return-value]

    return decorate


def refuse(command: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first option that is not at its default."""
    parameters = inspect.signature(command).parameters
    for name, value in options.items():
        if value != parameters[name].default:
            told = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{told} works on this machine only; leave it or --server out")


def _only_here(command: str, instead: str = f"there are {', '.join(OVER_HTTP)}") -> ConfigError:
    return ConfigError(
        f"`ucd-ray {command}` works on this machine only; leave --server (or UCD_RAY_SERVER) out; "
        f"over HTTP {instead}"
    )
