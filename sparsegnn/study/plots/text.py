"""Numbers and words of the figures."""

from __future__ import annotations

import math

from sparsegnn.study.bands import Band
from sparsegnn.study.plots.describe import Axis
from sparsegnn.study.plots.series import View, percent
from sparsegnn.study.results import Case, Net


def score_axis(net: Net) -> Axis:
    metric = net.metric
    better = "" if metric.higher_is_better else "\n(lower is better)"
    return Axis(f"test {metric.name}, {metric.unit}{better}")


def number(value: float, digits: int = 3) -> str:
    """Three digits, thousands apart, no exponent between a thousandth and a billion."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    if not 1e-3 <= abs(value) < 1e9:
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def with_band(value: Band | None, digits: int = 3) -> str:
    """0.45 (0.41 to 0.50); of one seed without the band."""
    if value is None:
        return "-"
    if value.kind == "single":
        return number(value.mean, digits)
    return f"{number(value.mean, digits)} ({number(value.low, digits)} to {number(value.high, digits)})"


def plus_minus(value: Band | None, places: int = 2, sign: bool = False) -> str:
    """81.20 ± 0.40, half the width of the band; of one seed without it."""
    if value is None:
        return "-"
    mean = f"{round(value.mean, places) + 0.0:{'+' if sign else ''}.{places}f}"  # no -0.00
    return mean if value.kind == "single" else f"{mean} ± {(value.high - value.low) / 2:.{places}f}"


def case_text(view: View, net: Net, case: Case) -> str:
    """What a case is and has, for who points at it."""
    metric, seeds = net.metric, len(case.rows)
    unit = f" {metric.unit}" if metric.unit == "%" else ""
    lines = [
        view.name(net, case),
        f"test {metric.name} {plus_minus(case.score)}{unit}, {seeds} seed{'s' * (seeds != 1)}",
        f"{percent(case.sparsity)} sparse, {case.rows[0].weights:,} of {case.rows[0].weights_dense:,} weights",
    ]
    for label, name, factor, unit in (("training", "seconds_training", 1, "s"), ("training", "flops", 1, "FLOPs"),
                                      ("model", "model_bytes", 2**-20, "MiB")):  # fmt: skip
        found = case.band(name)
        if found is not None:
            lines.append(f"{label} {number(found.mean * factor)} {unit}")
    return "\n".join(lines)
