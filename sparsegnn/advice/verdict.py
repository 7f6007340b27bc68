"""The answer: levers, a narrower dense net, or neither."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsegnn.advice.levers import WORDS, Option
from sparsegnn.advice.search import Findings, Found, mildest

LITTLE = 0.9  # of the step: what gains less than a tenth gains nothing
SMALL_SHARE = 0.25  # of the step: so little of it is weights that their sparsity can hardly matter
NARROWEST = 1 / 64  # of the width: no further is guessed


@dataclass
class Answer:
    """``answer`` is "levers", "compare", "narrower" or "nothing"; ``option`` the one that it is about."""

    answer: str
    text: str
    option: Option | None = None
    equal_time_width: float | None = None  # share of the width of a dense net that is as fast, ...
    equal_weights_width: float | None = None  # ... and of one with as many weights, ...
    equal_weights_seconds: float | None = None  # ... whose step takes about so long


def decide(findings: Findings, hidden: int | None = None) -> Answer:
    """What to do, from measured steps where there are some.

    A lever costs accuracy, and so does width. So the fastest option is held against dense nets that are as fast: is one
    of half the width or more as fast, then it is the answer; below a quarter levers are; between, training tells.
    """
    given, full = findings.given, findings.get(Option()) or findings.given
    dense = [x for x in findings.options if x.option.kinds == ("narrower",)]
    options = [x for x in findings.options if x.option.kinds and x.option.width == 1]
    sure = [x for x in options if x.measured is not None] or options
    best = mildest(sure) if sure else None
    curve = {1.0: full, **{x.option.width: x for x in dense}}
    gains = best is not None and best.step <= LITTLE * given.step
    narrowest = min(dense, key=lambda x: x.step, default=None)
    narrower = narrowest is not None and narrowest.step <= LITTLE * given.step
    if not gains and not narrower:
        return Answer("nothing", _nothing(given))
    if not gains:
        text = f"{_use(narrowest, given)}. No lever gains a tenth of a step. {_why(full)}"
        return Answer("narrower", text, narrowest.option)
    lever = f"{best.option} takes {_ms(best.step)}, {given.step / best.step:.1f} times faster"
    if len(curve) == 1:
        text = f"Levers pay: {lever}. There is no narrower net to compare with: train one that is as fast, too."
        return Answer("levers", text, best.option)
    width = inverse({w: x.step for w, x in curve.items()}, best.step)
    weights, seconds = _equal_weights(curve, best)
    same = _same_weights(best, weights, seconds, hidden)
    compared, half = (width, weights, seconds), curve.get(0.5)
    if width >= 0.5 or (half is not None and best.step >= half.step):
        net = half or narrowest
        text = f"{_use(net, given)}. All levers together gain no more: {lever}. {_why(full)}{same}"
        return Answer("narrower", text, net.option, *compared)
    if width >= 0.25:
        text = (f"Train a dense net {_wide(width, hidden)} first, which is as fast as the best levers: {lever}. They "
                f"pay only where that net is less accurate.{same}")  # fmt: skip
        return Answer("compare", text, best.option, *compared)
    text = f"Levers pay: {lever}. A dense net that fast would be {_wide(width, hidden)}.{same}"
    return Answer("levers", text, best.option, *compared)


def interpolated(points: dict[float, float], at: float) -> float:
    """Of a curve through points (width, value), straight in logarithms, beyond its ends as in its last piece."""
    known = sorted((math.log(w), math.log(max(v, 1e-12))) for w, v in points.items())
    x = math.log(at)
    i = next((i for i in range(1, len(known) - 1) if x < known[i][0]), len(known) - 1)
    (x0, y0), (x1, y1) = known[i - 1], known[i]
    return math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0))


def inverse(points: dict[float, float], value: float) -> float:
    """The width at which a growing curve has ``value``: in [NARROWEST, 1]."""
    low, high = math.log(NARROWEST), 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if interpolated(points, math.exp(middle)) < value else (low, middle)
    return math.exp(high)


def _equal_weights(curve: dict[float, Found], best: Found) -> tuple[float | None, float | None]:
    if len(curve) < 2 or not best.option.sparsity:
        return None, None
    width = inverse({w: x.weights for w, x in curve.items()}, best.weights)
    return width, interpolated({w: x.step for w, x in curve.items()}, width)


# --- words -----------------------------------------------------------------------------------------------------------


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def _ms(seconds: float) -> str:
    return f"{milliseconds(seconds)} ms"


def _use(net: Found, given: Found) -> str:
    words = WORDS.get(net.option.width, f"{net.option.width:g} of the width")
    faster = f"{given.step / net.step:.1f} times faster"
    return f"Use a narrower dense net: at {words} a step takes {_ms(net.step)}, {faster}"


def _wide(share: float, hidden: int | None) -> str:
    if share <= NARROWEST * 1.01:
        return f"less than 1/{round(1 / NARROWEST)} as wide"
    return f"{share:.2f} times as wide" + ("" if hidden is None else f" (about {max(1, round(share * hidden))})")


def _why(full: Found) -> str:
    shares = {part: t / full.expected for part, t in full.seconds.items()}
    weights = f"Weights are {100 * (shares['weights'] + shares['features']):.0f} % of a step"
    if shares["weights"] + shares["features"] < SMALL_SHARE:
        return f"{weights}, so that their sparsity can hardly matter."
    largest = max((p for p in shares if p not in ("weights", "features")), key=shares.get)
    return f"{weights}, {largest} is {100 * shares[largest]:.0f} %, whatever is done to the weights."


def _nothing(given: Found) -> str:
    other = given.seconds["other"] / given.expected
    return (f"Leave it as it is: nothing here gains a tenth of a step of {_ms(given.step)}, a narrower net neither. Of "
            f"the step {100 * other:.0f} % is Python, autograd and launches.")  # fmt: skip


def _same_weights(best: Found, width: float | None, seconds: float | None, hidden: int | None) -> str:
    if width is None or seconds is None:
        return ""
    net = f" A dense net with as many weights would be {_wide(width, hidden)} and take about {_ms(seconds)}"
    return net + (": the sparse one must be more accurate." if seconds < best.step else ".")
