"""Tokens of pages: where the next one begins, and of which list it is."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from ucd_ray.service.problems import Problem

LARGEST = 2**53  # of a whole number that every database takes
Kinds = tuple[type | tuple[type, ...], ...]


def token_of(place: list[Any], *asked: Any) -> str:
    """The token of what follows `place` in the list that was asked for."""
    content = json.dumps([_digest(asked), *place], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode()


def place_of(token: str | None, kinds: Kinds, *asked: Any) -> list[Any] | None:
    """The place in a token, of these kinds; None for the first page.

    Raises Problem (422) if the token is none, or of another list.
    """
    if not token:
        return None
    try:
        digest, *place = json.loads(base64.urlsafe_b64decode(token.encode()))
        fits = len(place) == len(kinds) and all(map(isinstance, place, kinds))
        fits &= all(abs(part) < LARGEST for part in place if isinstance(part, int))
    except (ValueError, TypeError):
        digest, fits = None, False
    if not fits or digest != _digest(asked):
        told = "page_token is not of this list: send the filter and the order that it came with"
        error = {"pointer": "#query/page_token", "code": "PAGE_TOKEN", "detail": told}
        raise Problem(422, "INVALID", told, [error])
    return place


def _digest(asked: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
