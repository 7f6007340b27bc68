"""spmm over the stand-ins: sum in fp32 and bf16 against cuSPARSE, mean and max with gradients against torch."""

from __future__ import annotations

import functools

import torch
from harness import graphs
from harness.suite import Group, Row
from suites.gpu import common, exact
from suites.gpu.common import aggregation_work, bars, cusparse_names, graph_case, graph_of, group

import gpu
from gpu import cusparse

STAGE = "aggregation"
#: (graph, order, width) -> bar and target in fp32 against cuSPARSE
SUM = {
    ("arxiv", "random", 256): (1.1, 1.5),
    ("reddit", "random", 256): (1.1, 1.5),
    ("products", "random", 256): (1.0, 1.15),
    ("products", "community", 256): (1.0, 1.8),
}
MORE = {("arxiv", "random", 64): None, ("flickr", "random", 256): None, ("yelp", "random", 256): None}


def groups(quick: bool) -> list[Group]:
    return [sums(*key, ratio, quick, STAGE) for key, ratio in SUM.items()] + [reductions("arxiv", quick)]


def more(quick: bool) -> list[Group]:
    return [sums(*key, ratio, quick, "more") for key, ratio in MORE.items()]


def sums(name: str, order: str, width: int, ratio: tuple | None, quick: bool, stage: str) -> Group:
    width = 8 if quick else width

    def make() -> gpu.Contest:
        from sparsegnn import ops

        graph = graph_of(name, quick, order)
        contest, rows = gpu.Contest(dict(degrees=graphs.degrees(graph))), exact.some_rows(graph)
        for precision, suffix in (("fp32", ""), ("bf16", " bf16")):
            shape = graph.num_cols, width
            sets = gpu.sets_of(shape[0] * width * common.SIZE[precision])
            xs = [gpu.randn(*shape, precision=precision, seed=s) for s in range(sets)]
            contest.facts[f"sets of inputs, {precision}"] = sets
            want = functools.cache(lambda x=xs[0]: [exact.aggregate(graph.crow, graph.col, x, rows)])
            options = dict(precision=precision, want=want, view=lambda y: [y[rows]])
            ours = [functools.partial(ops.spmm, graph, x) for x in xs]
            contest.add("sparsegnn" + suffix, ours, **options)
            common.offer_cusparse(contest, graph.crow, graph.col, common.ones(graph, precision), xs, suffix, **options)
        return contest

    case = graph_case(name, quick, order=order, width=width)
    text = f"spmm sum, {name}" + (f" in {order} order" if name == "products" else "") + f", {width} features"
    work = {p: aggregation_work(case["nodes"], case["edges"], width, p) for p in ("fp32", "bf16")}
    rows = [
        Row(f"{text}, fp32: cuSPARSE", "sparsegnn", cusparse_names(), bars(*ratio or ()), work=work["fp32"]),
        Row(f"{text}, bf16: our fp32", "sparsegnn bf16", ("sparsegnn",), bars(1.7, 1.9) if ratio else {},
            work=work["bf16"]),
        Row(f"{text}, bf16: cuSPARSE bf16", "sparsegnn bf16", cusparse_names(" bf16"), bars(2.5, 2.5) if ratio else {},
            work=work["bf16"]),
    ]  # fmt: skip
    return group(text, stage, case, rows, make, seconds=4 if name in ("reddit", "products") else 2)


