"""Errors against fp64: the Frobenius norm of the difference over that of the result, of ours and of the baselines.

Outputs and gradients count, the worst of them is given. Whole layers are judged on a smaller graph of the same kind
(20,000 nodes, 200,000 edges), where PyG in fp64 is the oracle.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import scipy.sparse
import torch
from harness import graphs
from harness.errors import relative, worst
from suites import peers

SMALL = dict(nodes=20_000, edges=200_000)


def linear(bench, cases: dict, name: Callable) -> dict[str, float]:
    """y, dx and dW at the nonzeros. The baseline's error is that of the least sparse weights."""
    found = {}
    for sparsity, case in cases.items():
        x, dy, values, (crow, col, *rest) = bench.inputs(case)
        x, dy = x[:4096], dy[:4096]  # rows are independent but for dW
        pattern = (crow, col, *rest)
        row = torch.repeat_interleave(torch.arange(case["m"]), crow.diff().long())
        dense = torch.zeros(case["m"], case["k"]).index_put((row, col.long()), values)
        want = products(x.double(), dy.double(), dense.double(), row, col)
        y = torch.ops.sparsegnn.sparse_linear(x, values, None, *pattern)
        dx, dw, _ = torch.ops.sparsegnn.sparse_linear_backward(dy, x, values, *pattern, True, True, False)
        found[name(sparsity)] = worst([y, dx, dw], want)
        found.setdefault("torch.mm(out=)", worst(products(x, dy, dense, row, col), want))
    return found


def layer(shape: tuple[int, int, int], sparsity: float, names: tuple[str, ...]) -> dict[str, float]:
    """y, dx and the gradient of the weights that exist, of each layer with its own weights."""
    found, shape = {}, (min(shape[0], 4096), *shape[1:])  # rows are independent but for dW
    x, dy = (t.detach().double() for t in peers.inputs(*shape))
    for name, module in peers.layers(names, *shape[1:], sparsity).items():
        weight = peers.LAYERS[name].weight(module).detach().double()
        row, col = weight.nonzero(as_tuple=True)
        y, dx, dw = products(x, dy, weight, row, col)
        got = peers.linear_step(*shape, module)()
        want = [y if module.bias is None else y + module.bias.detach().double(), dx, dw]
        found[name] = worst([*got, peers.LAYERS[name].gradient(module)], want)
    return found


def products(x, dy, weight, row, col) -> list[torch.Tensor]:
    return [x @ weight.T, dy @ weight, (dy.T @ x)[row, col.long()]]


def spmm(bench, case: dict) -> dict[str, float]:
    graph, x = bench.inputs(case)
    a = scipy.sparse.csr_matrix((torch.ones(graph.num_edges).double().numpy(), graph.col.numpy(), graph.crow.numpy()),
                                shape=graph.shape)  # fmt: skip
    if case["reduce"] == "max":
        index = graph.rows()[:, None].expand(-1, case["width"])
        zeros = x.new_zeros(graph.num_rows, case["width"]).double()
        want = zeros.scatter_reduce_(0, index, x[graph.col.long()].double(), "amax", include_self=False)
    else:
        want = torch.from_numpy(a @ x.double().numpy())
    if case["reduce"] == "mean":
        want /= graph.crow.diff().clamp(min=1)[:, None]
    contenders = {"sparsegnn": bench.ours(case), **bench.baselines(case)}
    contenders.pop("gather+scatter")  # never the best, and seconds
    return {name: relative(first(function()), want) for name, function in contenders.items()}


def first(result) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result


def gat(bench) -> dict[str, float]:
    """Output and gradients of every parameter of a training step."""
    from torch_geometric.nn import GATConv as Theirs

    from sparsegnn.nn import GATConv

    case = dict(**SMALL, inputs=128, heads=8, width=8, train=True)
    graph, x = bench.inputs(case)
    edge_index = torch.stack([graph.col.long(), graph.rows()])
    theirs, ours = (kind(*bench.arguments(case), add_self_loops=False) for kind in (Theirs, GATConv))
    ours.load_state_dict(theirs.state_dict())
    flow = torch.randn(case["nodes"], 64, generator=torch.Generator().manual_seed(2))

    def run(layer, x, graph) -> list[torch.Tensor]:
        y = layer(x, graph)
        y.backward(flow.to(y.dtype))
        return [y.detach(), *(p.grad for _, p in sorted(layer.named_parameters()))]

    want = run(copy.deepcopy(theirs).double(), x.double(), edge_index)
    wrong = worst(run(theirs, x, edge_index), want)
    return {"sparsegnn": worst(run(ours, x, graph), want), "PyG edge_index": wrong, "PyG SparseTensor": wrong}


def gcn(bench) -> dict[str, float]:
    """Output and gradients of every weight that exists; the activation between the layers runs in both."""
    from torch_geometric.nn import GCNConv as PyG

    from sparsegnn.nn import GCNConv

    torch.manual_seed(0)
    width, classes = bench.FEATURES, bench.CLASSES
    ours = bench.Net(GCNConv(width, 256, sparsity=0.9), GCNConv(256, classes, sparsity=0.9))
    theirs = bench.Net(PyG(width, 256), PyG(256, classes))
    for mine, their in ((ours.conv1, theirs.conv1), (ours.conv2, theirs.conv2)):
        their.lin.weight.data = mine.lin.to_dense().weight.data
    graph = graphs.lognormal(**SMALL)
    edge_index = torch.stack([graph.col.long(), graph.rows()])
    g = torch.Generator().manual_seed(3)
    x, flow = torch.randn(SMALL["nodes"], width, generator=g), torch.randn(SMALL["nodes"], classes, generator=g)

    def run(net, x, graph) -> list[torch.Tensor]:
        y = net(x, graph)
        y.backward(flow.to(y.dtype))
        gradients = []
        for conv, mine in ((net.conv1, ours.conv1), (net.conv2, ours.conv2)):
            row = torch.repeat_interleave(torch.arange(mine.lin.out_features), mine.lin.crow.diff().long())
            weight = mine.lin.values.grad if conv is mine else conv.lin.weight.grad[row, mine.lin.col.long()]
            gradients += [weight, conv.bias.grad]
        return [y.detach(), *gradients]

    want = run(copy.deepcopy(theirs).double(), x.double(), edge_index)
    wrong = worst(run(theirs, x, edge_index), want)
    mine = worst(run(ours, x, graph), want)
    fused = bench.Net(GCNConv(width, 256, sparsity=0.9, act="relu"), ours.conv2, fused=True)
    fused.conv1.load_state_dict(ours.conv1.state_dict())
    ours.zero_grad()
    ours.conv1 = fused.conv1
    other = worst(run(fused, x, graph), want)
    return {"sparsegnn": mine, "fused": other, "PyG torch_sparse": wrong, "PyG edge_index": wrong}
