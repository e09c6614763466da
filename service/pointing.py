"""Where in a body the key or the value lies that a sentence of the library names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from ucd_ray.errors import ConfigError
from ucd_ray.service.problems import Problem, pointer
from ucd_ray.service.registered import Finding

PARTS = ("recipe", "values", "search", "settings", "fix", "add", "remove", "constraints")
NAMED = re.compile(r"'([^']*)'|\b([a-z_]+\.[a-z_]+)\b")
FIRST_WORD = re.compile(r"[a-z_]+\b")
Entry = tuple[tuple[Any, ...], Any]  # the path of a key, and its value


def place(text: str, content: Mapping[str, Any], *at: str) -> str:
    """The JSON pointer to what `text` names in the content that lies at `at`; to all of it else."""
    words = [next(filter(None, found), "") for found in NAMED.findall(text)]
    words += FIRST_WORD.findall(text)[:1]
    entries = list(_entries(content))
    for word in words:
        for path, _ in entries:
            if path[-1] == word:
                return pointer(("body", *at, *path))
    entries.sort(key=lambda entry: -len(entry[0]))  # a list's entry before the list
    for word in words:
        for path, value in entries:
            if word in _texts(value):
                return pointer(("body", *at, *path))
    return pointer(("body", *at))


def _texts(value: Any) -> Sequence[Any]:
    """What a sentence may name of a value: `mib,plop` has two names."""
    if isinstance(value, str):
        return (value, *value.split(","))
    return value if isinstance(value, list | tuple) else ()


def _entries(content: Mapping[str, Any]) -> Iterator[Entry]:
    for key, value in content.items():
        yield (key,), value
    for part in PARTS:
        inner = content.get(part)
        if isinstance(inner, Mapping):
            yield from (((part, key), value) for key, value in inner.items())
        elif isinstance(inner, list | tuple):
            yield from (((part, index), value) for index, value in enumerate(inner))


@contextmanager
def pointed(content: Mapping[str, Any], *at: str) -> Iterator[None]:
    """Turns a ConfigError about content that lies at `at` into a Problem (422) that points there."""
    try:
        yield
    except ConfigError as error:
        found = Finding(place(str(error), content, *at), "INVALID", str(error))
        raise refusal([found]) from None


def refuse(found: Sequence[Finding]) -> None:
    """Raises Problem (422) if anything was found."""
    if found:
        raise refusal(found)


def refusal(found: Sequence[Finding]) -> Problem:
    """All that is wrong as one problem."""
    unique = list(dict.fromkeys(sorted(found, key=lambda finding: finding.pointer)))
    told = "; ".join(finding.detail for finding in unique)
    return Problem(422, "INVALID", told, [asdict(finding) for finding in unique])
