"""Training steps of GCNs of three layers: forward, cross-entropy, backward, Adam; eager and as one CUDA graph.

Adam's step size is 0, so that every run of a contender does the same; nothing else is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import graphs
from harness.suite import Group, Row
from suites.gpu import exact
from suites.gpu.common import about, aggregation_work, bars, graph_case, graph_of, group, quickest
from torch import nn

import gpu
from gpu import cusparse

STAGE = "training"
#: three layers add up the errors of their products; a bf16 gradient also flips the sign of some activations
TOLERANCE = {"fp32": 1e-5, "tf32": 1e-2, "bf16": 1e-1}
GRAPH = ", CUDA graph"
DENSE = ("cuSPARSE + torch.mm", "PyG")
OURS_DENSE = ("our dense layers",)


def groups(quick: bool) -> list[Group]:
    return [sparse_weights("arxiv", rate, quick) for rate in ("fp32", "tf32")] + [maxk("reddit", quick)]


class Dense(nn.Module):
    """The dense network on the quickest of cuSPARSE's ways to multiply, at the narrower side of every layer."""

    def __init__(self, widths: list[int], matrix: tuple, dtype: torch.dtype):
        super().__init__()
        self.lins = nn.ModuleList(nn.Linear(a, b, dtype=dtype) for a, b in zip(widths, widths[1:], strict=False))
        self.matrix, self.ways = (*matrix[:2], matrix[2].to(dtype)), {}

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        width = x.size(1)
        if width not in self.ways:
            name, found = quickest(cusparse.contenders(*self.matrix, x))
            a = torch.sparse_csr_tensor(*self.matrix, (x.size(0),) * 2)
            torch_way = functools.partial(torch.sparse.mm, a)
            self.ways[width] = name or "torch.sparse.mm", found.multiply if name.startswith("cuSPARSE") else torch_way
        return self.ways[width][1](x)

    def forward(self, x: torch.Tensor, _=None) -> torch.Tensor:
        for i, lin in enumerate(self.lins):
            if lin.in_features <= lin.out_features:
                x = lin(exact.Symmetric.apply(x, self.multiply))
            else:
                x = exact.Symmetric.apply(F.linear(x, lin.weight), self.multiply) + lin.bias
            x = F.relu(x) if i < len(self.lins) - 1 else x
        return x


class Net(nn.Module):
    """Our layers, or PyG's, with what is between them."""

    def __init__(self, convs: list[nn.Module], between: list[Callable]):
        super().__init__()
        self.convs, self.between = nn.ModuleList(convs), [*between, lambda x: x]

    def forward(self, x, graph):
        for conv, then in zip(self.convs, self.between, strict=True):
            x = then(conv(x, graph))
        return x


def stepper(net: nn.Module, x: torch.Tensor, edges, labels: torch.Tensor, weights: Callable, rate: str) -> Callable:
    """A step, which gives the logits and the gradients of the weights of every layer."""
    fused = dict(fused=True, capturable=True) if gpu.on_gpu() else {}
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0, **fused)

    def run():
        optimizer.zero_grad(set_to_none=True)
        with gpu.tf32(rate == "tf32"):
            y = net(x, edges)
            F.cross_entropy(y.float(), labels).backward()
        optimizer.step()
        return y.detach(), *(w.grad for w in weights(net))

    return run


class Exact:
    """Logits and gradients of the weights in fp64; the activation between layers is given."""

    def __init__(self, matrix: tuple, x: torch.Tensor, labels: torch.Tensor, act: Callable):
        crow, col, norm = matrix
        self.a = torch.sparse_csr_tensor(crow, col, norm, (x.size(0),) * 2)
        self.x, self.labels, self.act = x.double(), labels, act

    def __call__(self, weights: list[torch.Tensor], picks: list | None = None) -> list[torch.Tensor]:
        leaves, x = [w.detach().double().requires_grad_() for w in weights], self.x
        for i, w in enumerate(leaves):
            first = w.size(1) <= w.size(0)
            x = exact.Symmetric.apply(x if first else x @ w.t(), functools.partial(torch.sparse.mm, self.a))
            x = x @ w.t() if first else x
            x = self.act(x) if i < len(leaves) - 1 else x
        grads = torch.autograd.grad(F.cross_entropy(x, self.labels), leaves)
        return [x.detach(), *(g if at is None else g[at] for g, at in zip(grads, picks or [None] * len(grads),
                                                                         strict=True))]  # fmt: skip


