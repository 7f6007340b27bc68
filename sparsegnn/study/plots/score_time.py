"""Score against the measured time of training."""

from __future__ import annotations

from sparsegnn.study.plots.cost import against
from sparsegnn.study.plots.describe import Axis, Figure, Missing
from sparsegnn.study.plots.series import View

NAME = "score_time"


def figure(view: View) -> Figure | Missing:
    axis = Axis("measured training time, s", "log")
    return against(view, NAME, "Score against measured training time", "seconds_training", axis)
