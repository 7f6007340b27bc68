"""What a sparse net is held against: its dense net, narrower dense nets, dense weights under a mask; and a target."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

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
    """That of the best dense case of any width, by its mean, less 0.3 points; of an error 0.3 % more."""
    best = None
    for case in (c for n in net.family for c in n.of_role("dense")):
        if best is None or net.metric.better(case.score.mean, best.score.mean):
            best = case
    return None if best is None else Target(at_least(net, best.score.mean), best)


def time_to(net: Net, row: Row, score: float) -> float | None:
    """Seconds of training until the step that is selected by then has this score on the test set; None: never."""
    factor = net.metric.factor
    return next((at for _, _, test, _, at in row.curve if reaches(net, test * factor, score)), None)


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
    """Of all nets that reach the target, in the mean of their seeds, the dense and the sparse one that train soonest.

    ``speedup`` is seconds of training of the dense one by those of the sparse one; None where one is missing.
    """

    target: Target
    dense: Case | None
    sparse: Case | None
    speedup: Band | None


def verdict(nets: Sequence[Net]) -> Verdict | None:
    """Of sparse nets of these widths, a family's, against dense ones of any; None where no dense case sets a target."""
    net = nets[0]
    aim = target(net)
    if aim is None:
        return None
    soonest = []
    for cases in (net.dense_of_any_width, [c for n in nets for c in n.of_role("sparse")]):
        good = [c for c in cases if reaches(net, c.score.mean, aim.score) and seconds(c) > 0]
        soonest.append(min(good, key=lambda c: (seconds(c), c.case), default=None))
    dense, sparse = soonest
    return Verdict(aim, dense, sparse, None if sparse is None else speedup(sparse, dense))
