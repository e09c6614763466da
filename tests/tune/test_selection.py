"""Filters, order and limit on record batches."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pyarrow as pa
import pytest

from ucd_ray.errors import ConfigError
from ucd_ray.tune.selection import select

ROWS = pa.table(
    {
        "number": [0, 1, 2, 3, 4],
        "state": ["COMPLETE", "FAILED", "COMPLETE", "RUNNING", "COMPLETE"],
        "kd.weight": [1.0, 200.0, 10.0, 10.5, None],
        "code": [None, "NAN", None, None, None],
        "cached": [True, False, True, False, None],
    }
)


def chosen(
    *filters: str, order_by: Sequence[str] = (), limit: int | None = None, rows: pa.Table = ROWS
) -> list[int]:
    """Numbers of the chosen rows, read in batches of two."""
    reader = pa.RecordBatchReader.from_batches(rows.schema, rows.to_batches(max_chunksize=2))
    found = select(reader, filters=filters, order_by=order_by, limit=limit)
    return found.read_all()["number"].to_pylist()


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        (["state=COMPLETE"], [0, 2, 4]),
        (["state!=COMPLETE"], [1, 3]),
        (["kd.weight>10"], [1, 3]),
        (["kd.weight>=10"], [1, 2, 3]),
        (["kd.weight<10.5"], [0, 2]),
        (["kd.weight <= 1e1"], [0, 2]),
        (["number!=2"], [0, 1, 3, 4]),
        (["code!=NAN"], [0, 2, 3, 4]),
        (["code=null"], [0, 2, 3, 4]),
        (["kd.weight!=null", "state=COMPLETE"], [0, 2]),
        (["cached=true"], [0, 2]),
        (["state=COMPLETE", "kd.weight>100"], []),
    ],
)
def test_rows_that_fulfil_all_filters_are_kept(filters: list[str], numbers: list[int]) -> None:
    assert chosen(*filters) == numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("state", "filter 'state' must be COLUMN=VALUE"),
        ("state=", "filter 'state=' must be COLUMN=VALUE"),
        ("=COMPLETE", "must be COLUMN=VALUE"),
        ("sate=COMPLETE", "there is no column 'sate'; did you mean 'state'"),
        ("kd.weight>many", "filter 'kd.weight>many': 'many' is no number"),
        ("state>COMPLETE", "only numbers have an order; use = or !="),
        ("kd.weight>null", "'null' is no number"),
        ("cached=maybe", "'maybe' must be true or false"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        chosen(text)
    assert message in str(refused.value)


def test_an_order_by_an_unknown_column_is_refused() -> None:
    with pytest.raises(ConfigError, match="order '-valeu': there is no column 'valeu'"):
        chosen(order_by=["-valeu"])


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"limit \(0\) must be at least 1"):
        chosen(limit=0)


def test_null_values_come_last_in_both_directions() -> None:
    assert chosen(order_by=["kd.weight"]) == [0, 2, 3, 1, 4]
    assert chosen(order_by=["-kd.weight"]) == [1, 3, 2, 0, 4]
    assert chosen(order_by=["state", "-number"]) == [4, 2, 0, 1, 3]


def test_a_limit_takes_the_first_rows() -> None:
    assert chosen(limit=3) == [0, 1, 2]
    assert chosen("state=COMPLETE", limit=1) == [0]
    assert chosen(order_by=["-kd.weight"], limit=2) == [1, 3]


def test_a_sorted_selection_is_the_same_with_and_without_a_limit() -> None:
    drawn = random.Random(0)
    values = [None if drawn.random() < 0.1 else drawn.randrange(50) for _ in range(999)]
    rows = pa.table({"number": list(range(999)), "value": values})
    expected = sorted(range(999), key=lambda n: (values[n] is None, -(values[n] or 0), n))
    order = ["-value", "number"]
    assert chosen(rows=rows, order_by=order) == expected
    assert chosen(rows=rows, order_by=order, limit=100) == expected[:100]


def test_columns_are_chosen_after_filters_and_bring_their_half_intervals() -> None:
    rows = ROWS.append_column("kd.weight ±", pa.array([0.1, 0.2, 0.3, 0.4, None]))
    found = select(rows.to_reader(), filters=["number=1"], columns=["kd.weight", "state"])
    assert found.read_all().to_pylist() == [
        {"kd.weight": 200.0, "kd.weight ±": 0.2, "state": "FAILED"}
    ]
    with pytest.raises(
        ConfigError, match="columns: there is no column 'sate'; did you mean 'state'"
    ):
        select(rows.to_reader(), columns=["sate"])


def test_a_limit_without_an_order_reads_no_further() -> None:
    read = []

    def batches() -> object:
        for batch in ROWS.to_batches(max_chunksize=1):
            read.append(batch)
            yield batch

    reader = pa.RecordBatchReader.from_batches(ROWS.schema, batches())
    assert select(reader, limit=2).read_all().num_rows == 2
    assert len(read) == 2
