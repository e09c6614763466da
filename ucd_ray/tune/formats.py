"""The formats in which a table leaves: CSV, JSON, Parquet, Arrow, Markdown and LaTeX.

`write` takes record batches and passes them on one by one, so a table of any length needs the memory
of one batch.  JSON is an array of objects, a row each; LaTeX needs the package booktabs.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from ucd_ray.errors import ConfigError, did_you_mean
from ucd_ray.tune.cells import is_right, readable

Sink = IO[bytes]
ROW_GROUP = 2_000  # rows at least, of a Parquet file
LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$"},
    }
)


def write(batches: pa.RecordBatchReader, form: str, sink: Sink) -> None:
    """Writes record batches in a format of `FORMATS` into a binary file.  Raises ConfigError.

    batches: a stream with its schema, such as a view or `table.to_reader()`
    """
    check_format(form)
    FORMATS[form](batches, sink)


def check_format(form: str) -> None:
    """Raises ConfigError unless `form` is a format."""
    if form not in FORMATS:
        raise ConfigError(f"unknown format '{form}'; {did_you_mean(form, FORMATS)}")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Sink]:
    """A file to write, which takes the place of `path` once it is whole.  Raises ConfigError.

    What is no file, such as a device or a pipe, is written as it is.
    """
    whole = path.with_name(path.name + ".part") if path.is_file() or not path.exists() else path
    try:
        with whole.open("wb") as sink:
            yield sink
        if whole != path:
            os.replace(whole, path)
    except OSError as error:
        raise ConfigError(f"cannot write '{path}': {error.strerror}") from None
    finally:
        if whole != path:
            whole.unlink(missing_ok=True)


def _written_by(opened: Callable[[Sink, pa.Schema], Any]) -> Callable[[Any, Sink], None]:
    """Writes batches with one of Arrow's writers."""

    def write_all(batches: pa.RecordBatchReader, sink: Sink) -> None:
        with opened(sink, batches.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)

    return write_all


def _parquet(batches: pa.RecordBatchReader, sink: Sink) -> None:
    """Dictionaries of numbers, most of which differ, would be held until the end of their row group."""
    texts = [field.name for field in batches.schema if pa.types.is_string(field.type)]
    with pa.parquet.ParquetWriter(sink, batches.schema, use_dictionary=texts) as writer:
        for table in _row_groups(batches):
            writer.write_table(table)


def _row_groups(batches: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The rows in parts of `ROW_GROUP` or more: of each the writer holds 60 kB until the file ends."""
    held, rows = [], 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= ROW_GROUP:
            yield pa.Table.from_batches(held)
            held, rows = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _json(batches: pa.RecordBatchReader, sink: Sink) -> None:
    before = b"[\n"
    for batch in batches:
        if batch.num_rows:
            sink.write(before + ",\n".join(_objects(batch).to_pylist()).encode())
            before = b",\n"
    sink.write(b"[]\n" if before == b"[\n" else b"\n]\n")


def _objects(batch: pa.RecordBatch) -> pa.Array:
    """Every row as the text of a JSON object, made column by column."""
    pairs = []
    for i, field in enumerate(batch.schema):
        values = pc.fill_null(_json_values(batch.column(i)), "null")
        start = ("{" if i == 0 else "") + json.dumps(field.name, ensure_ascii=False) + ": "
        pairs.append(pc.binary_join_element_wise(start, values, ""))
    rows = pc.binary_join_element_wise(*pairs, ", ")
    return pc.binary_join_element_wise(rows, "}", "")


def _json_values(column: pa.Array) -> pa.Array:
    """[rows] text of JSON values, null where there is none; infinities have none in JSON."""
    if pa.types.is_string(column.type):
        words = column.dictionary_encode()
        texts = [json.dumps(word, ensure_ascii=False) for word in words.dictionary.to_pylist()]
        return pa.array(texts, pa.string()).take(words.indices)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
    return column.cast(pa.string())


def _markdown(batches: pa.RecordBatchReader, sink: Sink) -> None:
    fields = [field for field, _ in readable(batches.schema.empty_table())]
    rules = ["---:" if is_right(field) else ":---" for field in fields]
    for line in ([_bare(field.name) for field in fields], rules):
        sink.write(f"| {' | '.join(line)} |\n".encode())
    for row in _rows(batches, _bare):
        sink.write(f"| {' | '.join(row)} |\n".encode())


def _bare(text: str) -> str:
    """Text that does not end a cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _latex(batches: pa.RecordBatchReader, sink: Sink) -> None:
    fields = [field for field, _ in readable(batches.schema.empty_table())]
    sides = "".join("r" if is_right(field) else "l" for field in fields)
    head = " & ".join(_escaped(field.name) for field in fields)
    sink.write(f"\\begin{{tabular}}{{{sides}}}\n\\toprule\n{head} \\\\\n\\midrule\n".encode())
    for row in _rows(batches, _escaped):
        sink.write((" & ".join(row) + " \\\\\n").encode())
    sink.write(b"\\bottomrule\n\\end{tabular}\n")


def _escaped(text: str) -> str:
    return text.translate(LATEX).replace("\n", " ")


def _rows(batches: pa.RecordBatchReader, escape: Callable[[str], str]) -> Iterable[Iterable[str]]:
    """The cells of every row as people see them."""
    for batch in batches:
        yield from zip(*(map(escape, values) for _, values in readable(batch)), strict=True)


FORMATS: dict[str, Callable[[pa.RecordBatchReader, Sink], None]] = {
    "csv": _written_by(pa.csv.CSVWriter),
    "json": _json,
    "parquet": _parquet,
    "arrow": _written_by(pa.ipc.new_file),
    "arrow-stream": _written_by(pa.ipc.new_stream),
    "markdown": _markdown,
    "latex": _latex,
}
