from __future__ import annotations

import io
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from tests.drawing.charts import EVERY_MARK, PARALLEL
from ucd_ray.drawing import drawn
from ucd_ray.drawing.chart import Chart
from ucd_ray.errors import ConfigError


@pytest.mark.parametrize("chart", [EVERY_MARK, PARALLEL], ids=lambda c: c.name)
def test_a_png_holds_more_than_paper(chart: Chart) -> None:
    image = Image.open(io.BytesIO(drawn(chart, "png"))).convert("RGB")
    assert image.format is None or image.format == "PNG"
    assert min(image.size) > 200
    assert len(image.getcolors(maxcolors=1_000_000)) > 50


@pytest.mark.parametrize("chart", [EVERY_MARK, PARALLEL], ids=lambda c: c.name)
def test_an_svg_is_xml_and_the_same_each_time(chart: Chart) -> None:
    content = drawn(chart, "svg")
    assert ET.fromstring(content).tag.endswith("svg")
    assert drawn(chart, "svg") == content


def test_drawing_leaves_the_settings_of_matplotlib_as_they_were() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn(EVERY_MARK, "svg")
    assert dict(matplotlib.rcParams) == before


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown form 'pgn' of a chart; did you mean 'png'"):
        drawn(EVERY_MARK, "pgn")
