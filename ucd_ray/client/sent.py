"""What the requests of a client carry: paths, queries, bodies, keys."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

Content = Mapping[str, Any] | BaseModel


def results_query(view: str, form: str, query: Mapping[str, Any]) -> dict[str, Any]:
    """The query of a table; lists repeat a parameter, but for columns."""
    sent: dict[str, Any] = {"view": view, "format": form}
    for name, value in query.items():
        if isinstance(value, bool):
            sent[name] = str(value).lower()
        elif isinstance(value, Sequence) and not isinstance(value, str):
            sent[name] = ",".join(value) if name == "columns" else list(value)
        else:
            sent[name] = value
    return {name: value for name, value in sent.items() if value not in (None, [], "")}


def path_of(study: str) -> str:
    """The path of a study, whatever its id has in it."""
    return f"/v1/studies/{quote(study, safe='')}"


def plain(content: Content) -> Any:
    """A body as JSON has it; what a model was not given is left out."""
    if isinstance(content, BaseModel):
        return content.model_dump(mode="json", exclude_unset=True)
    return content


def with_key(key: str | None) -> dict[str, str]:
    """The header that makes a request one that may be sent again."""
    return {"Idempotency-Key": key or uuid.uuid4().hex}
