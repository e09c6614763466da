"""The formats in which tables leave."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from ucd_ray.cli.shared import TABLE_FORMATS
from ucd_ray.errors import ConfigError
from ucd_ray.tune.cells import column
from ucd_ray.tune.formats import FORMATS, ROW_GROUP, replaced, write

ODD = pa.table(
    {
        "text": ['a "quote", a | and a \\', None, "two\nlines", "50 % & é_{}", ""],
        "real": [1.5, float("inf"), None, -1e-7, 1e22],
        "whole": [1, None, -3, 4, 5],
        "truth": [True, False, None, True, True],
    }
)


def written(table: pa.Table, form: str) -> bytes:
    """The table in a format, written in batches of two rows."""
    sink = io.BytesIO()
    reader = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=2))
    write(reader, form, sink)
    return sink.getvalue()


def test_arrow_and_parquet_come_back_as_the_same_table(table: pa.Table) -> None:
    arrow = pa.ipc.open_file(written(table, "arrow")).read_all()
    assert arrow.equals(table, check_metadata=True)
    stream = pa.ipc.open_stream(written(table, "arrow-stream")).read_all()
    assert stream.equals(table, check_metadata=True)
    parquet = pa.parquet.read_table(io.BytesIO(written(table, "parquet")))
    assert parquet.equals(table)
    assert parquet.schema.metadata == table.schema.metadata


def test_a_parquet_file_has_row_groups_of_some_size_and_no_dictionary_of_numbers() -> None:
    rows = ROW_GROUP + 10
    table = pa.table({"number": range(rows), "state": ["COMPLETE"] * rows})
    batches = table.to_batches(max_chunksize=ROW_GROUP // 4)
    sink = io.BytesIO()
    write(pa.RecordBatchReader.from_batches(table.schema, batches), "parquet", sink)
    about = pa.parquet.read_metadata(sink)
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    assert [group.num_rows for group in groups] == [ROW_GROUP, 10]
    held = [groups[0].column(i).has_dictionary_page for i in range(2)]
    assert held == [False, True]


def test_json_comes_back_as_the_same_rows(table: pa.Table) -> None:
    assert json.loads(written(table, "json")) == table.to_pylist()
    rows = json.loads(written(ODD, "json"))
    assert rows[1].pop("real") is None  # JSON has no infinity
    expected = ODD.to_pylist()
    del expected[1]["real"]
    assert rows == expected


def test_csv_comes_back_as_the_same_rows(table: pa.Table) -> None:
    for rows in (table, ODD):
        convert = pa.csv.ConvertOptions(
            column_types=rows.schema, strings_can_be_null=True, quoted_strings_can_be_null=False
        )
        parse = pa.csv.ParseOptions(newlines_in_values=True)
        source = io.BytesIO(written(rows, "csv"))
        read = pa.csv.read_csv(source, convert_options=convert, parse_options=parse)
        assert read.to_pylist() == rows.to_pylist()


def test_markdown_is_a_table_whose_cells_cannot_break_it() -> None:
    lines = written(ODD, "markdown").decode().splitlines()
    assert lines[:2] == ["| text | real | whole | truth |", "| :--- | ---: | ---: | :--- |"]
    assert lines[2] == '| a "quote", a \\| and a \\\\ | 1.5 | 1 | True |'
    assert lines[4] == "| two lines |  | -3 |  |"
    assert len(lines) == 2 + ODD.num_rows


def test_latex_is_a_tabular_with_escaped_text() -> None:
    lines = written(ODD, "latex").decode().splitlines()
    assert lines[0] == r"\begin{tabular}{lrrl}"
    assert lines[2] == r"text & real & whole & truth \\"
    assert lines[4] == r'a "quote", a | and a \textbackslash{} & 1.5 & 1 & True \\'
    assert lines[7] == r"50 \% \& é\_\{\} & -1e-07 & 4 & True \\"
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]


def test_columns_with_a_unit_have_one_digit_and_null_params_are_all() -> None:
    schema = pa.schema([column("miou", float, "percent"), column("ucd.max_old", int)])
    rows = pa.table([[12.3456, None], [256, None]], schema=schema)
    lines = written(rows, "markdown").decode().splitlines()
    assert lines[2:] == ["| 12.3 | 256 |", "|  | all |"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_table_without_rows_can_be_written(form: str) -> None:
    content = written(ODD[:0], form)
    assert json.loads(content) == [] if form == "json" else content


@pytest.mark.parametrize("form", FORMATS)
def test_batches_are_written_before_the_next_ones_are_made(form: str) -> None:
    """So memory holds one batch: when the last is made, most of the file is there."""
    sink, sizes = io.BytesIO(), []
    batch = pa.record_batch(
        {"number": list(range(20_000)), "text": [f"{i}" for i in range(20_000)]}
    )

    def batches() -> Iterator[pa.RecordBatch]:
        for _ in range(10):
            sizes.append(sink.tell())
            yield batch

    write(pa.RecordBatchReader.from_batches(batch.schema, batches()), form, sink)
    assert sizes[-1] > 0.8 * sink.tell()


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown format 'cvs'; did you mean 'csv'"):
        written(ODD, "cvs")


def test_the_command_line_knows_all_formats() -> None:
    assert set(TABLE_FORMATS) == {"table", *FORMATS}


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with replaced(path) as sink:
        sink.write(b"x")
        assert not path.exists()
    assert path.read_bytes() == b"x"
    with pytest.raises(ConfigError), replaced(path) as sink:
        write(ODD.to_reader(), "cvs", sink)
    assert path.read_bytes() == b"x"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write '.*': Is a directory"), replaced(tmp_path):
        pass
    with (
        pytest.raises(ConfigError, match=r"cannot write '.*': No such file"),
        replaced(tmp_path / "absent" / "out.csv"),
    ):
        pass


def test_what_is_no_file_is_written_as_it_is() -> None:
    with replaced(Path("/dev/null")) as sink:
        sink.write(b"x")
    assert Path("/dev/null").is_char_device()
