"""Tokens of users: made once, shown once, kept as a hash."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ucd_ray.errors import ConfigError, StudyError
from ucd_ray.service.tables import token_table
from ucd_ray.tune.database import Database

SCOPES = ("read", "write", "admin")  # each contains those before it
OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,59}")
PREFIX = "ucd"
BY_ID = sa.select(token_table).where(token_table.c.id == sa.bindparam("of"))


@dataclass(frozen=True)
class Token:
    """A token as it is stored."""

    id: str
    owner: str
    scopes: frozenset[str]
    created: float
    expires: float | None
    revoked: float | None

    def state(self, now: float) -> str:
        """valid, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "valid"


def create_token(
    database: Database, owner: str, scopes: Iterable[str], *, days: float | None = None
) -> str:
    """Stores a new token.  Returns its text, which cannot be had again.  Raises ConfigError."""
    chosen = set(scopes)
    if not OWNER.fullmatch(owner):
        raise ConfigError(
            f"owner ({owner!r}) must be 1 to 60 letters, digits, dots, dashes, underscores or @"
        )
    if unknown := sorted(chosen - set(SCOPES)):
        raise ConfigError(f"unknown scope '{unknown[0]}'; choose from: {', '.join(SCOPES)}")
    if not chosen:
        raise ConfigError(f"a token needs a scope; choose from: {', '.join(SCOPES)}")
    now, key, secret = time.time(), secrets.token_hex(6), secrets.token_urlsafe(32)
    row = {
        "id": key,
        "owner": owner,
        "hash": digest(secret),
        "scopes": " ".join(s for s in SCOPES if s in chosen),
        "created": now,
        "expires": None if days is None else now + days * 86_400,
    }
    database.write(lambda connection: connection.execute(token_table.insert(), row))
    return f"{PREFIX}_{key}_{secret}"


def list_tokens(database: Database) -> list[Token]:
    """All tokens, oldest first, without their secrets."""
    query = sa.select(token_table).order_by(token_table.c.created, token_table.c.id)
    return [_token(row) for row in database.read(lambda c: list(c.execute(query)))]


def revoke_token(database: Database, key: str) -> None:
    """Makes a token invalid at once; one that is revoked stays so.  Raises StudyError."""
    known = sa.select(token_table.c.id).where(token_table.c.id == key)
    where = (token_table.c.id == key) & token_table.c.revoked.is_(None)
    update = token_table.update().where(where).values(revoked=time.time())

    def work(connection: sa.Connection) -> bool:
        connection.execute(update)
        return connection.execute(known).first() is not None

    if not database.write(work):
        raise StudyError(f"there is no token '{key}'; `ucd-ray token list` shows them")


def has_tokens(connection: sa.Connection) -> bool:
    """Whether any token was ever made."""
    return connection.execute(sa.select(token_table.c.id).limit(1)).first() is not None


def find_token(connection: sa.Connection, text: str) -> Token | None:
    """The valid token with this text, None if there is none."""
    prefix, _, rest = text.partition("_")
    key, _, secret = rest.partition("_")
    if prefix != PREFIX or not key.isalnum() or len(key) > 20:
        return None
    row = connection.execute(BY_ID, {"of": key}).first()
    # Compared also without a row: the time taken tells nothing.
    same = secrets.compare_digest(digest(secret), row.hash if row else digest(""))
    if row is None or not same:
        return None
    token = _token(row)
    return token if token.state(time.time()) == "valid" else None


def digest(secret: str) -> str:
    """What is stored: a secret of 256 random bits needs no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _token(row: sa.Row[Any]) -> Token:
    scopes = frozenset(row.scopes.split())
    return Token(row.id, row.owner, scopes, row.created, row.expires, row.revoked)
