"""Aggregation over a log-normal graph, against MKL, torch's reductions, torch_sparse, and gather + scatter."""

import torch
from harness.graphs import lognormal, rmat

from sparsegnn.ops import spmm

GRAPHS = dict(lognormal=lognormal, rmat=rmat)


def cases() -> list[dict]:
    large = [
        dict(graph=graph, nodes=170_000, edges=2_300_000, width=width, reduce=reduce)
        for graph in ("lognormal", "rmat")
        for reduce, widths in (("sum", (16, 64, 128, 256)), ("mean", (64,)), ("max", (64,)))
        for width in widths
    ]
    small = [
        dict(graph="lognormal", nodes=20_000, edges=200_000, width=64, reduce=reduce, quick=True)
        for reduce in ("sum", "max")
    ]
    return small + large


def inputs(case: dict):
    graph = GRAPHS[case["graph"]](case["nodes"], case["edges"])
    x = torch.randn(case["nodes"], case["width"], generator=torch.Generator().manual_seed(1))
    return graph, x


def ours(case: dict):
    graph, x = inputs(case)
    if case["reduce"] == "max":  # with the slots of the edges, as training has it
        return lambda: torch.ops.sparsegnn.spmm(x, graph.crow, graph.col, *[None] * 7, "max")[0]
    return lambda: spmm(graph, x, reduce=case["reduce"])


def baselines(case: dict) -> dict:
    graph, x = inputs(case)
    m, reduce = graph.num_rows, {"max": "amax"}.get(case["reduce"], case["reduce"])
    a = torch.sparse_csr_tensor(graph.crow, graph.col, torch.ones(graph.num_edges), (m, m))
    row = torch.repeat_interleave(torch.arange(m), graph.crow.diff().long())
    col, index = graph.col.long(), row[:, None].expand(-1, case["width"])
    found = {"torch.sparse.mm reduce": lambda: torch.sparse.mm(a, x, reduce)}
    if reduce == "sum":
        found["torch.sparse.mm"] = lambda: torch.sparse.mm(a, x)
    found["gather+scatter"] = lambda: x.new_zeros(m, x.size(1)).scatter_reduce_(
        0, index, x[col], reduce, include_self=reduce == "sum"
    )
    try:
        from torch_sparse import SparseTensor, matmul
    except ImportError:
        return found
    t = SparseTensor(rowptr=graph.crow.long(), col=col, sparse_sizes=(m, m))
    found["torch_sparse"] = lambda: matmul(t, x, reduce=case["reduce"])
    return found


def work(case: dict) -> dict:
    """Compulsory traffic: every row of x read once, every row of y written once, the pattern read once."""
    e, n, k = case["edges"], case["nodes"], case["width"]
    return dict(flop=2 * e * k if case["reduce"] != "max" else 0, bytes=4 * e + 4 * n + 8 * n * k)