def parts_of(name: str, quick: bool) -> tuple:
    """Graph, matrix with the GCN norm, labels, and widths of the layers."""
    graph, size = graph_of(name, quick), about(name, quick)
    hidden = 32 if quick else 256
    g = torch.Generator(gpu.device()).manual_seed(11)
    labels = torch.randint(size.classes, (size.nodes,), device=gpu.device(), generator=g)
    return graph, exact.normalized(graph), labels, [size.features, hidden, hidden, size.classes]


def offer(contest: gpu.Contest, name: str, step: Callable, captured: bool = True, **options) -> None:
    contest.add(name, step, **options)
    if captured:
        contest.offer(name + GRAPH, lambda: gpu.graphed(step), **options)


def positions(lin) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.repeat_interleave(torch.arange(lin.out_features, device=lin.crow.device), lin.crow.diff().long())
    return rows, lin.col.long()


def sparse_weights(name: str, rate: str, quick: bool) -> Group:
    """90 % sparse weights, the activation in the layers; TF32: what products of dense weights may use."""

    def make() -> gpu.Contest:
        from sparsegnn.nn import GCNConv

        graph, matrix, labels, widths = parts_of(name, quick)
        contest = gpu.Contest(dict(degrees=graphs.degrees(graph)))
        x = gpu.randn(graph.num_rows, widths[0])
        oracle = Exact(matrix, x, labels, F.relu)
        options = dict(precision=rate, tolerance=TOLERANCE[rate])
        torch.manual_seed(0)

        def ours(sparsity: float) -> Net:
            acts = ["relu", "relu", None]
            convs = [GCNConv(a, b, sparsity=sparsity, act=act) for a, b, act in zip(widths, widths[1:], acts)]  # noqa: B905
            return Net(convs, [lambda x: x] * 2).to(gpu.device())

        def dense_weights(net) -> list:
            return [conv.lin.weight for conv in net.convs]

        net = ours(0.9)
        full = [conv.lin.to_dense().weight if conv.lin.kernel == "sparse" else conv.lin.dense_weight()
                for conv in net.convs]  # fmt: skip
        picks = [positions(conv.lin) for conv in net.convs]
        step = stepper(net, x, graph, labels, lambda net: [conv.lin.values for conv in net.convs], rate)
        offer(contest, "sparsegnn", step, want=functools.cache(lambda: oracle(full, picks)), **options)
        plain = ours(0.0)
        want = functools.cache(lambda: oracle(dense_weights(plain)))
        offer(contest, OURS_DENSE[0], stepper(plain, x, graph, labels, dense_weights, rate), want=want, **options)
        dense = Dense(widths, matrix, torch.float32).to(gpu.device())
        copy_weights(dense, plain)
        offer(contest, DENSE[0], stepper(dense, x, None, labels, lambda net: [lin.weight for lin in net.lins], rate),
              want=want, **options)  # fmt: skip

        def pyg():
            from torch_geometric.nn import GCNConv as Theirs

            theirs = Net([Theirs(a, b, cached=True) for a, b in zip(widths, widths[1:], strict=False)], [F.relu] * 2)
            theirs.to(gpu.device()).load_state_dict(plain.state_dict())
            edges = torch.stack([graph.col.long(), graph.rows()])
            return stepper(theirs, x, edges, labels, dense_weights, rate)

        contest.offer("PyG", pyg, want=want, **options)
        return contest

    shown, case = rate.replace("tf", "TF"), graph_case(name, quick, precision=rate, sparsity=0.9)
    text = f"GCN of 3 layers, {256 if not quick else 32} wide, 90 %, {name}, step, {shown}"
    ratio = {"fp32": (1.2, 1.8), "tf32": (1.0, 1.3)}[rate]
    work = step_work(name, quick, 0.1)
    rows = [
        Row(f"{text}: best dense", ("sparsegnn",), (*DENSE, *OURS_DENSE), bars(*ratio), work=work),
        Row(f"{text}: cuSPARSE + torch.mm", "sparsegnn", DENSE, bars(*ratio), work=work),
        Row(f"{text}, CUDA graphs: best dense", f"sparsegnn{GRAPH}", (DENSE[0] + GRAPH, OURS_DENSE[0] + GRAPH),
            bars(*ratio), work=work),
        Row(f"{text}, CUDA graph: eager", f"sparsegnn{GRAPH}", ("sparsegnn",), work=work),
        Row(f"{text}, peak memory: cuSPARSE + torch.mm", "sparsegnn", DENSE, {}, "memory"),
    ]  # fmt: skip
    return group(text, STAGE, case, rows, make, seconds=5)


