"""The `filter` of a list: `state="RUNNING" AND (labels.team="x" OR NOT owner="ann")`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping

import sqlalchemy as sa

from ucd_ray.errors import did_you_mean
from ucd_ray.service.problems import Problem

Condition = sa.ColumnElement[bool]
Field = Callable[[str, str], Condition]  # of the name as it is written, and the value
Compare = Callable[[str, str, str], Condition]  # of name, sign and value
SIGNS = ("=", "!=", ">", ">=", "<", "<=")
TOKEN = re.compile(
    r'\s*(?:(\()|(\))|("(?:[^"\\]|\\.)*")|(!=|[<>]=?|=)|([A-Za-z_][\w.+-]*)'
    r"|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?))"
)
DEEPEST = 20


def parse_filter(text: str, fields: Mapping[str, Field]) -> Condition:
    """The condition that a filter means.  Raises Problem (422).

    fields: by name; one that ends with a dot takes any name below it
    """

    def compare(name: str, sign: str, value: str) -> Condition:
        field = fields.get(name) or fields.get(name.partition(".")[0] + ".")
        if field is None:
            known = [n + "NAME" if n.endswith(".") else n for n in fields]
            raise invalid(f"'{name}' is no field; {did_you_mean(name, known)}")
        if sign not in ("=", "!="):
            raise invalid(f'{name} has no order; write {name}="value" or {name}!="value"')
        found = field(name, value)
        return found if sign == "=" else sa.or_(sa.not_(found), found.is_(None))

    return parse_comparisons(text, compare)


def parse_comparisons(text: str, compare: Compare) -> Condition:
    """The same where `compare` knows the fields."""
    parser = Parser(text, compare)
    found = parser.either(0)
    parser.end()
    return found


def invalid(detail: str) -> Problem:
    """What is wrong with a filter."""
    error = {"pointer": "#query/filter", "code": "FILTER", "detail": detail}
    return Problem(422, "INVALID", f"filter: {detail}", [error])


class Parser:
    """Reads one filter from left to right."""

    def __init__(self, text: str, compare: Compare) -> None:
        self.compare = compare
        self.words = [*_words(text), ""]
        self.at = 0

    def take(self) -> str:
        """The next word."""
        word = self.words[self.at]
        self.at = min(self.at + 1, len(self.words) - 1)
        return word

    def accept(self, word: str) -> bool:
        """Whether the next word is this one; it is taken then."""
        if self.words[self.at].upper() != word:
            return False
        self.take()
        return True

    def either(self, level: int) -> Condition:
        """Conditions with OR between them."""
        if level > DEEPEST:
            raise invalid(f"it is nested deeper than {DEEPEST} levels")
        found = [self.both(level)]
        while self.accept("OR"):
            found.append(self.both(level))
        return sa.or_(*found)

    def both(self, level: int) -> Condition:
        """Conditions with AND between them, which binds first."""
        found = [self.one(level)]
        while self.accept("AND"):
            found.append(self.one(level))
        return sa.and_(*found)

    def one(self, level: int) -> Condition:
        """A comparison, one in parentheses, or NOT and one."""
        if self.accept("NOT"):
            if level > DEEPEST:
                raise invalid(f"it is nested deeper than {DEEPEST} levels")
            return sa.not_(self.one(level + 1))
        if self.accept("("):
            found = self.either(level + 1)
            if not self.accept(")"):
                raise invalid("a parenthesis is not closed")
            return found
        return self.comparison()

    def comparison(self) -> Condition:
        """A field, a sign and a value."""
        name, sign, value = self.take(), self.take(), self.take()
        if not name or name in ("(", ")", *SIGNS):
            raise invalid(f"{name or 'the end'} stands where a field should be")
        if sign not in SIGNS or not value or value in ("(", ")", *SIGNS):
            raise invalid(f'write {name}="value" or {name}!="value"')
        return self.compare(name, sign, _unquoted(value))

    def end(self) -> None:
        """Raises Problem unless everything was read."""
        if self.words[self.at]:
            raise invalid(f"'{self.words[self.at]}' is not expected; write AND or OR between two")


def _words(text: str) -> Iterator[str]:
    at = 0
    while text[at:].strip():
        match = TOKEN.match(text, at)
        if match is None:
            rest = text[at:].strip()[:20]
            if rest.startswith('"'):
                raise invalid(f"the quote of {rest} is not closed")
            raise invalid(f"{rest!r} cannot be read")
        yield match.group().strip()
        at = match.end()


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except json.JSONDecodeError:
        raise invalid(f"{value} is no text in double quotes") from None
