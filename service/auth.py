"""Who asks, and what they may do."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ucd_ray.service.core import Core, core_of
from ucd_ray.service.problems import Problem
from ucd_ray.service.repeated import EXPIRES
from ucd_ray.service.tokens import SCOPES, Token, digest, find_token, has_tokens

LOCAL = "local"  # the owner of everything while there is no token
bearer = HTTPBearer(auto_error=False, description="A token of `ucd-ray token create`.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


@dataclass(frozen=True)
class Viewer:
    """Who makes a request."""

    owner: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether a scope is among theirs, or contained in one."""
        return not self.scopes.isdisjoint(SCOPES[SCOPES.index(scope) :])


async def viewer(request: Request, credentials: Credentials) -> Viewer:
    """Who makes a request.  Raises Problem (401) without a valid token.

    While no token exists, whoever reaches the service over loopback is its user.
    """
    core = core_of(request)  # not as one more dependency: every request solves these
    if credentials is None and "authorization" not in request.headers:
        if _is_local(request) and not await _has_tokens(core):
            return Viewer(LOCAL, frozenset(SCOPES))
        raise _unknown("this needs a token: `Authorization: Bearer ucd_...`")
    found = await _token(core, credentials.credentials) if credentials else None
    if found is None or found.state(time.time()) != "valid":
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


def _with_scope(viewer: Viewer, scope: str) -> Viewer:
    if not viewer.may(scope):
        raise Problem(403, "FORBIDDEN", f"this needs a token with the scope '{scope}'")
    return viewer


async def reader(viewer: Annotated[Viewer, Depends(viewer)]) -> Viewer:
    """Someone who may read."""
    return _with_scope(viewer, "read")


async def writer(viewer: Annotated[Viewer, Depends(viewer)]) -> Viewer:
    """Someone who may start and change studies."""
    return _with_scope(viewer, "write")


async def admin(viewer: Annotated[Viewer, Depends(viewer)]) -> Viewer:
    """Someone who may do everything, to all studies."""
    return _with_scope(viewer, "admin")


Reader = Annotated[Viewer, Depends(reader)]
Writer = Annotated[Viewer, Depends(writer)]
Admin = Annotated[Viewer, Depends(admin)]
