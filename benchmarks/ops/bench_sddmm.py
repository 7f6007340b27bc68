"""Dot products over edges, against gather + multiply + sum and torch's sampled product."""

import torch
from harness.graphs import lognormal

from sparsegnn.ops import sddmm


def cases() -> list[dict]:
    return [dict(nodes=20_000, edges=200_000, width=64, quick=True)] + [
        dict(nodes=170_000, edges=2_300_000, width=width) for width in (16, 64, 128)
    ]


def inputs(case: dict):
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(case["nodes"], case["width"], generator=g) for _ in range(2))
    return lognormal(case["nodes"], case["edges"]), a, b


def ours(case: dict):
    graph, a, b = inputs(case)
    return lambda: sddmm(graph, a, b)


def baselines(case: dict) -> dict:
    graph, a, b = inputs(case)
    m = graph.num_rows
    row, col = torch.repeat_interleave(torch.arange(m), graph.crow.diff().long()), graph.col.long()
    zero = torch.sparse_csr_tensor(graph.crow, graph.col, torch.zeros(graph.num_edges), (m, m))
    bt = b.t()
    return {
        "gather+sum": lambda: (a[row] * b[col]).sum(1),
        "torch.sparse.sampled_addmm": lambda: torch.sparse.sampled_addmm(zero, a, bt, beta=0.0),
    }


def work(case: dict) -> dict:
    e, n, k = case["edges"], case["nodes"], case["width"]
    return dict(flop=2 * e * k, bytes=8 * e + 4 * n + 8 * n * k)
