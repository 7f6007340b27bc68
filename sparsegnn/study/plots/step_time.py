"""A step of training in parts that were measured: what a sparse weight can and cannot save."""

from __future__ import annotations

from sparsegnn.study.bands import band
from sparsegnn.study.plots import style
from sparsegnn.study.plots.describe import Axis, Bars, Figure, Missing, Segment
from sparsegnn.study.plots.series import View
from sparsegnn.study.plots.text import number
from sparsegnn.study.results import PARTS, Case, Net

NAME = "step_time"
SAID = {"mask_updates": "mask updates"}


def figure(view: View) -> Figure | Missing:
    panels = [made for net in view.nets if (made := panel(view, net)) is not None]
    if not panels:
        return Missing(NAME, "no run has seconds of the parts of a step")
    note = "Means over all steps and seeds; mask updates are spread over the steps, the optimizer is within elementwise"
    if any(s.label == "optimizer" for p in panels for s in p.segments):
        note = "Means over all steps and seeds; mask updates are spread over the steps"
    return Figure(NAME, "A training step in parts", panels, note, columns=1)


def panel(view: View, net: Net) -> Bars | None:
    cases = [case for series in view.series(net) for case in series.cases if any(row.parts for row in case.rows)]
    if not cases:
        return None
    found = [milliseconds(case) for case in cases]
    parts = [part for part in PARTS if any(f.get(part, 0.0) > 0 for f in found)]
    segments = []
    for part in parts:
        values = [band([f[part]]) if part in f else None for f in found]
        text = [f"{view.name(net, case)}\n{SAID.get(part, part)} {number(f.get(part, 0.0))} ms of "
                f"{number(sum(f.values()))} ms" for case, f in zip(cases, found, strict=True)]  # fmt: skip
        segments.append(Segment(SAID.get(part, part), [style.PARTS[part]] * len(cases), values, text))
    names = [view.name(net, case) for case in cases]
    said = [f"{number(sum(f.values()))} ms" for f in found]
    return Bars(net, net.title, Axis("measured time of a step, ms"), names, segments, said) if segments else None


def milliseconds(case: Case) -> dict[str, float]:
    """Of each part of a step, means over the seeds."""
    rows = [row.parts for row in case.rows if row.parts]
    return {part: 1e3 * sum(row.get(part, 0.0) for row in rows) / len(rows) for part in PARTS
            if any(part in row for row in rows)}  # fmt: skip
