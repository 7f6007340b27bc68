"""Figures for a page: what is described as plotly's JSON, with what each point is for who points at it."""

from __future__ import annotations

import html

from sparsegnn.study.bands import Band
from sparsegnn.study.plots import scales
from sparsegnn.study.plots.describe import Axis, Bars, Line, Panel, Segment, Style, short

SYMBOLS = {"o": "circle", "^": "triangle-up", "s": "square", "v": "triangle-down", "D": "diamond", "P": "cross",
           "X": "x", "<": "triangle-left", ">": "triangle-right", "*": "star", "h": "hexagon", "d": "diamond-tall",
           "+": "cross-thin", "x": "x-thin"}  # fmt: skip
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", "-..": "longdashdot", ":": "dot"}
HATCHES = {"\\\\\\": "\\", "///": "/", "...": ".", "xxx": "x", "---": "-"}
HEIGHT, ENTRY, BAR = 330, 19, 29  # pixels: of a panel, an entry of its legend, a bar


def plot(panel: Panel | Bars) -> dict:
    """``data`` and ``layout`` of plotly, checked by it. All text is escaped: plotly takes some of HTML's tags."""
    from plotly import graph_objects

    data, layout = _bars(panel) if isinstance(panel, Bars) else _panel(panel)
    layout |= {
        "template": "none",
        "title": {"text": _text(short(panel.title, 90)), "font": {"size": 14}, "x": 0.02, "xanchor": "left"},
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#1a1a1a"},
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"color": "black"}},
        "hovermode": "closest",
        "margin": {"l": 60, "r": 16, "t": 40, "b": 50},
        "legend": {
            "orientation": "h",
            "traceorder": "normal",
            "x": 0,
            "y": -0.22,
            "yanchor": "top",
            "font": {"size": 11},
        },
    }
    made = graph_objects.Figure(data, layout).to_plotly_json()
    made["layout"].pop("template", None)
    return {"data": made["data"], "layout": made["layout"]}


def _text(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def _axis(axis: Axis, panel: Panel, name: str) -> dict:
    import math

    made = {"title": {"text": _text(axis.label), "standoff": 8}, "automargin": True, "zeroline": False,
            "gridcolor": "#e4e4e4", "linecolor": "#555", "showline": True, "ticks": "outside"}  # fmt: skip
    found = scales.ticks(panel, name)
    if found is not None:
        limits, positions, texts = found
        log = axis.scale == "log"
        made |= {"tickvals": positions, "ticktext": texts}
        made |= {"range": [math.log10(v) for v in limits] if log else list(limits)}
        made |= {"type": "log"} if log else {}
    return made


# --- lines -----------------------------------------------------------------------------------------------------------


def _panel(panel: Panel) -> tuple[list[dict], dict]:
    data = []
    found = scales.ticks(panel, "x")
    ends = [b.mean for line in panel.lines for b in line.x] or [0.0]
    left, right = found[0] if found else (min(ends), max(ends))
    named = {line.label for line in panel.lines}
    for level in panel.levels:
        look = level.style
        if level.y.high > level.y.low:
            data += _band([left, right], [level.y.low] * 2, [level.y.high] * 2, look, level.label, "linear")
        text = _text(f"{level.label}: {level.y.mean:.4g}")
        data.append({"type": "scatter", "mode": "lines", "x": [left, right], "y": [level.y.mean] * 2,
                     "name": _text(level.label), "legendgroup": _text(level.label), "hoverinfo": "text",
                     "hovertext": [text, text], "showlegend": level.label not in named,
                     "line": {"color": look.colour, "width": 1.2, "dash": DASHES[look.dash]}})  # fmt: skip
    for line in panel.lines:
        data += _line(line, panel.x.scale)
    if panel.marks:
        data.append({
            "type": "scatter", "mode": "markers", "x": [scales.to_scale(panel.x.scale, m.x) for m in panel.marks],
            "y": [m.y for m in panel.marks], "hovertext": [_text(m.text) for m in panel.marks], "hoverinfo": "text",
            "showlegend": False,
            "marker": {"size": 14, "symbol": "circle-open", "color": [m.style.colour for m in panel.marks],
                       "line": {"width": 2}},
        })  # fmt: skip
    entries = len([line for line in panel.lines if not line.group]) + len(panel.levels)
    layout = {"xaxis": _axis(panel.x, panel, "x"), "yaxis": _axis(panel.y, panel, "y"), "showlegend": True,
              "height": HEIGHT + ENTRY * entries}  # fmt: skip
    return data, layout


def _line(line: Line, scale: str) -> list[dict]:
    look, x = line.style, [scales.to_scale(scale, b.mean) for b in line.x]
    shape = "hv" if line.steps else "linear"
    trace = {
        "type": "scatter", "mode": "lines+markers" if line.joined else "markers", "x": x, "y": [b.mean for b in line.y],
        "name": _text(line.label), "legendgroup": _text(line.group or line.label), "hoverinfo": "text",
        "hovertext": [_text(text) for text in line.text], "showlegend": not line.group,
        "line": {"color": look.colour, "width": 2, "dash": DASHES[look.dash], "shape": shape},
        "marker": {"symbol": SYMBOLS[look.marker] + "-open" * look.hollow,
                   "size": 12 if look.marker == "*" else 8, "color": look.colour,
                   "line": {"color": look.colour, "width": 1.5}},
    }  # fmt: skip
    low, high = [b.low for b in line.y], [b.high for b in line.y]
    if line.shaded:
        return (_band(x, low, high, look, line.label, shape) if low != high else []) + [trace]
    trace["error_y"] = _reach(line.y, look)
    if scale != "kept":
        trace["error_x"] = _reach(line.x, look)
    return [trace]


def _reach(bands: list, look: Style) -> dict:
    up, down = [_above(b) for b in bands], [_below(b) for b in bands]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": look.colour, "thickness": 1,
            "width": 0}  # fmt: skip


