"""Constraints such as `ucd.weight < 0.1 * kd.weight`: how they are written and when they hold.

Comparisons (< <= > >=, also in a chain) of keys and numbers, with + - and *.  Null stands for `all` and is
larger than any number.  Needs neither torch, Optuna nor Ray.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ucd_ray.errors import ConfigError

ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class Constraint:
    """One constraint, parsed."""

    text: str
    comparison: ast.Compare = field(compare=False, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The keys that it compares."""
        return tuple(sorted(set(_names(self.comparison))))

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether all its keys are among `values`: what does not exist cannot break it."""
        return all(name in values for name in self.names)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it holds, or does not apply."""
        if not self.applies(values):
            return True
        return all(COMPARISONS[type(op)](a, b) for op, a, b in self._links(values))

    def excess(self, values: Mapping[str, Any]) -> float:
        """By how much it is broken; zero or less where it holds."""
        gaps = [
            a - b if isinstance(op, ast.Lt | ast.LtE) else b - a for op, a, b in self._links(values)
        ]
        return max(gaps) if self.holds(values) else max(*gaps, math.ulp(0.0))

    def _links(self, values: Mapping[str, Any]) -> Iterator[tuple[ast.cmpop, float, float]]:
        sides = [_value(n, values) for n in (self.comparison.left, *self.comparison.comparators)]
        yield from zip(self.comparison.ops, sides, sides[1:], strict=False)


def parse(text: str) -> Constraint:
    """The constraint that `text` says.  Raises ConfigError."""
    try:
        found = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        found = None
    if not isinstance(found, ast.Compare) or not _is_known(found):
        raise ConfigError(
            f"constraint '{text}' must compare keys and numbers with < <= > or >=, such as "
            "'ucd.weight < kd.weight' or 'forgetting <= 2'; + - and * may join them"
        )
    constraint = Constraint(text.strip(), found)
    if not constraint.names:
        raise ConfigError(f"constraint '{text}' names no key")
    return constraint


def _is_known(node: ast.expr) -> bool:
    match node:
        case ast.Compare(left=left, ops=ops, comparators=rest):
            return all(type(op) in COMPARISONS for op in ops) and all(
                not isinstance(side, ast.Compare) and _is_known(side) for side in (left, *rest)
            )
        case ast.BinOp(left=left, op=op, right=right):
            return type(op) in ARITHMETIC and _is_known(left) and _is_known(right)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_known(operand)
        case ast.Constant(value=value):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case _:
            return _name(node) is not None


def _name(node: ast.expr) -> str | None:
    """`section.field` of a node that is one, or a bare word."""
    match node:
        case ast.Name(id=word):
            return word
        case ast.Attribute(value=ast.Name(id=section), attr=field):
            return f"{section}.{field}"
    return None


def _names(node: ast.expr) -> Iterator[str]:
    name = _name(node)
    if name is not None:
        yield name
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from _names(child)


def _value(node: ast.expr, values: Mapping[str, Any]) -> float:
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return ARITHMETIC[type(op)](_value(left, values), _value(right, values))
        case ast.UnaryOp(operand=operand):
            return -_value(operand, values)
        case ast.Constant(value=int() | float() as number):
            return number
    name = _name(node)
    assert name is not None, "parse refuses anything else"
    value = values[name]
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"'{name}' ({value!r}) cannot be compared: it is no number")
    return value
