"""One GCN layer with a sparse weight, forward and backward, against cuSPARSE and cuBLAS; updates of a pattern."""

from __future__ import annotations

import functools

import torch
from harness import graphs
from harness.suite import Group, Row
from suites.gpu import exact
from suites.gpu.common import aggregation_work, bars, graph_case, graph_of, group, quickest
from suites.gpu.weights import index_of

import gpu
from gpu import cusparse

STAGE = "layer"


def groups(quick: bool) -> list[Group]:
    return [convolution("arxiv", quick), *(update(m, k, quick) for m, k in ((1024, 1024), (4096, 2560)))]


def more(quick: bool) -> list[Group]:
    return [building("reddit", quick)]


def convolution(name: str, quick: bool) -> Group:
    """90 % sparse. Backward: dx and the gradient of the weights; of the dense peers two products and one sum over
    edges, A being symmetric."""
    n = 16 if quick else 256

    def make() -> gpu.Contest:
        from sparsegnn import ops, pattern

        graph = graph_of(name, quick)
        contest, rows = gpu.Contest(dict(degrees=graphs.degrees(graph))), exact.some_rows(graph)
        crow, col, norm = exact.normalized(graph)
        crow_w, col_w = pattern.random_pattern(n, n, sparsity=0.9, generator=torch.Generator().manual_seed(0))
        index, values = index_of(crow_w, col_w, n), gpu.randn(col_w.numel(), seed=5)
        at = torch.repeat_interleave(torch.arange(n), crow_w.diff().long()).to(gpu.device()), index[1].long()
        sparse = torch.zeros(n, n, device=gpu.device(), dtype=torch.float64).index_put(at, values.double())
        dense, bias = gpu.randn(n, n, seed=6), gpu.randn(n, seed=7)
        x, dy = gpu.randn(graph.num_rows, n, seed=8), gpu.randn(graph.num_rows, n, seed=9)

        def forward(w):
            return functools.cache(lambda: [exact.aggregate(crow, col, x, rows, norm) @ w.double().t() + bias.double()])

        @functools.cache
        def pulled():  # A^T dy of all rows
            every = torch.arange(graph.num_rows, device=gpu.device())
            return exact.aggregate(crow, col, dy, every, norm)

        def backward(w, pick=lambda dw: dw):
            return functools.cache(lambda: [pulled()[rows] @ w.double(), pick(pulled().t() @ x.double())])

        def ours(x, values):
            return ops.gcn(graph, x, values, bias, pattern=index)

        contest.add("forward", lambda: ours(x, values), want=forward(sparse), view=lambda y: [y[rows]])
        leaves = x.clone().requires_grad_(), values.clone().requires_grad_()
        y = ours(*leaves)
        contest.add("backward", lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True),
                    want=backward(sparse, lambda dw: dw[at]), view=lambda g: [g[0][rows], g[1]])  # fmt: skip
        where, multiply = quickest(cusparse.contenders(crow, col, norm.float(), x))
        back = quickest(cusparse.contenders(crow, col, norm.float(), dy))[1]
        contest.facts["cuSPARSE"] = where

        def gradients():
            g = back()
            return g @ dense, g.t() @ x

        for rate, wrap in (("fp32", lambda f: f), ("tf32", gpu.with_tf32)):
            contest.add(f"dense forward {rate}", wrap(lambda: torch.addmm(bias, multiply(), dense.t())),
                        precision=rate, want=forward(dense), view=lambda y: [y[rows]])  # fmt: skip
            contest.add(f"dense backward {rate}", wrap(gradients), precision=rate, want=backward(dense),
                        view=lambda g: [g[0][rows], g[1]],
                        tolerance=gpu.LONG_SUM if rate == "fp32" else None)  # fmt: skip
        return contest

    case = graph_case(name, quick, inputs=n, outputs=n, sparsity=0.9, precision="fp32")
    one = aggregation_work(case["nodes"], case["edges"] + case["nodes"], n, "fp32")
    flop = 2 * case["nodes"] * n * n // 10
    rows, text = [], f"gcn {n} to {n}, 90 %, {name}"
    for what, products, ratios in (("forward", 1, {"fp32": (1.2, 1.8), "tf32": (1.0, 1.2)}),
                                   ("backward", 2, {"fp32": (1.2, 2.0), "tf32": (1.0, 1.3)})):  # fmt: skip
        work = one | dict(flop=products * flop, rate="operand")
        for rate, ratio in ratios.items():
            rows.append(Row(f"{text}, {what}: cuSPARSE + torch.mm {rate.replace('tf', 'TF')}", what,
                            (f"dense {what} {rate}",), bars(*ratio), work=work))  # fmt: skip
    return group(text, STAGE, case, rows, make, seconds=4)


