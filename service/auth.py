"""Who asks, and what they may do."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request

from ucd_ray.service.core import Core, core_of
from ucd_ray.service.problems import Problem
from ucd_ray.service.repeated import EXPIRES
from ucd_ray.service.tokens import SCOPES, Token, digest, find_token, has_tokens

LOCAL = "local"  # the owner of everything while there is no token
OPEN = {"/healthz", "/readyz"}  # paths that need no token
SCHEME = {"type": "http", "scheme": "bearer", "description": "A token of `ucd-ray token create`."}


@dataclass(frozen=True)
class Viewer:
    """Who makes a request."""

    owner: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether a scope is among theirs, or contained in one."""
        return not self.scopes.isdisjoint(SCOPES[SCOPES.index(scope) :])


async def _viewer(request: Request) -> Viewer:
    """Who makes a request.  Raises Problem (401) without a valid token.

    While no token exists, whoever reaches the service over loopback is its user.
    """
    core = core_of(request)
    given = request.headers.get("authorization", "")
    if given.strip().lower() in ("", "bearer"):  # the header of a variable that is empty
        if _is_local(request) and not await _has_tokens(core):
            return Viewer(LOCAL, frozenset(SCOPES))
        raise _unknown("this needs a token: `Authorization: Bearer ucd_...`")
    scheme, _, text = given.partition(" ")
    found = await _token(core, text.strip()) if scheme.lower() == "bearer" else None
    if found is None or found.state(time.time()) != "valid":
        if not await _has_tokens(core):
            raise _unknown("there is no token yet: on the service's machine leave the header out")
        raise _unknown("the token is unknown, expired or revoked")
    request.scope["state"][EXPIRES] = found.expires
    return Viewer(found.owner, found.scopes)


async def _has_tokens(core: Core) -> bool:
    return await core.recent.of("has tokens", has_tokens)


async def _token(core: Core, text: str) -> Token | None:
    return await core.recent.of(("token", digest(text)), lambda c: find_token(c, text))


def _unknown(detail: str) -> Problem:
    return Problem(401, "UNAUTHORIZED", detail, headers={"WWW-Authenticate": "Bearer"})


def _is_local(request: Request) -> bool:
    """Whether caller and the name they used are of this machine: no web page reached us by a trick."""
    return is_loopback(request.client.host if request.client else "") and is_loopback(
        request.url.hostname or ""
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _with_scope(request: Request, scope: str) -> Viewer:
    found = await _viewer(request)
    if not found.may(scope):
        raise Problem(403, "FORBIDDEN", f"this needs a token with the scope '{scope}'")
    return found


# They call functions instead of depending on them: every request solves all dependencies.


async def reader(request: Request) -> Viewer:
    """Someone who may read."""
    return await _with_scope(request, "read")


async def writer(request: Request) -> Viewer:
    """Someone who may start and change studies."""
    return await _with_scope(request, "write")


async def admin(request: Request) -> Viewer:
    """Someone who may do everything, to all studies."""
    return await _with_scope(request, "admin")


Reader = Annotated[Viewer, Depends(reader)]
Writer = Annotated[Viewer, Depends(writer)]
Admin = Annotated[Viewer, Depends(admin)]


def describe_tokens(app: FastAPI) -> None:
    """Adds to the app's OpenAPI which operations need a token."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        content = plain()
        parts = content.setdefault("components", {})
        if "securitySchemes" not in parts:
            parts["securitySchemes"] = {"token": SCHEME}
            for path in content["paths"].keys() - OPEN:
                for operation in content["paths"][path].values():
                    operation["security"] = [{"token": []}]
        return content

    app.openapi = openapi  # type: ignore[method-assign]
