"""The sparsity of every layer while it is trained."""

from __future__ import annotations

from sparsegnn.study.bands import band, exactly
from sparsegnn.study.plots import style
from sparsegnn.study.plots.describe import Axis, Figure, Line, Missing, Panel, named, short
from sparsegnn.study.plots.series import View, percent
from sparsegnn.study.results import Case

NAME = "layer_sparsity"
SHOWN = 0.9  # of each method the case whose sparsity is nearest to this


def figures(view: View) -> list[Figure] | Missing:
    """One for each net, a panel for each method."""
    found = []
    for net in view.nets:
        panels = []
        for series in view.series(net, "sparse"):
            case = min(series.cases, key=lambda c: (abs(c.sparsity - SHOWN), c.case))
            lines = layers(case)
            if lines:
                axes = Axis("optimizer steps"), Axis("sparsity of the layer, %")
                panels.append(Panel(net, f"{series.label}, {percent(case.sparsity)}", *axes, lines))
        if panels:
            found.append(Figure(named(NAME, net, found), f"Sparsity of every layer: {net.title}", panels))
    return found or Missing(NAME, "no sparse run has the sparsity of its layers")


def layers(case: Case) -> list[Line]:
    """A line for each layer: at every step where a seed changes it, the mean over the seeds."""
    names = list(dict.fromkeys(name for row in case.rows for name in row.layers))
    lines = []
    for name in names:
        rows = [row for row in case.rows if row.layers.get(name)]
        last = max(row.steps for row in rows)
        steps = sorted({step for row in rows for step, _ in row.layers[name]} | {last})
        steps = [step for step in steps if all(row.layers[name][0][0] <= step for row in rows)]
        y = [band([100 * _at(row.layers[name], step) for row in rows]) for step in steps]
        text = [f"{name}\nstep {step}: {value.mean:.4g} % sparse" for step, value in zip(steps, y, strict=True)]
        look = style.numbered(len(lines))
        lines.append(Line(short(name), look, [exactly(step) for step in steps], y, text, shaded=True, steps=True))
    return lines


def _at(points: list[tuple[int, float]], step: int) -> float:
    """The last value set by this step."""
    return [value for at, value in points if at <= step][-1]
