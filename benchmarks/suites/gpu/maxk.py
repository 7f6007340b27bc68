"""MaxK: selection against torch.topk, aggregation of the selected features against cuSPARSE on the dense ones."""

from __future__ import annotations

import functools

import torch
from harness import graphs
from harness.suite import Group, Row
from suites.gpu import common, exact
from suites.gpu.common import aggregation_work, bars, cusparse_names, graph_case, graph_of, group

import gpu

STAGE = "maxk"
#: name of the variant -> its group (None: the k largest of a row), precision
VARIANTS = {
    "": (None, "fp32"),
    ", groups of 8": (8, "fp32"),
    ", bf16": (None, "bf16"),
    ", groups of 8, bf16": (8, "bf16"),
}


def groups(quick: bool) -> list[Group]:
    return [
        select("reddit", 232_965, quick, (5, 8)),
        aggregate("reddit", quick, (2.5, 5), STAGE),
        aggregate("reddit", quick, (2.5, 4), STAGE, backward=True),
        select("products", 2_449_029, quick, (5, 8)),
    ]


def more(quick: bool) -> list[Group]:
    return [aggregate("arxiv", quick, None, "more"), aggregate("arxiv", quick, None, "more", backward=True)]


def size_of(quick: bool) -> tuple[int, int]:
    """Width of the rows, and how many of them are kept."""
    return (32, 4) if quick else (256, 32)


def select(name: str, nodes: int, quick: bool, ratio: tuple) -> Group:
    width, k = size_of(quick)
    nodes = 300 if quick else nodes

    def make() -> gpu.Contest:
        from sparsegnn import ops

        contest = gpu.Contest()
        for precision in ("fp32", "bf16"):
            suffix, x = "" if precision == "fp32" else " bf16", gpu.randn(nodes, width, precision=precision)

            def best(x=x, part=None):  # dense, so that the order within a row does not matter
                parts = x.double().view(nodes, -1, part or width)
                top = parts.topk(k * parts.size(2) // width, dim=2)
                return [torch.zeros_like(parts).scatter(2, top.indices, top.values).flatten(1)]

            def dense(output):
                values, index = output
                return [
                    torch.zeros(nodes, width, device=gpu.device(), dtype=values.dtype).scatter(1, index.long(), values)
                ]

            options = dict(precision=precision, view=dense)
            ties = (
                {} if precision == "fp32" else dict(view=lambda y: [y[0].double().sort(1).values])
            )  # of bf16 are many
            for part, text in ((None, ""), (8, ", groups of 8")):
                want = functools.cache(lambda x=x, part=part: best(x, part))
                if ties:
                    want = functools.cache(lambda x=x, part=part: [kept(x, k, part or width)])
                contest.add(f"sparsegnn{text}{suffix}", lambda x=x, p=part: ops.maxk(x, k, p), want=want,
                            **options | ties)  # fmt: skip
            want = functools.cache((lambda x=x: [kept(x, k, width)]) if ties else (lambda x=x: best(x)))
            contest.add(f"torch.topk{suffix}", lambda x=x: torch.topk(x, k, dim=1, sorted=False), want=want,
                        **options | ties)  # fmt: skip
        return contest

    rows = []
    for text, (part, precision) in VARIANTS.items():
        size = 4 if precision == "fp32" else 2
        suffix = " bf16" if precision == "bf16" else ""
        name_of = f"sparsegnn{', groups of 8' if part else ''}{suffix}"
        work = dict(flop=0, bytes=nodes * (width * size + k * (size + 1)))
        rows.append(Row(f"maxk {width} to {k}, {nodes:,} rows{text}: torch.topk", name_of, (f"torch.topk{suffix}",),
                        bars(*ratio) if not text else {}, work=work))  # fmt: skip
    if name == "products":
        rows.append(Row(f"maxk {width} to {k}, {nodes:,} rows, ms", "sparsegnn", (), bars(1.0, 1.0), "time",
                        dict(flop=0, bytes=nodes * (width * 4 + k * 5))))  # fmt: skip
    case = dict(rows=nodes, width=width, k=k)
    return group(f"maxk select, {name}", STAGE, case, rows, make, seconds=2)


def kept(x: torch.Tensor, k: int, part: int) -> torch.Tensor:
    """The k largest values, ascending; of every ``part`` columns equally many."""
    parts = x.double().view(x.size(0), -1, part)
    return parts.topk(k * part // x.size(1), dim=2).values.flatten(1).sort(1).values


def aggregate(name: str, quick: bool, ratio: tuple | None, stage: str, backward: bool = False) -> Group:
    width, k = size_of(quick)

    def make() -> gpu.Contest:
        from sparsegnn import ops

        graph = graph_of(name, quick)
        contest, rows = gpu.Contest(dict(degrees=graphs.degrees(graph))), exact.some_rows(graph)
        dense = gpu.randn(graph.num_cols, width), gpu.randn(graph.num_rows, width, seed=2)
        transposed = graph.transpose()
        for text, (part, precision) in VARIANTS.items():
            x, dy = (t.to(gpu.DTYPES[precision]) for t in dense)
            values, index = ops.maxk(x, k, part)
            call = sum_of(graph, values, index, width, part, dy if backward else None, transposed)

            def want(values=values, index=index, dy=dy) -> list[torch.Tensor]:
                if backward:
                    back = exact.aggregate(*transposed[:2], dy, rows)
                    return [back.gather(1, index[rows].long())]
                x = torch.zeros_like(dense[0], dtype=values.dtype).scatter(1, index.long(), values)
                return [exact.aggregate(graph.crow, graph.col, x, rows)]

            contest.add(f"sparsegnn{text}", call, precision=precision, want=functools.cache(want),
                        view=lambda y: [y[rows]])  # fmt: skip
        matrix, operand = (
            ((transposed[0], transposed[1]), dense[1]) if backward else ((graph.crow, graph.col), dense[0])
        )
        want = functools.cache(lambda: [exact.aggregate(*matrix, operand, rows)])
        common.offer_cusparse(
            contest, *matrix, common.ones(graph, "fp32"), [operand], want=want, view=lambda y: [y[rows]]
        )
        return contest

    case = graph_case(name, quick, width=width, k=k)
    nodes, edges, what = case["nodes"], case["edges"], "backward" if backward else "forward"
    rows = []
    for text, (_, precision) in VARIANTS.items():
        size = 4 if precision == "fp32" else 2
        row = width * size if backward else k * (size + 1)  # backward reads whole rows of dy
        work = aggregation_work(nodes, edges, row / size, precision)
        rows.append(Row(f"maxk_spmm {k} of {width}, {name}, {what}{text}: cuSPARSE fp32 on {width}", f"sparsegnn{text}",
                        cusparse_names(), bars(*ratio) if ratio and not text else {}, work=work))  # fmt: skip
    return group(f"maxk_spmm {what}, {name}", stage, case, rows, make, seconds=3)


def sum_of(graph, values, index, width: int, part: int | None, dy, transposed):
    """The op as layers call it: without the look at every index that the public function takes."""
    op = torch.ops.sparsegnn.maxk_spmm
    groups = (part or 0,) if any(a.name == "group" for a in op.default._schema.arguments) else ()

    def forward(values):
        return op(values, index, width, graph.crow, graph.col, *[None] * 4, *transposed, "sum", *groups)

    if dy is None:
        return lambda: forward(values)
    leaf = values.detach().requires_grad_()
    y = forward(leaf)
    return lambda: torch.autograd.grad(y, leaf, dy, retain_graph=True)[0]
