"""What the parts of the suite share: graphs, baselines of several parts, floors."""

from __future__ import annotations

import torch
from harness import graphs
from harness.suite import Group, Row

import gpu
from gpu import cusparse

REGIME = "gpu"
L2_ROWS = 280_000  # nodes: slices of 32 features of so many fit in 36 MB of L2
SIZE = {"fp32": 4, "tf32": 4, "bf16": 2}
QUICK = {"products": "tiny blocks"}


def bars(ship: float | None = None, target: float | None = None) -> dict:
    """Bar and target of a row, by regime; the bar is what it takes to ship."""
    return {} if ship is None else {REGIME: (ship, target)}


def group(name: str, stage: str, case: dict, rows: list[Row], make, seconds: float = 3.0) -> Group:
    return Group(name, case, tuple(rows), make, regimes=(REGIME,), seconds=seconds, stage=stage)


def about(name: str, quick: bool) -> graphs.StandIn:
    return graphs.STAND_INS[QUICK.get(name, "tiny") if quick else name]


def graph_of(name: str, quick: bool, order: str = "random"):
    return graphs.stand_in(QUICK.get(name, "tiny") if quick else name, str(gpu.device()), order)


def graph_case(name: str, quick: bool, **more) -> dict:
    size = about(name, quick)
    return dict(graph=name, nodes=size.nodes, edges=size.edges, degree=round(size.edges / size.nodes, 1), **more)


def aggregation_work(nodes: int, edges: int, width: float, precision: str) -> dict:
    """Where slices fit in L2: every edge's row from there, and each row once from memory; else all from memory."""
    row, index = width * SIZE[precision], 4
    if nodes <= L2_ROWS:
        return dict(flop=0, bytes=2 * nodes * row + 2 * index * edges, l2=edges * row)
    return dict(flop=0, bytes=edges * row + 2 * index * edges + nodes * row)


def product_work(n: int, k: int, m: int, precision: str) -> dict:
    """A dense product: every operand once, or its FLOPs."""
    rate = {"fp32": "flops"}.get(precision, precision)
    return dict(flop=2 * n * k * m, rate=rate, bytes=SIZE[precision] * n * (k + m))


def ones(graph, precision: str) -> torch.Tensor:
    return torch.ones(graph.num_edges, device=gpu.device(), dtype=gpu.DTYPES[precision])


def offer_cusparse(contest: gpu.Contest, crow, col, val, xs: list, suffix: str = "", **options) -> None:
    """Every way to multiply that cuSPARSE has, for each set of inputs."""
    for name in cusparse.NAMES_OF_ALL:
        make = [cusparse.contenders(crow, col, val, x)[name] for x in xs]
        contest.offer(name + suffix, lambda make=make: [m() for m in make], **options)


def cusparse_names(suffix: str = "") -> tuple[str, ...]:
    return tuple(name + suffix for name in cusparse.NAMES_OF_ALL)


def quickest(calls: dict):
    """The name and the callable of the one that takes least time; those that fail are left out."""
    clock, best = gpu.DeviceClock(), (float("inf"), "", None)
    for name, make in calls.items():
        try:
            call = make()
            timer = clock.timer(call)
            best = min(best, (min(clock.sample(timer, clock.runs(clock.once(timer), 5e-3))[1] for _ in range(3)),
                              name, call), key=lambda found: found[0])  # fmt: skip
        except Exception:
            gpu.assert_alive()
    return best[1:]
