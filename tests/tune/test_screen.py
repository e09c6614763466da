"""Tables for a terminal."""

from __future__ import annotations

import io

import pyarrow as pa
from rich.console import Console

from ucd_ray.tune.screen import BEST_FIRST, render
from ucd_ray.tune.selection import select


def shown(table: pa.Table, **options: int) -> str:
    text = io.StringIO()
    rows = select(table.to_reader(), order_by=BEST_FIRST)
    Console(width=250, file=text).print(render(rows, "study x", **options))
    return text.getvalue()


def test_the_terminal_shows_the_best_trial_first_and_null_params_as_all(table: pa.Table) -> None:
    text = shown(table)
    lines = text.splitlines()
    first = next(line for line in lines if "COMPLETE" in line)
    assert lines.index(first) < next(i for i, line in enumerate(lines) if "FAILED" in line)
    assert " all " in first
    assert "44.0" in first
    assert "setting overlapped" in text
    assert "miou_all on holdout" in text


def test_a_search_on_val_is_marked_in_the_table(table: pa.Table) -> None:
    marked = table.replace_schema_metadata({**table.schema.metadata, b"select_on": b"val"})
    assert "searched on val" in " ".join(shown(marked).split())
    assert "searched on val" not in " ".join(shown(table).split())


def test_a_long_table_is_cut_and_says_so(table: pa.Table) -> None:
    assert "the first 2 rows" in shown(table, limit=2)
    assert "FAILED" not in shown(table, limit=1)
    assert "the first" not in shown(table, limit=3)


def test_cells_are_text_and_no_markup(table: pa.Table) -> None:
    reasons = pa.array(["[red]a[/red]", "b", "c"])
    marked = table.set_column(table.column_names.index("reason"), "reason", reasons)
    assert "[red]a[/red]" in shown(marked)


def test_notes_are_numbered_alike_and_explained_below() -> None:
    rows = pa.table(
        {
            "method": ["a", "b", "c"],
            "all": [1.0, 2.0, 3.0],
            "all ±": [0.25, None, None],
            "notes": ["crop differs; joint unknown", None, "joint unknown"],
        }
    )
    text = io.StringIO()
    Console(width=120, file=text).print(render(rows.to_reader(), "paper"))
    lines = text.getvalue().splitlines()
    cells = [[c.strip() for c in line.strip("│").split("│")] for line in lines if "│" in line]
    assert cells == [["a", "1 ± 0.2", "1 2"], ["b", "2", ""], ["c", "3", "2"]]
    assert [line.strip() for line in lines[-2:]] == ["1  crop differs", "2  joint unknown"]
