"""Never slower than dense: SparseLinear as it chooses its kernel, against the better of the dense and sparse one.

A cell of the grid may be 10 % slower at most, in the best of three repeats, and 3 % in the geometric mean; by the
static policy, and by what ``only_if_faster`` measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from harness.suite import Group, Row
from suites import peers

SHAPES = ((4096, 256, 256), (16384, 512, 512), (65536, 256, 256), (8192, 1024, 1024), (2708, 1433, 16))
SPARSITIES = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
CELL, MEAN = 1.10, 1.03  # bars
CHOOSERS = {"static": "static policy", "measured": "only_if_faster"}


def groups(quick: bool) -> list[Group]:
    shapes = ((128, 64, 64),) if quick else SHAPES
    return [cell(shape, sparsity) for shape in shapes for sparsity in ((0.0, 0.9) if quick else SPARSITIES)]


def cell(shape: tuple[int, int, int], sparsity: float) -> Group:
    n, k, m = shape

    def make() -> dict[str, Callable]:
        from sparsegnn import plans
        from sparsegnn.nn import SparseLinear

        torch.manual_seed(0)
        static = SparseLinear(k, m, sparsity=sparsity)
        measured, sparse = SparseLinear(k, m, sparsity=sparsity), SparseLinear(k, m, sparsity=sparsity)
        measured.choose_kernel_(plans.measure(measured, n)["ratio"])
        sparse.choose_kernel_(0.0)
        layers = {"static": static, "measured": measured, "sparse": sparse, "nn.Linear": torch.nn.Linear(k, m)}
        return {name: peers.linear_step(n, k, m, layer) for name, layer in layers.items()}

    name = f"{','.join(map(str, shape))} {100 * sparsity:g} %"
    rows = tuple(Row(f"{name}, {CHOOSERS[c]}", c, ("nn.Linear", "sparse"), {"default": (CELL, None)}, "slow-down")
                 for c in CHOOSERS)  # fmt: skip
    return Group(name, dict(shape=shape, sparsity=sparsity), rows, make, regimes=("default",), seconds=2.5, repeats=3)


def summary(rows: list[dict]) -> list[dict]:
    """Geometric means over the grid."""
    found = []
    for text in CHOOSERS.values():
        cells = [r for r in rows if r["suite_row"].endswith(text) and r["value"] is not None]
        if not cells:
            continue
        mean = statistics.geometric_mean(r["value"] for r in cells)
        about = dict(suite_row=f"geometric mean of {len(cells)} cells, {text}", group="mean", case={}, value=mean)
        judged = dict(bar=MEAN, passed=mean <= MEAN) if cells[0]["bar"] is not None else dict(bar=None, passed=None)
        empty = dict.fromkeys(("ours", "theirs", "baseline", "roofline", "error", "error_baseline"))
        found.append(cells[0] | empty | about | judged)
    return found
