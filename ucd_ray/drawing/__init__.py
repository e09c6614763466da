"""Charts as data, and two drawers: `still` (matplotlib: PNG, SVG) and `interactive` (plotly: JSON, HTML).

Knows nothing of studies; `ucd_ray.tune.charts` makes the charts of one.
"""

from __future__ import annotations

from ucd_ray.drawing.chart import Chart
from ucd_ray.errors import ConfigError, did_you_mean

FORMS = ("json", "html", "png", "svg")


def drawn(chart: Chart, form: str) -> bytes:
    """A chart as `json` (a figure of plotly.js), `html` (a page), `png` or `svg`.  Raises ConfigError.

    A page looks for `plotly.min.js` beside itself; `plotly_js()` is what belongs there.
    """
    if form not in FORMS:
        raise ConfigError(f"unknown form '{form}' of a chart; {did_you_mean(form, FORMS)}")
    if form in ("png", "svg"):
        from ucd_ray.drawing.still import still

        return still(chart, form)
    from ucd_ray.drawing import interactive

    draw = interactive.page if form == "html" else interactive.as_json
    return draw(chart).encode()
