"""Charts as figures of plotly.js: as JSON, and as pages of HTML."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from numpy.typing import NDArray
from PIL import Image
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from ucd_ray.drawing.chart import (
    MISSING,
    Axis,
    Band,
    Bars,
    Cells,
    Chart,
    Line,
    Mark,
    Parallel,
    Pixels,
    Plane,
    Points,
    Rule,
    Surface,
    along,
    padded,
    ticks,
)
from ucd_ray.drawing.colors import BLACK, GREY, LIGHT, SCALE, rgb

SYMBOLS = {
    "dot": "circle",
    "ring": "circle-open",
    "cross": "x-thin-open",
    "star": "star",
    "diamond": "diamond",
}
PIXELS = 88  # of an inch of a chart
GAP = 78  # pixels between rows of panels
TOP, BOTTOM = 84, 64  # pixels around the panels
TITLE = 26  # pixels of a panel's title, or of the slanted names of parallel axes
FEW = 13  # whole numbers up to which each has a tick


def figure(chart: Chart) -> go.Figure:
    """The chart as a figure of plotly."""
    columns = min(chart.columns, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    inner = rows * chart.size[1] * PIXELS
    titles = [_safe(p.title) if isinstance(p, Plane) else "" for p in chart.panels]
    kind = "domain" if isinstance(chart.panels[0], Parallel) else "xy"
    made = make_subplots(
        rows,
        columns,
        subplot_titles=titles if any(titles) else None,
        specs=[[{"type": kind}] * columns] * rows,
        vertical_spacing=GAP / inner if rows > 1 else None,
        horizontal_spacing=0.09 if columns > 1 else None,
    )
    made.update_annotations(font_size=12)
    named: set[str] = set()
    for index, panel in enumerate(chart.panels):
        place = {"row": index // columns + 1, "col": index % columns + 1}
        if isinstance(panel, Parallel):
            made.add_trace(_parallel(panel), **place)
            continue
        for mark in panel.marks:
            _add(made, mark, place, named)
        made.update_xaxes(**_axis(panel.x, panel), **place)
        made.update_yaxes(**_axis(panel.y, panel), **place)
        if any(isinstance(mark, Pixels) for mark in panel.marks):
            made.update_yaxes(scaleanchor=_letter(made, place), **place)
    for name, color in chart.keys:
        swatch = {"symbol": "square", "size": 12, "color": color}
        made.add_trace(
            go.Scatter(x=[None], y=[None], mode="markers", marker=swatch, name=_safe(name))
        )
    made.update_layout(**_layout(chart, inner))
    if chart.scale is not None:
        made.update_traces(
            zmin=chart.scale.low, zmax=chart.scale.high, selector={"type": "contour"}
        )
    return made


def _letter(made: go.Figure, place: dict[str, int]) -> str:
    """The x axis of a panel, as its other axis names it: x, x2 ..."""
    return str(made.get_subplot(**place).xaxis.plotly_name).replace("axis", "")


def as_json(chart: Chart) -> str:
    """The figure as JSON (`data` and `layout`, for `Plotly.newPlot`); `layout.meta` has the note."""
    return figure(chart).to_json()


def for_script(chart: Chart) -> str:
    """The same, for the inside of an HTML `<script>`."""
    return _escaped(as_json(chart))


def _escaped(figure: str) -> str:
    return figure.replace("<", "\\u003c")


PLOTLY_JS = "plotly.min.js"
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<script src="{script}"></script>
<style>
body {{ font-family: system-ui, sans-serif; margin: 1em; }}
p {{ color: #555; max-width: 60em; }}
</style>
<div id="chart"></div>
<p>{note}</p>
<script>
const figure = {figure};
Plotly.newPlot("chart", figure.data, figure.layout, {{responsive: true, displaylogo: false}});
</script>
</html>
"""


def page(chart: Chart) -> str:
    """A page with the chart; it needs `plotly_js()` beside it, under the name `PLOTLY_JS`."""
    return page_of(as_json(chart), title=f"{chart.title}; {chart.subtitle}", note=chart.note)


def page_of(figure: str, *, title: str, note: str) -> str:
    """The same of a figure that is there as JSON."""
    return PAGE.format(
        title=html.escape(title), script=PLOTLY_JS, note=html.escape(note), figure=_escaped(figure)
    )


def plotly_js() -> str:
    """The source of plotly.js, 5 MB."""
    return str(get_plotlyjs())


