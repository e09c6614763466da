"""Which rows of a view are wanted, and in which order: filters, order and limit on record batches.

A filter is `COLUMN=VALUE`, or with `!= > >= < <=`; several must all hold.  An order is `COLUMN`, or
`-COLUMN` for the largest first, or `best`; null values come last.  Rows stream: with a limit an order
keeps only the rows that can still be among the first, without one the rows wait in a temporary file.
"""

from __future__ import annotations

import operator
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ucd_ray.errors import ConfigError, did_you_mean

FILTER = re.compile(r"\s*([^=<>!\s]+)\s*(!=|>=|<=|=|>|<)\s*(.*?)\s*")
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    **{"=": operator.eq, ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le},
}
NULLS = ("null", "none")
BEST = "best"  # as an order: the best trials first, whatever the study is after
BATCH = 50_000  # rows of a sorted batch


def select(
    reader: pa.RecordBatchReader,
    *,
    filters: Sequence[str] = (),
    order_by: Sequence[str] = (),
    columns: Sequence[str] = (),
    limit: int | None = None,
) -> pa.RecordBatchReader:
    """The wanted rows of a view.  Raises ConfigError for what cannot be read or has no such column.

    filters: as `state=COMPLETE`, `kd.weight>10`; order_by: as `-value`; columns: all if none is named
    limit: rows at most
    """
    schema = reader.schema
    if limit is not None and limit < 1:
        raise ConfigError(f"limit ({limit}) must be at least 1")
    conditions = [_condition(text, schema) for text in filters]
    keys = [key for text in order_by for key in _sort_keys(text, schema)]
    for name in columns:
        _column(name, schema, "columns")
    named = [part for name in columns for part in (name, f"{name} ±")]  # with its half interval
    names = [name for name in dict.fromkeys(named) if name in schema.names] or schema.names
    shown = pa.schema([schema.field(name) for name in names], schema.metadata)

    def batches() -> Iterator[pa.RecordBatch]:
        found = _kept(reader, conditions)
        if keys and limit is None:
            found = _sorted(found, schema, keys)
        elif keys:
            assert limit is not None
            found = _first_sorted(found, schema, keys, limit)
        for batch in found if limit is None else _first(found, limit):
            yield batch.select(names)

    return pa.RecordBatchReader.from_batches(shown, batches())


def first_batch(reader: pa.RecordBatchReader) -> pa.RecordBatchReader | None:
    """The same rows once the first of them are read, None if there are none."""
    first = next((batch for batch in reader if batch.num_rows), None)
    if first is None:
        return None

    def batches() -> Iterator[pa.RecordBatch]:
        yield first
        yield from reader

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def _condition(text: str, schema: pa.Schema) -> Any:
    """The Arrow expression of a filter."""
    match = FILTER.fullmatch(text)
    if match is None or not match[3]:
        raise ConfigError(
            f"filter '{text}' must be COLUMN=VALUE, or with !=, >, >=, <, <=: state=COMPLETE, kd.weight>10"
        )
    name, sign, wanted = match.groups()
    kind = _column(name, schema, f"filter '{text}'")
    column = pc.field(name)
    if wanted.lower() in NULLS and sign in ("=", "!="):
        return column.is_null() if sign == "=" else column.is_valid()
    value = _value(wanted, kind, text, ordered=sign not in ("=", "!="))
    if sign == "!=":
        return column.is_null() | (column != value)  # what has no value is not that value
    return OPERATORS[sign](column, value)


def _value(text: str, kind: pa.DataType, whole: str, *, ordered: bool) -> pa.Scalar:
    if ordered and not _is_number(kind):
        raise ConfigError(f"filter '{whole}': only numbers have an order; use = or !=")
    if _is_number(kind):
        try:
            return pa.scalar(float(text))
        except ValueError:
            raise ConfigError(f"filter '{whole}': '{text}' is no number") from None
    if pa.types.is_boolean(kind):
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"filter '{whole}': '{text}' must be true or false")
        return pa.scalar(text.lower() == "true")
    return pa.scalar(text)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _sort_keys(text: str, schema: pa.Schema) -> Iterator[tuple[str, str]]:
    if text != BEST or BEST in schema.names or "value" not in schema.names:
        yield _sort_key(text, schema)
        return
    yield from ((name, "descending") for name in ("feasible", "pareto") if name in schema.names)
    least = (schema.metadata or {}).get(b"direction") == b"minimize"
    yield "value", "ascending" if least else "descending"


def _sort_key(text: str, schema: pa.Schema) -> tuple[str, str]:
    name = text.removeprefix("-").strip()
    _column(name, schema, f"order '{text}'")
    return name, "descending" if text.startswith("-") else "ascending"


def _column(name: str, schema: pa.Schema, where: str) -> pa.DataType:
    if name not in schema.names:
        hint = did_you_mean(name, schema.names)
        raise ConfigError(f"{where}: there is no column '{name}'; {hint}")
    return schema.field(name).type


def _kept(reader: pa.RecordBatchReader, conditions: list[Any]) -> Iterator[pa.RecordBatch]:
    for batch in reader:
        for condition in conditions:
            batch = batch.filter(condition)
        if batch.num_rows:
            yield batch


def _first(batches: Iterator[pa.RecordBatch], limit: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch[:limit]
        limit -= batch.num_rows
        if limit <= 0:
            return


def _order(table: Any, keys: list[tuple[str, str]]) -> pa.Array:
    return pc.sort_indices(table, sort_keys=keys)  # null values last


def _first_sorted(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, keys: list[tuple[str, str]], limit: int
) -> Iterator[pa.RecordBatch]:
    """The first `limit` rows in order, holding no more than those and one batch."""
    best = schema.empty_table()
    for batch in batches:
        found = pa.concat_tables([best, pa.Table.from_batches([batch])])
        best = found.take(_order(found, keys)[:limit]).combine_chunks()
    yield from best.to_batches()


def _sorted(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, keys: list[tuple[str, str]]
) -> Iterator[pa.RecordBatch]:
    """All rows in order.  They wait in a temporary file; only what they are ordered by is held."""
    names = [name for name, _ in keys]
    held = []
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/rows.arrow"
        with pa.ipc.new_file(path, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                held.append(batch.select(names))
        if not held:
            return
        order = _order(pa.Table.from_batches(held), keys)
        held.clear()
        with pa.memory_map(path) as source:
            rows = pa.ipc.open_file(source).read_all()
            for start in range(0, len(order), BATCH):
                yield from rows.take(order[start : start + BATCH]).combine_chunks().to_batches()
