"""Seconds of training until a net is as good as the best dense one."""

from __future__ import annotations

from dataclasses import replace

from sparsegnn.study.compare import Reached, reached, target
from sparsegnn.study.plots.describe import Axis, Bars, Figure, Missing, Segment, named
from sparsegnn.study.plots.series import View
from sparsegnn.study.plots.text import number, with_band
from sparsegnn.study.results import Net

NAME = "time_to_score"


def figures(view: View) -> list[Figure] | Missing:
    """One for each net."""
    found: list[Figure] = []
    note = ("Target: the mean test score of the dense net of full width less 0.3 points, of an error 0.3 % more, "
            "by the step selected on the validation set; hatched: by some of the seeds alone")  # fmt: skip
    for net in view.nets:
        if target(net) is not None:
            title = f"Training time to the target: {net.title}"
            found.append(
                Figure(named(NAME, net, found), title, [panel(view, net)], note + view.left_out(net), columns=1)
            )
    return found or Missing(NAME, "no run is dense, so that there is no target")


def panel(view: View, net: Net) -> Bars:
    aim, names, styles, values, said, text = target(net), [], [], [], [], []
    for series, case in view.chosen(net):
        found = reached(net, case, aim.score)
        names.append(view.name(net, case))
        some = found.seconds is not None and found.seeds < found.of
        styles.append(replace(series.style, hatch="///" * some))
        values.append(found.seconds)
        said.append(_said(found))
        text.append(f"{view.name(net, case)}\n{with_band(found.seconds)} s, {found.seeds} of {found.of} seeds")
    metric = net.metric
    title = f"test {metric.name} {number(aim.score, 4)}" + " %" * (metric.unit == "%")
    segment = Segment("time to the target", styles, values, text)
    return Bars(net, title, Axis("measured training time, s"), names, [segment], said)


def _said(found: Reached) -> str:
    if found.seconds is None:
        return "not reached"
    some = "" if found.seeds == found.of else f", {found.seeds} of {found.of}"
    return f"{number(found.seconds.mean)} s{some}"