def reductions(name: str, quick: bool) -> Group:
    """max and mean, forward + backward. torch_scatter joins where it is installed."""
    width = 8 if quick else 256

    def make() -> gpu.Contest:
        from sparsegnn import ops

        graph = graph_of(name, quick)
        contest = gpu.Contest(dict(degrees=graphs.degrees(graph)))
        x, dy = gpu.randn(graph.num_cols, width, seed=1).requires_grad_(), gpu.randn(graph.num_rows, width, seed=2)
        rows, col, count = graph.rows(), graph.col.long(), graph.crow.diff().clamp(min=1)
        index = rows[:, None].expand(-1, width)
        every = torch.arange(graph.num_rows, device=gpu.device())

        def means() -> list:
            ccol, row, _ = graph.transpose()
            back = exact.aggregate(ccol, row, dy / count[:, None].double(), every)
            return [exact.aggregate(graph.crow, graph.col, x.detach(), every, reduce="mean"), back]

        def sums() -> list:
            return [exact.aggregate(graph.crow, graph.col, x.detach(), every)]

        wants = {"max": functools.cache(lambda: exact.extremum(graph, x.detach(), dy)), "mean": functools.cache(means)}

        def both(forward):
            def run():
                y = forward(x)
                return y, torch.autograd.grad(y, x, dy)[0]

            return run

        for reduce, want in wants.items():

            def scatter(x, reduce=reduce):
                how = {"max": "amax"}.get(reduce, reduce)
                return x.new_zeros(dy.shape).scatter_reduce(0, index, x[col], how, include_self=False)

            def segments(x, reduce=reduce):
                return torch.segment_reduce(x[col], reduce, lengths=graph.crow.diff().long(), unsafe=True, initial=0.0)

            def theirs(x, reduce=reduce):
                from torch_scatter import segment_csr

                return segment_csr(x[col], graph.crow.long(), reduce=reduce)

            contest.add(f"sparsegnn {reduce}", both(lambda x, r=reduce: ops.spmm(graph, x, reduce=r)), want=want)
            contest.add(f"{reduce}: scatter_reduce", both(scatter), want=want)
            contest.offer(f"{reduce}: scatter_reduce, compiled", lambda f=scatter: both(gpu.compiled(f)), want=want)
            if reduce == "mean":  # its initial value would take part in the maximum
                contest.add(f"{reduce}: segment_reduce", both(segments), want=want)
            contest.offer(f"{reduce}: torch_scatter", lambda f=theirs: both(f), want=want)
        scaled = (1 / count.float()).repeat_interleave(graph.crow.diff().long())
        crow, column, perm = graph.transpose()
        forward = cusparse_pair((graph.crow, graph.col, scaled), (crow, column, scaled[perm.long()]), x.detach(), dy)
        contest.offer("mean: cuSPARSE", forward, want=wants["mean"])
        forward = {"forward max": "max", "forward sum": "sum"}
        for text, reduce in forward.items():
            want = functools.cache(lambda r=reduce: wants[r]()[:1] if r in wants else sums())
            contest.add(text, lambda r=reduce: ops.spmm(graph, x.detach(), reduce=r), want=want)
        return contest

    case = graph_case(name, quick, width=width)
    one = aggregation_work(case["nodes"], case["edges"], width, "fp32")
    work = {key: 2 * value for key, value in one.items()}

    def against(reduce: str) -> tuple[str, ...]:
        kinds = ("scatter_reduce", "scatter_reduce, compiled", "segment_reduce", "torch_scatter")
        return tuple(f"{reduce}: {kind}" for kind in kinds)

    rows = [
        Row(f"spmm {reduce}, {name}, {width} features, forward + backward: torch", f"sparsegnn {reduce}",
            against(reduce), bars(2, 4), work=work) for reduce in ("max", "mean")
    ]  # fmt: skip
    rows.append(Row(f"spmm mean, {name}, {width} features, forward + backward: cuSPARSE", "sparsegnn mean",
                    ("mean: cuSPARSE",), work=work))  # fmt: skip
    rows.append(Row(f"spmm max, {name}, forward: our sum", "forward max", ("forward sum",), bars(1.15, 1.15),
                    "slow-down", one))  # fmt: skip
    return group(f"spmm max and mean, {name}", STAGE, case, rows, make, seconds=6)


def cusparse_pair(matrix: tuple, transposed: tuple, x, dy):
    """What makes y = A x and dx = A^T dy by the quicker of cuSPARSE's ways."""

    def make():
        forward, backward = (common.quickest(cusparse.contenders(*a, b))[1] for a, b in ((matrix, x), (transposed, dy)))
        return lambda: (forward(), backward())

    return make
