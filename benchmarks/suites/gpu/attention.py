"""GATConv and GATv2Conv, forward + backward, against PyG's, with the memory that they take; the op against spmm."""

from __future__ import annotations

import functools

import torch
from harness import graphs
from harness.suite import Group, Row
from suites.gpu import exact
from suites.gpu.common import aggregation_work, bars, graph_case, graph_of, group

import gpu

STAGE = "attention"
PYG = ("PyG", "PyG compiled")


def groups(quick: bool) -> list[Group]:
    return [layer("gat", "arxiv", quick, (2, 5), STAGE), op("arxiv", quick)]


def more(quick: bool) -> list[Group]:
    return [layer("gatv2", "arxiv", quick, None, "more"), layer("gat", "yelp", quick, None, "more")]


def layer(kind: str, name: str, quick: bool, ratio: tuple | None, stage: str) -> Group:
    """Forward + backward with the gradients of input and parameters. Of the largest graph the output is not checked:
    fp64 does not fit; PyG's fp32 may not either."""
    inputs, heads, width = (16, 2, 4) if quick else (128, 4, 64)
    checked = name != "yelp"
    label = {"gat": "GATConv", "gatv2": "GATv2Conv"}[kind]

    def make() -> gpu.Contest:
        from sparsegnn import nn

        graph = graph_of(name, quick).add_self_loops()
        contest = gpu.Contest(dict(degrees=graphs.degrees(graph)))
        torch.manual_seed(0)
        ours = getattr(nn, label)(inputs, width, heads=heads, add_self_loops=False).to(gpu.device())
        state = {key: gpu.randn(*t.shape, seed=i) * 0.1 for i, (key, t) in enumerate(ours.state_dict().items())}
        ours.load_state_dict(state)
        x, dy = gpu.randn(graph.num_cols, inputs).requires_grad_(), gpu.randn(graph.num_rows, heads * width, seed=2)

        def step(convolution, edges):
            names, leaves = zip(*sorted(convolution.named_parameters()), strict=True)

            def run():
                y = convolution(x, edges)
                return y, *torch.autograd.grad(y, (x, *leaves), dy)

            return run

        def oracle() -> list[torch.Tensor]:
            leaves = {key: t.double().requires_grad_() for key, t in sorted(state.items())}
            wide = x.detach().double().requires_grad_()
            y = formula[kind](graph, wide, leaves, heads, width)
            return [y.detach(), *torch.autograd.grad(y, (wide, *leaves.values()), dy.double())]

        want = functools.cache(oracle) if checked else None
        contest.add("sparsegnn", step(ours, graph), want=want)
        edges = torch.stack([graph.col.long(), graph.rows()])

        def theirs(wrap):
            from torch_geometric import nn as pyg

            convolution = getattr(pyg, label)(inputs, width, heads=heads, add_self_loops=False).to(gpu.device())
            convolution.load_state_dict(state)
            return wrap(step(convolution, edges), convolution)

        def compiled(run, convolution):
            names, leaves = zip(*sorted(convolution.named_parameters()), strict=True)
            forward = gpu.compiled(convolution)

            def step():
                y = forward(x, edges)
                return y, *torch.autograd.grad(y, (x, *leaves), dy)

            return step

        contest.offer("PyG", lambda: theirs(lambda run, _: run), want=want)
        if name == "arxiv":
            contest.offer("PyG compiled", lambda: theirs(compiled), want=want)
        return contest

    case = graph_case(name, quick, inputs=inputs, heads=heads, width=width)
    one = aggregation_work(case["nodes"], case["edges"] + case["nodes"], heads * width, "fp32")
    work = {key: (2 if kind == "gat" else 3) * value for key, value in one.items()}
    text = f"{label} {inputs} to {heads}x{width}, {name}, forward + backward"
    rows = [
        Row(f"{text}: PyG", "sparsegnn", PYG, bars(*ratio or ()), work=work),
        Row(f"{text}, peak memory: PyG", "sparsegnn", PYG, {}, "memory"),
    ]
    return group(text, stage, case, rows, make, seconds=4)


def gat_formula(graph, x, p: dict, heads: int, width: int):
    h = (x @ p["lin.weight"].t()).view(-1, heads, width)
    rows, col = graph.rows(), graph.col.long()
    score = (h * p["att_src"]).sum(2)[col] + (h * p["att_dst"]).sum(2)[rows]
    y = exact.softmax_sum(graph, torch.nn.functional.leaky_relu(score, 0.2), h)
    return y.flatten(1) + p["bias"]


def gatv2_formula(graph, x, p: dict, heads: int, width: int):
    left, right = ((x @ p[f"lin_{s}.weight"].t() + p[f"lin_{s}.bias"]).view(-1, heads, width) for s in "lr")
    rows, col = graph.rows(), graph.col.long()
    both = torch.nn.functional.leaky_relu(left[col] + right[rows], 0.2)
    y = exact.softmax_sum(graph, (both * p["att"]).sum(2), left)
    return y.flatten(1) + p["bias"]


formula = {"gat": gat_formula, "gatv2": gatv2_formula}


def op(name: str, quick: bool) -> Group:
    """The op alone: one gather forward and one backward, so little more than spmm of the same width."""
    heads, width = (2, 4) if quick else (4, 64)

    def make() -> gpu.Contest:
        from sparsegnn import ops

        graph = graph_of(name, quick)
        contest = gpu.Contest(dict(degrees=graphs.degrees(graph)))
        x = gpu.randn(graph.num_cols, heads, width)
        scores = [gpu.randn(graph.num_cols, heads, seed=s) for s in (2, 3)]
        dy = gpu.randn(graph.num_rows, heads, width, seed=4)
        leaves = [t.clone().requires_grad_() for t in (x, *scores)]

        def both():
            y = ops.gat(graph, *leaves)
            return y, *torch.autograd.grad(y, leaves, dy)

        want = functools.cache(lambda: exact.attention(graph, x, *scores, dy))
        contest.add("forward + backward", both, want=want)
        contest.add("forward", lambda: ops.gat(graph, *leaves).detach(), want=lambda: want()[:1])
        rows = exact.some_rows(graph)
        contest.add("spmm", lambda: ops.spmm(graph, x.flatten(1)), view=lambda y: [y[rows]],
                    want=lambda: [exact.aggregate(graph.crow, graph.col, x.flatten(1), rows)])  # fmt: skip
        return contest

    case = graph_case(name, quick, heads=heads, width=width)
    one = aggregation_work(case["nodes"], case["edges"], heads * width, "fp32")
    two = {key: 2 * value for key, value in one.items()}
    text = f"gat {heads}x{width}, {name}"
    rows = [
        Row(f"{text}, forward: our spmm sum", "forward", ("spmm",), bars(1.25, 1.25), "slow-down", one),
        Row(f"{text}, forward + backward: its forward", "forward + backward", ("forward",), bars(2.5, 2.2),
            "slow-down", two),
    ]  # fmt: skip
    return group(f"{text}, the op", STAGE, case, rows, make, seconds=2)