def copy_weights(dense: Dense, net: Net) -> None:
    with torch.no_grad():
        for lin, conv in zip(dense.lins, net.convs, strict=True):
            lin.weight.copy_(conv.lin.weight)
            lin.bias.copy_(conv.bias)


def step_work(name: str, quick: bool, kept: float, precision: str = "fp32", features: int | None = None) -> dict:
    """Sums over edges forward and backward at the narrower side (none backward of the constant input), and every
    activation read or written once per use."""
    size, hidden = about(name, quick), 32 if quick else 256
    widths = [size.features, hidden, hidden, size.classes]
    sums = [min(a, b) for a, b in zip(widths, widths[1:], strict=False)]
    across = sums[0] + 2 * sum(sums[1:]) if features is None else sums[0] + 3 * features + features
    work = aggregation_work(size.nodes, size.edges + size.nodes, across, precision)
    products = sum(a * b for a, b in zip(widths, widths[1:], strict=False))
    return work | dict(flop=int(6 * size.nodes * products * kept), rate="operand" if kept < 1 else precision)


def maxk(name: str, quick: bool) -> Group:
    """32 of 256 features are kept behind every hidden layer; weights, activations and Adam in bf16."""
    hidden, k = (32, 4) if quick else (256, 32)

    def make() -> gpu.Contest:
        from sparsegnn.nn import GCNConv, MaxK

        graph, matrix, labels, widths = parts_of(name, quick)
        contest = gpu.Contest(dict(degrees=graphs.degrees(graph)))
        x = gpu.randn(graph.num_rows, widths[0], precision="bf16")
        torch.manual_seed(0)

        def ours(between: Callable) -> Net:
            convs = [GCNConv(a, b) for a, b in zip(widths, widths[1:], strict=False)]
            return Net(convs, [between(), between()]).to(gpu.device(), torch.bfloat16)

        def weights(net) -> list:
            return [conv.lin.weight for conv in net.convs]

        def top(part: int | None) -> Callable:
            def keep(y):
                parts = y.view(y.size(0), -1, part or y.size(1))
                best = parts.topk(k * parts.size(2) // y.size(1), dim=2)
                return torch.zeros_like(parts).scatter(2, best.indices, best.values).flatten(1)

            return keep

        plain = ours(lambda: F.relu)
        for text, part in (("sparsegnn", None), ("sparsegnn, groups of 8", 8)):
            net = ours(lambda part=part: MaxK(k, group=part, compressed=True))
            net.load_state_dict(plain.state_dict())
            want = functools.cache(lambda part=part: Exact(matrix, x, labels, top(part))(weights(plain)))
            # which features are kept is decided by bf16 numbers, so a few differ: checked, with a wide bound
            offer(contest, text, stepper(net, x, graph, labels, weights, "bf16"), precision="bf16", want=want,
                  tolerance=0.3)  # fmt: skip
        want = functools.cache(lambda: Exact(matrix, x, labels, F.relu)(weights(plain)))
        options = dict(precision="bf16", want=want, tolerance=TOLERANCE["bf16"])
        offer(contest, OURS_DENSE[0], stepper(plain, x, graph, labels, weights, "bf16"), **options)
        dense = Dense(widths, matrix, torch.bfloat16).to(gpu.device())
        copy_weights(dense, plain)
        offer(contest, DENSE[0], stepper(dense, x, None, labels, lambda net: [lin.weight for lin in net.lins], "bf16"),
              **options)  # fmt: skip
        return contest

    case = graph_case(name, quick, precision="bf16", width=hidden, k=k)
    text = f"GCN of 3 layers, {hidden} wide, MaxK {k}, {name}, bf16, step"
    work = step_work(name, quick, 1.0, "bf16", round(k * 1.5))
    names = ("sparsegnn", "sparsegnn, groups of 8")
    rows = [
        Row(f"{text}: best dense", "sparsegnn", (DENSE[0], *OURS_DENSE), bars(1.5, 2.5), work=work),
        Row(f"{text}, groups of 8: best dense", names[1], (DENSE[0], *OURS_DENSE), bars(1.5, 2.5), work=work),
        Row(f"{text}: cuSPARSE + torch.mm", "sparsegnn", DENSE[:1], bars(1.5, 2.5), work=work),
        Row(f"{text}, CUDA graphs: best dense", f"sparsegnn{GRAPH}", (DENSE[0] + GRAPH, OURS_DENSE[0] + GRAPH),
            bars(1.5, 2.5), work=work),
        Row(f"{text}, peak memory: best dense", "sparsegnn", (DENSE[0], *OURS_DENSE), {}, "memory"),
    ]  # fmt: skip
    return group(text, STAGE, case, rows, make, seconds=8)
