from __future__ import annotations

import json
import re
from typing import Any

from tests.drawing.charts import EVERY_MARK, PARALLEL
from ucd_ray.drawing import drawn
from ucd_ray.drawing.chart import MISSING, Chart
from ucd_ray.drawing.interactive import PLOTLY_JS, for_script, plotly_js


def traces(chart: Chart) -> list[dict[str, Any]]:
    figure = json.loads(drawn(chart, "json"))
    assert set(figure) == {"data", "layout"}
    return list(figure["data"])


def named(chart: Chart, name: str) -> dict[str, Any]:
    (found,) = (trace for trace in traces(chart) if trace.get("name") == name)
    return found


def test_every_mark_is_a_trace_of_its_kind() -> None:
    kinds = [trace["type"] for trace in traces(EVERY_MARK)]
    assert set(kinds) == {"scatter", "bar", "heatmap", "contour", "image"}
    assert len(kinds) == 2 + 2 + 3 + 2 + 1 + 1 + 1 + 1  # a band is two lines, bars have texts


def test_unknown_numbers_are_null() -> None:
    assert named(EVERY_MARK, "line")["y"] == [1, None, 2]
    (heat,) = (trace for trace in traces(EVERY_MARK) if trace["type"] == "heatmap")
    assert heat["z"] == [[0, 1], [None, 0.5]]


def test_texts_are_no_html() -> None:
    figure = json.loads(drawn(EVERY_MARK, "json"))
    assert figure["layout"]["title"]["text"] == "Every &lt;mark&gt;"
    assert figure["layout"]["title"]["subtitle"]["text"] == "study s: sub &amp; title"
    assert named(EVERY_MARK, "line")["text"] == ["&lt;b&gt;", "", "c"]


def test_axes_carry_unit_and_kind() -> None:
    layout = json.loads(drawn(EVERY_MARK, "json"))["layout"]
    assert layout["xaxis"]["title"]["text"] == "x [s]"
    assert layout["xaxis"]["type"] == "log"
    assert layout["meta"] == {"name": "every", "note": "A note."}


def test_a_row_without_a_value_lies_below_its_axis() -> None:
    (lines,) = traces(PARALLEL)
    first, second, third = lines["dimensions"]
    assert first["values"] == [0.5, 1.0]
    assert second["values"] == [0.5, MISSING]
    assert (second["tickvals"][0], second["ticktext"][0]) == (MISSING, "not used")
    assert (second["range"], first["range"]) == ([MISSING, 1], [0, 1])
    assert third["values"] == [0.75, 0.25]
    assert third["ticktext"] == ["x", "y"]


def test_a_page_asks_for_nothing_but_the_script_beside_it() -> None:
    page = drawn(EVERY_MARK, "html").decode()
    assert re.findall(r'(?:src|href)="(.*?)"', page) == [PLOTLY_JS]
    assert "plotly.js v" in plotly_js()[:300]
    assert "&lt;mark&gt;" in page


def test_no_text_can_end_the_script_of_a_page() -> None:
    assert "<" not in for_script(EVERY_MARK)
    assert json.loads(for_script(EVERY_MARK)) == json.loads(drawn(EVERY_MARK, "json"))
