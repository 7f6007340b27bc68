"""Seconds of training until a net is as good as the best dense one."""

from __future__ import annotations

from dataclasses import replace

from sparsegnn.study.compare import Reached, reached, target
from sparsegnn.study.plots.describe import Axis, Bars, Figure, Missing, Segment
from sparsegnn.study.plots.series import View
from sparsegnn.study.plots.text import number, with_band
from sparsegnn.study.results import Net

NAME = "time_to_score"


def figure(view: View) -> Figure | Missing:
    panels = [panel(view, net) for net in view.nets if target(net) is not None]
    if not panels:
        return Missing(NAME, "no run is dense, so that there is no target")
    note = ("Target: the mean test score of the best dense net less 0.3 points, of an error 0.3 % more, by the step "
            "selected on the validation set; hatched: by some of the seeds alone")  # fmt: skip
    return Figure(NAME, "Training time to the target", panels, note, columns=1)


def panel(view: View, net: Net) -> Bars:
    aim, names, styles, values, said, text = target(net), [], [], [], [], []
    for series in view.series(net):
        for case in series.cases:
            found = reached(net, case, aim.score)
            names.append(view.name(net, case))
            some = found.seconds is not None and found.seeds < found.of
            styles.append(replace(series.style, hatch="///" * some))
            values.append(found.seconds)
            said.append(_said(found))
            text.append(f"{view.name(net, case)}\n{with_band(found.seconds)} s, {found.seeds} of {found.of} seeds")
    metric = net.metric
    title = f"{net.title}: test {metric.name} {number(aim.score, 4)}" + " %" * (metric.unit == "%")
    segment = Segment("time to the target", styles, values, text)
    return Bars(net, title, Axis("measured training time, s"), names, [segment], said)


def _said(found: Reached) -> str:
    if found.seconds is None:
        return "not reached"
    some = "" if found.seeds == found.of else f", {found.seeds} of {found.of} seeds"
    return f"{number(found.seconds.mean)} s{some}"
