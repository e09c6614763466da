"""Columns of tables with their units, and how people see their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from ucd_ray.tune.progress import short

CONDITIONAL = b"conditional"
UNIT = b"unit"  # of a column, in the metadata of its field
ONE_DIGIT = ("percent", "points", "s")


def column(
    name: str, kind: type, unit: str | None = None, *, conditional: bool = False
) -> pa.Field:
    """A column of text, whole numbers, numbers or truth values.

    unit: such as percent, points (differences of percents) or s
    conditional: of a param where null is no value: it does not mean all
    """
    metadata = {UNIT: unit} if unit else {CONDITIONAL: "yes"} if conditional else None
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    return pa.field(name, types[kind], metadata=metadata)


def unit_of(field: pa.Field) -> str | None:
    """The unit of a column, None if it has none."""
    unit = (field.metadata or {}).get(UNIT)
    return None if unit is None else unit.decode()


def is_right(field: pa.Field) -> bool:
    """Whether a column is set to the right: numbers are."""
    return bool(pa.types.is_integer(field.type) or pa.types.is_floating(field.type))


def readable(batch: pa.RecordBatch | pa.Table) -> list[tuple[pa.Field, list[str]]]:
    """Columns as people see them; half widths of intervals, `<column> ±`, join their means."""
    names = batch.schema.names
    found = []
    for field in batch.schema:
        values = cells(field, batch[field.name].to_pylist())
        if f"{field.name} ±" in names:
            halves = batch[f"{field.name} ±"].to_pylist()
            values = [
                value if half is None else f"{value} ± {half:.1f}"
                for value, half in zip(values, halves, strict=True)
            ]
        if not field.name.endswith(" ±"):
            found.append((field, values))
    return found


def cells(field: pa.Field, values: Sequence[Any]) -> list[str]:
    """The values of a column as people see them."""
    param = "." in field.name and CONDITIONAL not in (field.metadata or {})
    absent = "all" if param else ""  # null sample counts mean all
    if pa.types.is_floating(field.type) and unit_of(field) in ONE_DIGIT:
        return [absent if value is None else f"{value:.1f}" for value in values]
    return [absent if value is None else short(value) for value in values]
