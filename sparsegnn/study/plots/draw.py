"""Figures for paper: what is described, drawn by matplotlib as SVG and PNG."""

from __future__ import annotations

import io
import math
import textwrap
from pathlib import Path

from sparsegnn import _files
from sparsegnn.study.plots import scales, style
from sparsegnn.study.plots.describe import Bars, Figure, Line, Panel, Style, short

FORMATS = ("svg", "png")
PANEL, BAR = 2.5, 0.18  # inches: height of a panel, and of a bar
LINE = 0.147  # of a line of the legend


def save(figure: Figure, folder: Path) -> list[Path]:
    """Write ``<name>.svg`` and ``<name>.png``, each whole or not at all; byte for byte the same each time."""
    import matplotlib

    paths = []
    with matplotlib.rc_context(style.SETTINGS):
        drawn = draw(figure)
        for kind in FORMATS:
            content = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else None
            drawn.savefig(content, format=kind, dpi=200, metadata=metadata)
            paths.append(folder / f"{figure.name}.{kind}")
            _files.replace(paths[-1], content.getvalue())
    return paths


def draw(figure: Figure):
    """As a matplotlib Figure, as wide as a page; within ``rc_context(style.SETTINGS)``."""
    from matplotlib import figure as mpl

    columns = min(figure.columns, len(figure.panels))
    rows = math.ceil(len(figure.panels) / columns)
    heights = [max(_height(p) for p in figure.panels[i * columns : (i + 1) * columns]) for i in range(rows)]
    handles = _handles(figure)
    across = _across([label for _, label in handles])
    legend = math.ceil(len(handles) / across) * LINE + 0.1 * bool(handles)
    caption = textwrap.wrap(figure.caption, 138)
    below = legend + 0.125 * len(caption) + 0.08
    height = sum(heights) + below + 0.3
    drawn = mpl.Figure(figsize=(style.WIDTH, height))
    drawn.set_layout_engine("constrained", rect=(0, below / height, 1, 1 - (below + 0.28) / height), hspace=0.04)
    axes = drawn.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis in axes.flat[len(figure.panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, figure.panels, strict=False):
        axis.set_title(short(panel.title, 60 if columns > 1 else 110))
        (_bars if isinstance(panel, Bars) else _panel)(axis, panel)
    drawn.text(0.01, 1 - 0.06 / height, short(figure.title, 100), fontsize=10, fontweight="bold", va="top")
    drawn.text(0.01, 0.05 / height, "\n".join(caption), fontsize=6.5, va="bottom", linespacing=1.25, color="#333333")
    if handles:
        drawn.legend([h for h, _ in handles], [label for _, label in handles], ncols=across, frameon=False,
                     loc="upper center", bbox_to_anchor=(0.5, below / height), borderaxespad=0, columnspacing=1.4,
                     handlelength=3.2, labelspacing=0.35)  # fmt: skip
    drawn.draw_without_rendering()  # once, for all formats
    drawn.set_layout_engine("none")
    return drawn


def _height(panel: Panel | Bars) -> float:
    return 0.75 + BAR * len(panel.names) if isinstance(panel, Bars) else PANEL


# --- lines -----------------------------------------------------------------------------------------------------------


def _panel(axis, panel: Panel) -> None:
    for level in panel.levels:
        axis.axhline(level.y.mean, color=level.style.colour, linestyle=_dash(level.style), linewidth=0.9)
        if level.y.high > level.y.low:
            axis.axhspan(level.y.low, level.y.high, color=level.style.colour, alpha=0.1, linewidth=0)
    for line in panel.lines:
        _line(axis, line, panel.x.scale)
    for i, mark in enumerate(panel.marks):
        x, colour = scales.to_scale(panel.x.scale, mark.x), mark.style.colour
        axis.plot([x], [mark.y], "o", markerfacecolor="none", markeredgecolor=colour, markersize=8, zorder=5)
        axis.annotate(short(mark.text, 50), (0, 1), (4, -4 - 9.5 * i), xycoords="axes fraction", color=colour,
                      textcoords="offset points", va="top", fontsize=7)  # fmt: skip
    axis.set_xlabel(panel.x.label)
    axis.set_ylabel(panel.y.label)
    for name in ("x", "y"):
        found = scales.ticks(panel, name)
        if found is None:
            continue
        limits, positions, texts = found
        if getattr(panel, name).scale == "log":
            axis.set(**{f"{name}scale": "log"})
        axis.set(**{f"{name}lim": limits})
        getattr(axis, f"set_{name}ticks")([], minor=True)
        getattr(axis, f"set_{name}ticks")(positions, texts)


def _line(axis, line: Line, scale: str) -> None:
    x = [scales.to_scale(scale, b.mean) for b in line.x]
    y = [b.mean for b in line.y]
    look = line.style
    shape = "steps-post" if line.steps else "default"
    axis.plot(x, y, color=look.colour, linestyle=_dash(look) if line.joined else "", drawstyle=shape, **_marker(look))
    if line.shaded:
        low, high = [b.low for b in line.y], [b.high for b in line.y]
        if low != high:
            axis.fill_between(x, low, high, step="post" if line.steps else None, color=look.colour, alpha=0.15,
                              linewidth=0)  # fmt: skip
        return
    reach = {"elinewidth": 0.7, "alpha": 0.6, "fmt": "none", "ecolor": look.colour}
    error = [[b.mean - b.low for b in line.y], [b.high - b.mean for b in line.y]]
    along = [[m - max(b.low, m / 1e3) if m > 0 else 0 for b in line.x for m in (b.mean,)],
             [b.high - b.mean for b in line.x]]  # fmt: skip
    axis.errorbar(x, y, yerr=error, xerr=None if scale == "kept" else along, **reach)


def _dash(look: Style) -> object:
    return (0, (5, 1, 1, 1, 1, 1)) if look.dash == "-.." else look.dash


def _marker(look: Style) -> dict:
    size = style.SETTINGS["lines.markersize"] * (1.7 if look.marker == "*" else 1)
    face = "white" if look.hollow else look.colour
    return {"marker": look.marker, "markerfacecolor": face, "markeredgecolor": look.colour, "markersize": size}


# --- bars ------------------------------------------------------------------------------------------------------------


def _bars(axis, bars: Bars) -> None:
    positions = range(len(bars.names))
    starts = [0.0] * len(bars.names)
    for segment in bars.segments:
        for look in dict.fromkeys(segment.styles):
            mine = [i for i in positions if segment.styles[i] == look and segment.values[i] is not None]
            lengths, lefts = [segment.values[i].mean for i in mine], [starts[i] for i in mine]
            fill = ("white", look.colour, 1.0) if look.hollow else (look.colour, "white", 0.5)
            axis.barh(mine, lengths, 0.72, lefts, color=fill[0], edgecolor=fill[1], linewidth=fill[2],
                      hatch=look.hatch or None)  # fmt: skip
        for i, value in enumerate(segment.values):
            if value is not None and len(bars.segments) == 1 and value.high > value.low:
                axis.errorbar(value.mean, i, xerr=[[value.mean - value.low], [value.high - value.mean]], fmt="none",
                              ecolor="#444444", elinewidth=0.9, capsize=2)  # fmt: skip
            starts[i] += 0.0 if value is None else value.mean
    for i, said in enumerate(bars.said):
        end = max(starts[i], *(s.values[i].high for s in bars.segments if s.values[i] is not None), 0.0, 0.0)
        axis.annotate(said, (end, i), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axis.set_yticks(list(positions), [short(name, 60) for name in bars.names])
    axis.set_ylim(len(bars.names) - 0.4, -0.6)
    axis.set_xlim(0, scales.room(bars))
    axis.set_xlabel(bars.x.label)
    axis.grid(False, axis="y")
    axis.tick_params(axis="y", length=0)


# --- legend ----------------------------------------------------------------------------------------------------------


def _handles(figure: Figure) -> list[tuple]:
    """(artist, label), one for each label of all panels; none for bars that are named at their side."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found: dict[str, object] = {}
    richest = sorted(figure.panels, key=lambda p: len(p.segments if isinstance(p, Bars) else p.lines), reverse=True)
    for panel in richest:
        if isinstance(panel, Bars):
            for segment in panel.segments if len(panel.segments) > 1 else ():
                look = segment.styles[0]
                found.setdefault(
                    segment.label, Patch(facecolor=look.colour, edgecolor="white", hatch=look.hatch or None)
                )
            continue
        for level in panel.levels:
            found.setdefault(
                level.label, Line2D([], [], color=level.style.colour, linestyle=_dash(level.style), lw=0.9)
            )
        for line in (line for line in panel.lines if not line.group):
            marker = _marker(line.style)
            found[line.label] = Line2D([], [], color=line.style.colour, linestyle=_dash(line.style), **marker)
    return [(handle, _legend_text(label)) for label, handle in found.items()]


def _legend_text(label: str) -> str:
    """matplotlib leaves out what begins with an underscore."""
    return short(f" {label}" if label.startswith("_") else label, 44)


def _across(labels: list[str]) -> int:
    """Columns of the legend that fit."""
    widest = max((len(label) for label in labels), default=1)
    return max(1, min(len(labels), 4, 130 // (widest + 12)))
