"""Score against the floating-point operations of training."""

from __future__ import annotations

from sparsegnn.study.plots.cost import against
from sparsegnn.study.plots.describe import Axis, Figure, Missing
from sparsegnn.study.plots.series import View

NAME = "score_flops"


def figure(view: View) -> Figure | Missing:
    axis = Axis("training FLOPs, products and aggregation", "log")
    return against(view, NAME, "Score against training FLOPs", "flops", axis)