def _layout(chart: Chart, inner: float) -> dict[str, Any]:
    cells = any(
        isinstance(mark, Cells) for p in chart.panels if isinstance(p, Plane) for mark in p.marks
    )
    titled = any(isinstance(p, Parallel) or p.title for p in chart.panels)
    slanted = isinstance(chart.panels[0], Parallel)
    top = TOP + TITLE * (titled + slanted)
    subtitle = {"text": _safe(chart.subtitle), "font": {"size": 12, "color": GREY}}
    layout: dict[str, Any] = {
        "template": "none",
        "title": {
            "text": _safe(chart.title),
            "subtitle": subtitle,
            "x": 0,
            "xref": "paper",
            "y": 1 - 44 / (inner + top + BOTTOM),
            "yanchor": "bottom",
        },
        "title_font_size": 15,
        "font": {"size": 12, "family": "system-ui, sans-serif"},
        "height": inner + top + BOTTOM,
        "margin": {"t": top, "b": BOTTOM, "l": 60, "r": 20},
        "plot_bgcolor": LIGHT if cells else "white",
        "hovermode": "closest",
        "meta": {"name": chart.name, "note": chart.note},
        "showlegend": True,
    }
    if chart.scale is not None:
        scale = chart.scale
        title = {"text": _safe(Axis(scale.label, scale.unit).title), "side": "right"}
        layout["coloraxis"] = {"colorscale": SCALE, "cmin": scale.low, "cmax": scale.high}
        layout["coloraxis"]["colorbar"] = {"title": title, "thickness": 14, "outlinewidth": 0}
        layout["legend"] = {
            "orientation": "h",
            "y": 1,
            "yanchor": "bottom",
            "x": 1,
            "xanchor": "right",
        }
    return layout


def _axis(axis: Axis, panel: Plane) -> dict[str, Any]:
    if any(isinstance(mark, Pixels) for mark in panel.marks):
        return {"visible": False, "constrain": "domain"}
    plain = not any(isinstance(mark, Cells | Surface) for mark in panel.marks)
    found: dict[str, Any] = {
        "title": {"text": _safe(axis.title), "standoff": 6},
        "automargin": True,
        "showgrid": plain and not axis.names,
        "gridcolor": LIGHT,
        "zeroline": False,
        "showline": True,
        "linecolor": GREY,
        "ticks": "outside",
    }
    if axis.log:
        found |= {
            "type": "log",
            "dtick": 1,
            "minor": {"ticks": "outside"},
            "exponentformat": "power",
        }
    if axis.names:
        found |= {"tickvals": list(range(len(axis.names))), "ticktext": _all_safe(axis.names)}
        found["range"] = [-0.5, len(axis.names) - 0.5]
    if axis.whole:
        found["tickformat"] = ",d"
        if axis.low is not None and axis.high is not None and axis.high - axis.low < FEW:
            found["dtick"] = 1
    if not axis.names and (axis.low is not None or axis.high is not None):
        found["range"] = [math.log10(e) if axis.log and e else e for e in padded(axis)]
    if axis.downwards:
        found["range"] = found["range"][::-1]
    return found


def _add(made: go.Figure, mark: Mark, place: dict[str, int], named: set[str]) -> None:
    if isinstance(mark, Rule):
        add = made.add_vline if mark.across == "x" else made.add_hline
        add(mark.at, line={"color": BLACK, "width": 1}, **place)
        return
    traces = _traces(mark)
    name = getattr(mark, "name", "")
    for trace in traces:
        own = trace is traces[-1]  # the first of a band's two is its lower edge
        legend = {"showlegend": bool(name) and own and name not in named, "legendgroup": name}
        if not isinstance(trace, go.Heatmap | go.Contour | go.Image):
            trace.update(name=_safe(name), **legend)
        made.add_trace(trace, **place)
    named.add(name)