def _band(x: list, low: list, high: list, look: Style, label: str, shape: str) -> list[dict]:
    """Two lines that are not seen, and what is between them."""
    r, g, b = (int(look.colour[i : i + 2], 16) for i in (1, 3, 5))
    both = {"type": "scatter", "mode": "lines", "x": x, "hoverinfo": "skip", "showlegend": False,
            "legendgroup": _text(label), "line": {"width": 0, "shape": shape}}  # fmt: skip
    return [both | {"y": low}, both | {"y": high, "fill": "tonexty", "fillcolor": f"rgba({r},{g},{b},0.14)"}]


# --- bars ------------------------------------------------------------------------------------------------------------


def _bars(bars: Bars) -> tuple[list[dict], dict]:
    names, stacked = [_name(name) for name in bars.names], len(bars.segments) > 1
    places = list(range(len(names)))
    data = [_segment(segment, places, stacked) for segment in bars.segments]
    ends = []
    for i in places:
        found = [s.values[i] for s in bars.segments if s.values[i] is not None]
        ends.append(max([sum(v.mean for v in found), *(v.high for v in found if not stacked)], default=0.0))
    said = [_text(f" {text}") for text in bars.said]
    data.append({"type": "scatter", "mode": "text", "x": ends, "y": places, "text": said, "hoverinfo": "skip",
                 "textposition": "middle right", "showlegend": False, "cliponaxis": False})  # fmt: skip
    axis = {"title": {"text": _text(bars.x.label), "standoff": 8}, "automargin": True, "zeroline": False,
            "gridcolor": "#e4e4e4", "range": [0, scales.room(bars)]}  # fmt: skip
    layout = {
        "barmode": "stack", "bargap": 0.3, "showlegend": stacked, "xaxis": axis,
        "yaxis": {"tickvals": places, "ticktext": names, "range": [len(names) - 0.4, -0.6], "automargin": True,
                  "showgrid": False, "zeroline": False, "tickfont": {"size": 11}},
        "height": 150 + BAR * len(names) + ENTRY * (2 if stacked else 0),
    }  # fmt: skip
    return data, layout


def _segment(segment: Segment, places: list[int], stacked: bool) -> dict:
    looks, values = segment.styles, segment.values
    trace = {
        "type": "bar", "orientation": "h", "y": places, "x": [None if v is None else v.mean for v in values],
        "name": _text(segment.label), "hoverinfo": "text", "hovertext": [_text(text) for text in segment.text],
    }  # fmt: skip
    if stacked:  # of one look, so that the legend shows it
        (look,) = set(looks)
        pattern = {"shape": HATCHES.get(look.hatch, ""), "fgcolor": "white", "size": 6, "fillmode": "overlay"}
        return trace | {"marker": {"color": look.colour, "line": {"color": "white", "width": 1}, "pattern": pattern}}
    trace["marker"] = {
        "color": ["white" if look.hollow else look.colour for look in looks],
        "line": {"color": [look.colour for look in looks], "width": 1},
        "pattern": {"shape": [HATCHES.get(look.hatch, "") for look in looks], "size": 6, "fillmode": "overlay",
                    "fgcolor": ["#444" if look.hollow else "white" for look in looks]},
    }  # fmt: skip
    up, down = ([0.0 if v is None else side(v) for v in values] for side in (_above, _below))
    trace["error_x"] = {"type": "data", "symmetric": False, "color": "#444", "thickness": 1, "width": 3, "array": up,
                        "arrayminus": down, "visible": any(up + down)}  # fmt: skip
    return trace


def _name(name: str) -> str:
    """In two lines where it is long, as windows may be narrow."""
    text = _text(short(name, 60))
    return text.replace(": ", ":<br>", 1) if len(name) > 30 else text


def _above(band: Band) -> float:
    return band.high - band.mean


def _below(band: Band) -> float:
    return band.mean - band.low
