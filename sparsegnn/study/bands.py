"""Means over seeds, and how far off they may be."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
LEAST = 3  # seeds that an interval by Student's t needs here; of fewer the smallest and the largest value are shown

SAID = {
    "t": f"{100 * LEVEL:g} % t-interval over the seeds",
    "range": f"smallest to largest value, fewer than {LEAST} seeds",
    "single": "one seed, no band",
}


@dataclass(frozen=True)
class Band:
    """A mean over ``n`` seeds with the band from ``low`` to ``high``; ``kind`` tells what that is.

    One of `SAID`, or ``set`` where nothing was measured."""

    mean: float
    low: float
    high: float
    n: int = 1
    kind: str = "single"

    def scaled(self, factor: float) -> Band:
        """The same in another unit, of which ``factor`` > 0 make one of this."""
        return Band(self.mean * factor, self.low * factor, self.high * factor, self.n, self.kind)


def exactly(value: float) -> Band:
    """A number that was set, not measured."""
    return Band(float(value), float(value), float(value), kind="set")


def band(values: Sequence[float]) -> Band:
    """Of one value for each seed: a t-interval, or smallest and largest of fewer than three seeds."""
    n, mean = len(values), statistics.fmean(values)
    if n < LEAST:
        return Band(mean, min(values), max(values), n, "single" if n == 1 else "range")
    half = _quantile(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return Band(mean, mean - half, mean + half, n, "t")


def difference(a: Sequence[float], b: Sequence[float]) -> Band:
    """Mean of ``a`` less that of ``b``, of seeds that need not be the same: Welch's interval, or the extremes."""
    mean, n, kind = statistics.fmean(a) - statistics.fmean(b), min(len(a), len(b)), _kind(a, b)
    if kind != "t":
        return Band(mean, min(a) - max(b), max(a) - min(b), n, kind)
    half = _welch(statistics.variance(a) / len(a), len(a), statistics.variance(b) / len(b), len(b))
    return Band(mean, mean - half, mean + half, n, kind)


def ratio(a: Sequence[float], b: Sequence[float]) -> Band | None:
    """Mean of ``a`` by that of ``b``; None unless all are positive.

    The interval is Welch's for the difference of their logarithms, whose variances are the squared relative errors of
    the means (the delta method); or the extremes.
    """
    if min(*a, *b) <= 0:
        return None
    top, bottom, n, kind = statistics.fmean(a), statistics.fmean(b), min(len(a), len(b)), _kind(a, b)
    if kind != "t":
        return Band(top / bottom, min(a) / max(b), max(a) / min(b), n, kind)
    relative = [statistics.variance(v) / len(v) / m**2 for v, m in ((a, top), (b, bottom))]
    factor = math.exp(_welch(relative[0], len(a), relative[1], len(b)))
    return Band(top / bottom, top / bottom / factor, top / bottom * factor, n, kind)


def kinds(bands: Sequence[Band]) -> str:
    """What the bands of a figure are, in words."""
    found = {b.kind for b in bands}
    return "; ".join(said for kind, said in SAID.items() if kind in found)


def _kind(a: Sequence[float], b: Sequence[float]) -> str:
    if min(len(a), len(b)) >= LEAST:
        return "t"
    return "single" if len(a) == len(b) == 1 else "range"


def _welch(a: float, n_a: int, b: float, n_b: int) -> float:
    """Half the width, of two squared standard errors."""
    if a + b == 0:
        return 0.0
    freedom = (a + b) ** 2 / (a**2 / (n_a - 1) + b**2 / (n_b - 1))
    return _quantile(freedom) * math.sqrt(a + b)


def _quantile(freedom: float) -> float:
    """Of Student's t, two-sided."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))