def _traces(mark: Mark) -> list[Any]:
    match mark:
        case Points():
            marker: dict[str, Any] = {"symbol": SYMBOLS[mark.symbol], "size": mark.size}
            if mark.values is not None:
                marker |= {"color": _numbers(mark.values), "coloraxis": "coloraxis"}
                marker["line"] = {"width": 0.5, "color": BLACK}
            else:
                marker |= {"color": mark.color, "line": {"width": 1.5, "color": mark.color}}
            return [_scatter(mark.x, mark.y, mark.texts, mode="markers", marker=marker)]
        case Line():
            line = {"color": mark.color, "width": mark.width}
            line |= {"dash": "dash"} if mark.dashed else {}
            line |= {"shape": "hv"} if mark.stairs else {}
            mode = "lines+markers" if mark.dots else "lines"
            return [_scatter(mark.x, mark.y, mark.texts, mode=mode, line=line)]
        case Band():
            edge: dict[str, Any] = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
            red, green, blue = rgb(mark.color)
            fill = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.2)"}
            x = _numbers(mark.x)
            return [
                go.Scatter(x=x, y=_numbers(mark.low), **edge),
                go.Scatter(x=x, y=_numbers(mark.high), **edge, **fill),
            ]
        case Bars():
            return _bars(mark)
        case Cells():
            shown = {"texttemplate": "%{z:.0f}"} if mark.written else {}
            values = [_numbers(row) for row in mark.values]
            hover = "%{y} · %{x}: %{z:.1f}<extra></extra>"
            return [
                go.Heatmap(
                    z=values, coloraxis="coloraxis", hovertemplate=hover, xgap=1, ygap=1, **shown
                )
            ]
        case Surface():
            return [_surface(mark)]
        case Pixels():
            return [go.Image(source=_data_url(mark.image), hoverinfo="skip")]
    raise AssertionError(mark)


def _surface(mark: Surface) -> go.Contour:
    """Contours.  plotly.js 4.1 hangs on those with a shared colour axis; `figure` sets their ends."""
    return go.Contour(
        x=_numbers(mark.x),
        y=_numbers(mark.y),
        z=[_numbers(row) for row in mark.values],
        colorscale=SCALE,
        showscale=False,
        ncontours=12,
        line={"width": 0.5},
        hoverinfo="skip",
    )


def _bars(mark: Bars) -> list[Any]:
    """Bars, and their texts beside the ends of their intervals."""
    rows = list(range(len(mark.values)))
    bars = go.Bar(
        x=_numbers(mark.values),
        y=rows,
        orientation="h",
        marker_color=mark.color,
        width=0.6,
        hoverinfo="skip",
    )
    if mark.high:
        above = [max(high - v, 0) for v, high in zip(mark.values, mark.high, strict=True)]
        below = [max(v - low, 0) for v, low in zip(mark.values, mark.low, strict=True)]
        bars.error_x = {"array": above, "arrayminus": below, "width": 0, "color": BLACK}
    ends = [max(pair) for pair in zip(mark.values, mark.high or mark.values, strict=True)]
    texts = go.Scatter(
        x=ends,
        y=rows,
        mode="text",
        text=[f"  {text}" for text in _all_safe(mark.texts)],
        textposition="middle right",
        cliponaxis=False,
        hoverinfo="skip",
    )
    return [bars, texts]


def _data_url(image: NDArray[Any]) -> str:
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _scatter(
    x: Sequence[float], y: Sequence[float], texts: Sequence[str], **how: Any
) -> go.Scatter:
    if texts:
        how |= {"text": _all_safe(texts), "hovertemplate": "%{text}<extra></extra>"}
    return go.Scatter(x=_numbers(x), y=_numbers(y), **how)


def _parallel(panel: Parallel) -> go.Parcoords:
    dimensions = []
    for i, axis in enumerate(panel.axes):
        values = [row[i] for row in panel.rows]
        shown = ticks(axis)
        if any(map(math.isnan, values)):
            shown = [(MISSING, "not used"), *shown]
        dimensions.append(
            {
                "label": _safe(axis.title),
                "values": [MISSING if math.isnan(v) else along(axis, v) for v in values],
                "range": [MISSING if shown[0][0] == MISSING else 0, 1],
                "tickvals": [place for place, _ in shown],
                "ticktext": [_safe(text) for _, text in shown],
            }
        )
    line = {"color": _numbers(panel.values), "coloraxis": "coloraxis"}
    return go.Parcoords(dimensions=dimensions, line=line, labelangle=-12)


def _numbers(values: Sequence[float]) -> list[float | None]:
    """JSON has no NaN."""
    return [None if value != value else float(value) for value in values]


def _safe(text: str) -> str:
    """Plotly reads some HTML in texts."""
    return html.escape(text, quote=False)


def _all_safe(texts: Sequence[str]) -> list[str]:
    return [_safe(text) for text in texts]
