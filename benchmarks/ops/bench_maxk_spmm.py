"""Aggregation of k of F features per node, against aggregation of all F: ours and torch's."""

import torch
from harness.graphs import lognormal

from sparsegnn.ops import maxk, maxk_spmm, spmm


def cases() -> list[dict]:
    large = [
        dict(nodes=170_000, edges=2_300_000, width=256, k=k, backward=backward)
        for backward in (False, True)
        for k in (16, 32, 64)
    ]
    return [dict(nodes=20_000, edges=200_000, width=256, k=32, backward=False, quick=True), *large]


def inputs(case: dict):
    graph = lognormal(case["nodes"], case["edges"])
    x = torch.randn(case["nodes"], case["width"], generator=torch.Generator().manual_seed(1))
    return graph, x, torch.ones(case["nodes"], case["width"])


def both(case: dict, forward, leaf: torch.Tensor, dy: torch.Tensor):
    if not case["backward"]:
        return forward
    leaf.requires_grad_()
    y = forward()
    return lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True)


def ours(case: dict):
    graph, x, dy = inputs(case)
    values, index = maxk(x, case["k"])
    return both(case, lambda: maxk_spmm(graph, values, index, case["width"]), values, dy)


def baselines(case: dict) -> dict:
    graph, x, dy = inputs(case)
    ones = torch.ones(graph.num_edges)
    a = torch.sparse_csr_tensor(graph.crow, graph.col, ones, graph.shape)
    found = {"ours, dense rows": lambda: spmm(graph, x)}
    if case["backward"]:
        ccol, row, _ = graph.transpose()
        leaf = x.clone()
        found["ours, dense rows"] = both(case, lambda: spmm(graph, leaf), leaf, dy)
        a = torch.sparse_csr_tensor(ccol, row, ones, graph.shape)
        found["torch.sparse.mm"] = lambda: torch.sparse.mm(a, dy)
    else:
        found["torch.sparse.mm"] = lambda: torch.sparse.mm(a, x)
    return found


def work(case: dict) -> dict:
    """Compulsory traffic: compressed rows once, dense rows once, the pattern once."""
    e, n, width, k = case["edges"], case["nodes"], case["width"], case["k"]
    return dict(flop=2 * e * k, bytes=4 * e + 4 * n + n * (4 * width + 5 * k))
