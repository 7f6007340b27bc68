"""Score against sparsity: what leaving weights out costs."""

from __future__ import annotations

from dataclasses import replace

from sparsegnn.study.bands import exactly
from sparsegnn.study.plots import style
from sparsegnn.study.plots.describe import Axis, Figure, Level, Line, Missing, Panel
from sparsegnn.study.plots.series import View
from sparsegnn.study.plots.text import case_text, score_axis

NAME = "score_sparsity"


def figure(view: View) -> Figure | Missing:
    panels = []
    for net in view.nets:
        lines = []
        for series in view.series(net, "sparse", "masked", "small_dense"):
            cases = sorted(series.cases, key=lambda case: view.sparsity(net, case))
            x = [exactly(view.sparsity(net, case)) for case in cases]
            text = [case_text(view, net, case) for case in cases]
            scores, joined = [case.score for case in cases], len({b.mean for b in x}) == len(x)
            lines.append(Line(series.label, series.style, x, scores, text, series.role == "sparse", joined=joined))
        if lines:
            panels.append(Panel(net, net.title, Axis("sparsity, %", "kept"), score_axis(net), lines, levels(view, net)))
    if not panels:
        return Missing(NAME, "no run is sparse")
    note = "Narrower dense nets stand at the sparsity of the net whose cost they share"
    return Figure(NAME, "Score against sparsity", panels, note)


def levels(view: View, net) -> list[Level]:
    """The scores of dense nets."""
    cases = [case for series in view.series(net, "dense") for case in series.cases]
    looks = [replace(style.DENSE, dash=style.DASHES[i % len(style.DASHES)]) for i in range(len(cases))]
    return [Level(view.name(net, case), look, case.score) for case, look in zip(cases, looks, strict=True)]
