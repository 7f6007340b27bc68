"""How many times sooner a sparse net is trained than its dense one, and where that begins."""

from __future__ import annotations

from dataclasses import replace

from sparsegnn.study.bands import exactly
from sparsegnn.study.compare import as_good, break_even, dense_of, seconds, speedup
from sparsegnn.study.plots import style
from sparsegnn.study.plots.describe import Axis, Figure, Level, Line, Mark, Missing, Panel
from sparsegnn.study.plots.series import View
from sparsegnn.study.plots.text import case_text, with_band
from sparsegnn.study.results import Case, Net

NAME = "speedup"


def figure(view: View) -> Figure | Missing:
    panels = [made for net in view.nets if (made := panel(view, net)) is not None]
    if not panels:
        return Missing(NAME, "no sparse run has a dense one of equal width, both with seconds of training")
    note = ("Seconds of training of the dense net of equal width by those of the net shown; circles: break-even. "
            "Hollow: the soonest dense net of any width that is as good as the sparse one of this marker and sparsity, "
            "its score less 0.3 points, of an error 0.3 % more, or better")  # fmt: skip
    return Figure(NAME, "Speed-up over the dense net of equal width", panels, note)


def panel(view: View, net: Net) -> Panel | None:
    lines, marks = [], []
    for series in view.series(net, "sparse", "masked"):
        found = [(case, gained) for case in series.cases if (gained := speedup(case, dense_of(net, case))) is not None]
        if not found:
            continue
        x = [exactly(view.sparsity(net, case)) for case, _ in found]
        y = [gained for _, gained in found]
        text = [f"{case_text(view, net, case)}\n{with_band(gained)} times as fast as dense" for case, gained in found]
        lines.append(Line(series.label, series.style, x, y, text, shaded=True))
        even = break_even([(a.mean, b.mean) for a, b in zip(x, y, strict=True)])
        if even is not None and series.role == "sparse":
            marks.append(Mark(even, 1.0, f"{series.label}: break-even at {even:.0f} %", series.style))
        if series.role == "sparse":
            others = narrower(view, net, [case for case, _ in found])
            if others is not None:
                others.label, others.group = f"dense, as good as {series.label}", series.label
                others.style = replace(series.style, hollow=True)
                lines.append(others)
    if not lines:
        return None
    even = Level("dense of equal width", style.Style(style.BLACK), exactly(1.0))
    return Panel(net, net.title, Axis("sparsity, %", "kept"), Axis("speed-up, times", "log"), lines, [even], marks)


def narrower(view: View, net: Net, cases: list[Case]) -> Line | None:
    """The speed-up of the soonest dense net that is as good as each of these sparse ones."""
    x, y, text = [], [], []
    for case in cases:
        other, dense = as_good(net, case), dense_of(net, case)
        gained = None if other is None else speedup(other, dense)
        if gained is not None:
            x.append(exactly(view.sparsity(net, case)))
            y.append(exactly(1.0) if other is dense else gained)
            text.append(f"as good as {view.name(net, case)}:\n{case_text(view, net, other)}\n"
                        f"{with_band(gained)} times as fast as dense, "
                        f"{seconds(case) / seconds(other):.3g} times as fast as the sparse net")  # fmt: skip
    return Line("dense, as good", style.DENSE, x, y, text, joined=False) if x else None
