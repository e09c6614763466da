from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from tests.tune.charts.studies import make_study
from ucd_ray.confusion import unpack
from ucd_ray.drawing.chart import Bars, Cells, Line, Plane
from ucd_ray.tune.charts import NotDrawn, Source, chart_of
from ucd_ray.tune.tables import class_table, confusion_table


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(make_study(tmp_path, 12), "study")


def stored_ious(source: Source) -> dict[tuple[int, int], float]:
    c = class_table.c
    query = sa.select(c.step, c.class_id, c.iou).where(
        c.number == source.best.number, c.images == "val"
    )
    with source.database.engine.connect() as connection:
        return {(row.step, row.class_id): row.iou for row in connection.execute(query)}


def test_each_steps_classes_are_followed_to_the_end(source: Source) -> None:
    _, best = chart_of(source, "forgetting").panels
    assert isinstance(best, Plane)
    ious = stored_ious(source)
    lines = [m for m in best.marks if isinstance(m, Line)]
    for learned, (line, classes) in enumerate(zip(lines, source.groups, strict=True)):
        assert list(line.x) == list(range(learned, 3))
        for step, mean in zip(line.x, line.y, strict=True):
            known = [ious[int(step), c] for c in classes if ious[int(step), c] is not None]
            assert mean == pytest.approx(sum(known) / len(known))


def test_the_heat_map_has_every_class_and_nothing_where_nothing_is_known(source: Source) -> None:
    (panel,) = chart_of(source, "classes").panels
    assert isinstance(panel, Plane)
    (cells,) = (m for m in panel.marks if isinstance(m, Cells))
    ious = stored_ious(source)
    assert panel.y.names[:2] == ("background", "shape 1")
    for class_id, row in zip(source.class_order, cells.values, strict=True):
        for step, value in enumerate(row):
            known = ious.get((step, class_id))
            assert math.isnan(value) if known is None else value == known


def test_confusion_is_summed_by_step_and_rows_are_shares(source: Source) -> None:
    groups, pairs = chart_of(source, "confusion").panels
    assert isinstance(groups, Plane) and isinstance(pairs, Plane)
    (cells,) = (m for m in groups.marks if isinstance(m, Cells))
    c = confusion_table.c
    query = sa.select(c.counts).where(c.number == source.best.number, c.step == 2)
    with source.database.engine.connect() as connection:
        counts = unpack(connection.execute(query).scalar_one())
    parts = [slice(0, 1), slice(1, 9), slice(9, 11), slice(11, 13)]
    for row, a in zip(cells.values, parts, strict=True):
        expected = [100 * counts[a, b].sum() / counts[a].sum() for b in parts]
        assert list(row) == pytest.approx(expected)
    (bars,) = (m for m in pairs.marks if isinstance(m, Bars))
    table = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    worst = max(table[1:11, 11:].max(), table[11:, 1:11].max())
    assert bars.values[0] == pytest.approx(worst)


def test_a_study_without_stored_confusion_says_so(tmp_path: Path) -> None:
    source = Source(make_study(tmp_path, 3, confusion=False), "study")
    with pytest.raises(NotDrawn, match=r"no confusion is stored of trial \d: an earlier version"):
        chart_of(source, "confusion")