def update(m: int, k: int, quick: bool) -> Group:
    """Exactly that many weights move; the result equals the one by sorting."""
    m, k = (13, 9) if quick else (m, k)

    def make() -> gpu.Contest:
        from sparsegnn import pattern
        from sparsegnn.ops.topology import reference

        contest = gpu.Contest()
        crow, col = (t.to(gpu.device()) for t in pattern.random_pattern(m, k, sparsity=0.9))
        drop, grow = gpu.randn(col.numel()), gpu.randn(m, k, seed=2)
        count, op = torch.tensor(int(0.3 * col.numel()), device=gpu.device()), torch.ops.sparsegnn.topology_

        def fresh(function):
            def run():
                c, j = crow.clone(), col.clone()
                return c, j, function(c, j, drop, grow, count)

            return run

        want = functools.cache(lambda: [t.double() for t in fresh(reference)()])
        contest.add("sparsegnn", fresh(op), want=want, tolerance=0.0)
        contest.add("sorting", fresh(reference), want=want, tolerance=0.0)
        return contest

    text = f"topology update, {m}x{k}, 90 %, 30 % moved"
    work = dict(flop=0, bytes=4 * (m * k + 4 * m * k // 10))
    limit = bars(0.2, 0.2) if (m, k) == (1024, 1024) else {}
    rows = [
        Row(f"{text}, ms", "sparsegnn", (), limit, "time", work),
        Row(f"{text}: sorting", "sparsegnn", ("sorting",), work=work),
    ]
    return group(text, STAGE, dict(outputs=m, inputs=k, sparsity=0.9, moved=0.3), rows, make, seconds=1.5)


def building(name: str, quick: bool) -> Group:
    """What comes before the first step: CSR and its transpose from an edge list, against torch's sorting."""

    def make() -> gpu.Contest:
        from sparsegnn import CSRGraph

        graph = graph_of(name, quick)
        contest, n = gpu.Contest(dict(degrees=graphs.degrees(graph))), graph.num_rows
        g = torch.Generator(gpu.device()).manual_seed(3)
        order = torch.randperm(graph.num_edges, device=gpu.device(), generator=g)
        edges = torch.stack([graph.col.long(), graph.rows()])[:, order]

        def ours():
            made = CSRGraph.from_edge_index(edges, n)
            return made.crow, made.col, *made.transpose()[:2]

        def sorting():
            crow, col = sides(edges[1] * n + edges[0])
            return crow, col, *sides(edges[0] * n + edges[1])

        def sides(keys):
            keys = keys.sort().values
            crow = torch.zeros(n + 1, dtype=torch.int32, device=gpu.device())
            crow[1:] = torch.bincount(keys // n, minlength=n).cumsum(0)
            return crow, (keys % n).int()

        want = functools.cache(lambda: [t.double() for t in (graph.crow, graph.col, graph.crow, graph.col)])
        contest.add("sparsegnn", ours, want=want, tolerance=0.0)
        contest.add("sorting", sorting, want=want, tolerance=0.0)
        return contest

    text = f"CSR and transpose from an edge list, {name}"
    case = graph_case(name, quick)
    rows = [Row(f"{text}: sorting", "sparsegnn", ("sorting",), work=dict(flop=0, bytes=24 * case["edges"]))]
    return group(text, "more", case, rows, make, seconds=2)
