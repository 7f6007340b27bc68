"""Score against the bytes of the trained model."""

from __future__ import annotations

from sparsegnn.study.plots.cost import against
from sparsegnn.study.plots.describe import Axis, Figure, Missing
from sparsegnn.study.plots.series import View

NAME = "score_bytes"


def figure(view: View) -> Figure | Missing:
    axis = Axis("model, values and indices, MiB", "log")
    return against(view, NAME, "Score against model size", "model_bytes", axis, 2**-20)
