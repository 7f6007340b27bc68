"""Score against a cost: one line for each method through its sparsities, the dense nets as points of their own."""

from __future__ import annotations

from sparsegnn.study.plots import style
from sparsegnn.study.plots.describe import Axis, Figure, Line, Missing, Panel
from sparsegnn.study.plots.score_sparsity import levels
from sparsegnn.study.plots.series import Series, View
from sparsegnn.study.plots.text import case_text, score_axis
from sparsegnn.study.results import Net


def against(view: View, name: str, title: str, value: str, axis: Axis, factor: float = 1.0) -> Figure | Missing:
    """The figure for a value of the rows; cases of which it was not measured are left out."""
    panels, missing = [], 0
    for net in view.nets:
        lines = []
        for series in [*view.series(net, "dense", "sparse", "masked"), *other_widths(net)]:
            found = [(case, band) for case in series.cases if (band := case.band(value)) is not None and band.mean > 0]
            missing += len(series.cases) - len(found)
            if found:
                x = [band.scaled(factor) for _, band in found]
                text = [case_text(view, net, case) for case, _ in found]
                lines.append(Line(series.label, series.style, x, [case.score for case, _ in found], text))
        if lines:
            panels.append(Panel(net, net.title, axis, score_axis(net), lines, levels(view, net)))
    if not panels:
        return Missing(name, f"no run has {value} above 0")
    note = "Lines join the sparsities of a method, from the least to the most, and the dense nets, by their width"
    return Figure(
        name,
        title,
        panels,
        note + (f". Not shown, as not measured: {missing} case{'s' * (missing != 1)}" if missing else ""),
    )


def other_widths(net: Net) -> list[Series]:
    """Dense nets of other widths as a line, each width once: one net may be the counterpart of several."""
    found = {case.hidden or 0: case for case in reversed(net.dense_of_any_width) if case.hidden != net.width}
    cases = [case for _, case in sorted(found.items())]
    return [Series("dense, other widths", "small_dense", style.ANY_WIDTH, cases)] if cases else []
