"""What a sparse net is held against: its dense net, narrower dense nets, dense weights under a mask; and a target."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsegnn.study.bands import Band, band, difference, ratio
from sparsegnn.study.results import OF_A_SEED, Case, Net, Row

CLOSE = 0.003  # of a score that is a share, 0.3 points; of an error, that part of it
#: settings of a method, in which a sparse case and its dense one differ anyhow
OF_A_METHOD = frozenset(("method", "sparsity", "distribution", "pattern", "update_every", "stop_at", "drop_fraction",
                         "set"))  # fmt: skip


def at_least(net: Net, score: float) -> float:
    """The score, in the unit shown, that counts as equal to this one: 0.3 points less, of an error 0.3 % more."""
    metric = net.metric
    return score - CLOSE * metric.factor if metric.higher_is_better else score * (1 + CLOSE)


def reaches(net: Net, score: float, target: float) -> bool:
    return not net.metric.better(target, score)


# --- counterparts ----------------------------------------------------------------------------------------------------


def dense_of(net: Net, case: Case) -> Case | None:
    """The dense case of the same width that differs in the fewest settings; None where there is none.

    Of a narrower dense net or a mask it is that of the sparse case whose counterpart it is.
    """
    if case.role == "dense":
        return case
    sparse = net.named(case.of) if case.of is not None else case
    if sparse is None:
        return None
    dense = [c for c in net.of_role("dense") if c.hidden == sparse.hidden]
    return min(dense, key=lambda c: (len(_differing(c, sparse)), c.case), default=None)


def _differing(a: Case, b: Case) -> list[str]:
    names = (a.config.keys() | b.config.keys()) - OF_A_METHOD - OF_A_SEED
    return [name for name in names if a.config.get(name) != b.config.get(name)]


def counterparts(net: Net, case: Case) -> list[Case]:
    """Narrower dense nets of equal weights, time and memory, and dense weights under a mask: those there are.

    A mask is one for all methods of equal width and sparsity.
    """
    alike = (case.hidden, case.sparsity_asked)
    masked = [c for c in net.of_role("masked") if c.of == case.case or (c.hidden, c.sparsity_asked) == alike]
    return [c for c in net.of_role("small_dense") if c.of == case.case] + masked


def as_good(net: Net, case: Case) -> Case | None:
    """The dense net of any width that trains in the least time of those whose mean score equals this one's, or is
    better; None where there is none."""
    wanted = at_least(net, case.score.mean)
    good = [c for c in net.dense_of_any_width if reaches(net, c.score.mean, wanted)]
    return min((c for c in good if seconds(c) > 0), key=lambda c: (seconds(c), c.case), default=None)


def seconds(case: Case) -> float:
    """Of training, measured, a mean over the seeds."""
    return statistics.fmean(case.values("seconds_training"))


def quotient(a: Case, b: Case | None, name: str) -> Band | None:
    """Of ``a`` by ``b`` in this value of their rows; None where one was not measured or is 0."""
    mine, theirs = a.values(name), [] if b is None else b.values(name)
    return ratio(mine, theirs) if mine and theirs else None


def speedup(case: Case, over: Case | None) -> Band | None:
    """Seconds of training of the other by those of this one."""
    return None if over is None else quotient(over, case, "seconds_training")


def gain(case: Case, over: Case | None) -> Band | None:
    """Score of this one less that of the other, in the unit shown."""
    return None if over is None else difference(case.scores, over.scores)


def break_even(points: Sequence[tuple[float, float]]) -> float | None:
    """The sparsity from which on a speed-up stays above 1, of (sparsity, speed-up) in order of sparsity.

    Between two points the logarithm of the speed-up is linear. None where it never does, or does from the first point.
    """
    if not points or points[-1][1] < 1:
        return None
    found = None
    for (s0, v0), (s1, v1) in zip(points, points[1:], strict=False):
        if v0 < 1 <= v1:
            found = s0 + (s1 - s0) * math.log(1 / v0) / math.log(v1 / v0)
    return found


# --- time to a target ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A score to be reached, in the unit shown, and the dense case that it comes from."""

    score: float
    best: Case


def target(net: Net) -> Target | None:
    """That of the best dense case of full width, by its mean, less 0.3 points; of an error 0.3 % more.

    Of full width are those that sparse cases may have; narrower dense nets are their counterparts, and set no target.
    """
    best = None
    for case in (c for n in net.family for c in n.of_role("dense")):
        if best is None or net.metric.better(case.score.mean, best.score.mean):
            best = case
    return None if best is None else Target(at_least(net, best.score.mean), best)


def time_to(net: Net, row: Row, score: float) -> float | None:
    """Seconds of training until the step that is selected by then has this score on the test set; None: never."""
    factor = net.metric.factor
    return next((at for _, _, test, _, at in row.curve if reaches(net, test * factor, score)), None)


def seconds_to(net: Net, case: Case, score: float) -> list[float]:
    """Of every seed the seconds of training until the mean test score over the seeds is this good; []: it never is.

    At every step it is that of the step selected by then, from the step on at which all seeds have selected one.
    """
    begin = max(row.curve[0][0] for row in case.rows)
    for at in sorted({point[0] for row in case.rows for point in row.curve if point[0] >= begin}):
        mean = statistics.fmean(_test_at(row, at) for row in case.rows)
        if reaches(net, mean * net.metric.factor, score):
            return [_seconds_at(row, at) for row in case.rows]
    return []


def _test_at(row: Row, step: int) -> float:
    return row.curve[bisect.bisect_right(row.curve, step, key=lambda point: point[0]) - 1][2]


def _seconds_at(row: Row, step: int) -> float:
    """Between two points of the curve steps take equally long; the last point stays the last."""
    steps, *_, seconds = zip(*row.curve, strict=True)
    return float(np.interp(step, steps, seconds))


@dataclass(frozen=True)
class Reached:
    """In how many of its seeds a case reaches a target, and the seconds that these take."""

    seeds: int
    of: int
    seconds: Band | None


def reached(net: Net, case: Case, score: float) -> Reached:
    times = [at for row in case.rows if (at := time_to(net, row, score)) is not None]
    return Reached(len(times), len(case.rows), band(times) if times else None)


# --- the answer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The dense and the sparse net that reach the target soonest, in the mean of their seeds.

    ``dense_seconds``, ``sparse_seconds``: of training until then. ``speedup``: the first by the second. None where
    no such net reaches it.
    """

    target: Target
    dense: Case | None
    dense_seconds: Band | None
    sparse: Case | None
    sparse_seconds: Band | None
    speedup: Band | None


def verdict(nets: Sequence[Net]) -> Verdict | None:
    """Of sparse nets of these widths, a family's, against dense ones of any; None where no dense case sets a target."""
    net = nets[0]
    aim = target(net)
    if aim is None:
        return None
    found, times = [], []
    for cases in (net.dense_of_any_width, [c for n in nets for c in n.of_role("sparse")]):
        good = [(c, s) for c in cases if (s := seconds_to(net, c, aim.score)) and min(s) > 0]
        case, its = min(good, key=lambda each: (statistics.fmean(each[1]), each[0].case), default=(None, []))
        found += [case, band(its) if its else None]
        times.append(its)
    return Verdict(aim, *found, ratio(*times) if all(times) else None)
