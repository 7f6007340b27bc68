"""Scales, their limits and ticks, the same on paper and on a page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsegnn.study.bands import Band, exactly
from sparsegnn.study.plots.describe import Bars, Panel

MOST = 0.9999  # sparsity at which the scale of what is kept ends
#: ticks of that scale, in %
SPARSITIES = (0, 50, 80, 90, 95, 98, 99, 99.5, 99.9)
SUFFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def place(sparsity: float) -> float:
    """Where a sparsity in % lies on the scale `kept`: 0 at 0 %, 1 at 90 %, 2 at 99 %."""
    return -math.log10(1 - min(max(sparsity / 100, -1.0), MOST))


def to_scale(scale: str, value: float) -> float:
    """A value as the position that is drawn: only those on the scale `kept` move."""
    return place(value) if scale == "kept" else value


def suffixed(value: float) -> str:
    """50, 0.02, 5 T."""
    for size, suffix in SUFFIXES:
        if value >= size:
            return f"{value / size:g} {suffix}"
    return f"{value:g}"


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Three to about seven round numbers in [low, high]: some of each decade, 1 of each alone, or even steps."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = [float(f"{s * 10.0**d:.6g}") for d in decades for s in steps]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= 3:
            break
    if len(found) < 3:
        raw = (high - low) / 6
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(s * size for s in (1, 2, 2.5, 5, 10) if s * size >= raw)
        found = [float(f"{i * step:.6g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    elif len(found) > most:
        found = [tick for tick in found if f"{tick:e}"[0] == "1"]
    return found[:: math.ceil(len(found) / most)]


def log_limits(values: Sequence[float]) -> tuple[float, float]:
    """Around the positive ones, with a margin."""
    positive = [value for value in values if value > 0]
    low, high = min(positive), max(positive)
    margin = max((high / low) ** 0.06, 1.05)
    return low / margin, high * margin


def kept_limits(values: Sequence[float]) -> tuple[float, float]:
    """Positions on the scale `kept` around sparsities in %."""
    low, high = place(min(values)), place(max(values))
    margin = max(0.05 * (high - low), 0.04)
    return low - margin, high + margin


def kept_ticks(limits: tuple[float, float]) -> list[float]:
    """Sparsities in %, within the limits, which are positions."""
    low, high = limits
    found = [s for s in SPARSITIES if low <= place(s) <= high]
    if len(found) < 2:
        near = [100 * (1 - 10.0**-p) for p in (low, (low + high) / 2, high)]
        found = sorted({float(f"{s:.3g}") for s in near if s >= 0})
    return found


def ticks(panel: Panel, name: str) -> tuple[tuple[float, float], list[float], list[str]] | None:
    """Limits, ticks and their texts along ``x`` or ``y``, kept sparsities as positions; None: as the library has it."""
    scale, bands = getattr(panel, name).scale, _bands(panel, name)
    if scale == "kept":
        limits = kept_limits([b.mean for b in bands])
        found = kept_ticks(limits)
        return limits, [place(tick) for tick in found], [f"{tick:g}" for tick in found]
    if scale == "log":
        limits = log_limits([v for b in bands for v in (b.mean, max(b.low, b.mean / 3), min(b.high, 3 * b.mean))])
        found = log_ticks(*limits)
        return limits, found, [suffixed(tick) for tick in found]
    return None


def _bands(panel: Panel, name: str) -> list[Band]:
    """Everything along an axis."""
    found = [b for line in panel.lines for b in getattr(line, name)]
    found += [exactly(getattr(mark, name)) for mark in panel.marks]
    return found + [level.y for level in panel.levels if name == "y"]


def room(bars: Bars) -> float:
    """The right end of the axis, with what is written beside the bars."""
    return (longest(bars) or 1.0) * (1 + 0.022 * max(map(len, bars.said)))


def longest(bars: Bars) -> float:
    """The right end of the longest bar, its band included."""
    ends = [0.0]
    for i in range(len(bars.names)):
        values = [s.values[i] for s in bars.segments if s.values[i] is not None]
        ends.append(sum(v.mean for v in values))
        ends += [v.high for v in values] if len(bars.segments) == 1 else []
    return max(ends)
