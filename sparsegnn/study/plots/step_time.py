"""A step of training in parts that were measured: what a sparse weight can and cannot save."""

from __future__ import annotations

from sparsegnn.study.bands import band
from sparsegnn.study.plots import style
from sparsegnn.study.plots.describe import Axis, Bars, Figure, Missing, Segment, named
from sparsegnn.study.plots.series import View
from sparsegnn.study.plots.text import number
from sparsegnn.study.results import PARTS, Case, Net

NAME = "step_time"
SAID = {"mask_updates": "mask updates"}


def figures(view: View) -> list[Figure] | Missing:
    """One for each net."""
    found: list[Figure] = []
    for net in view.nets:
        bars = panel(view, net)
        if bars is not None:
            note = "Mask updates are spread over the steps"
            if all(segment.label != "optimizer" for segment in bars.segments):
                note += ", the optimizer is within elementwise"
            title = f"A training step in parts: {net.title}"
            found.append(Figure(named(NAME, net, found), title, [bars], note + view.left_out(net), columns=1))
    return found or Missing(NAME, "no run has seconds of the parts of a step")


def panel(view: View, net: Net) -> Bars | None:
    cases = [case for _, case in view.chosen(net) if any(row.parts for row in case.rows)]
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
    return (
        Bars(net, "mean of all steps and seeds", Axis("measured time of a step, ms"), names, segments, said)
        if segments
        else None
    )


def milliseconds(case: Case) -> dict[str, float]:
    """Of each part of a step, means over the seeds."""
    rows = [row.parts for row in case.rows if row.parts]
    return {part: 1e3 * sum(row.get(part, 0.0) for row in rows) / len(rows) for part in PARTS
            if any(part in row for row in rows)}  # fmt: skip
