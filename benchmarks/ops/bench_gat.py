"""A layer of graph attention, its linear map included, forward or forward and backward, against both forms of PyG's."""

import torch
from harness.graphs import lognormal

from sparsegnn.nn import GATConv


def cases() -> list[dict]:
    large = [
        dict(nodes=170_000, edges=2_300_000, inputs=128, heads=heads, width=width, train=train)
        for heads, width, train in ((8, 8, True), (8, 8, False), (8, 32, True), (1, 40, True))
    ]
    small = [
        dict(nodes=20_000, edges=200_000, inputs=128, heads=8, width=8, train=train, quick=True)
        for train in (True, False)
    ]
    return small + large


def inputs(case: dict):
    graph = lognormal(case["nodes"], case["edges"]).looped()[0]
    return graph, torch.randn(case["nodes"], case["inputs"], generator=torch.Generator().manual_seed(1))


def step(layer: torch.nn.Module, x: torch.Tensor, graph, train: bool):
    """One run: inference, or forward and backward with the gradients of every parameter."""
    layer.train(train)
    flow = torch.randn(x.size(0), layer.heads * layer.out_channels, generator=torch.Generator().manual_seed(2))

    def run():
        with torch.set_grad_enabled(train):
            y = layer(x, graph)
        if train:
            layer.zero_grad()
            y.backward(flow)

    return run


def arguments(case: dict) -> tuple:
    return case["inputs"], case["width"], case["heads"]


def ours(case: dict):
    graph, x = inputs(case)
    return step(GATConv(*arguments(case), add_self_loops=False), x, graph, case["train"])


def forms(graph) -> dict:
    """The graph as PyG takes it, with all that a SparseTensor caches."""
    found = {"PyG edge_index": torch.stack([graph.col.long(), graph.rows()])}
    try:
        from torch_sparse import SparseTensor
    except ImportError:
        return found
    form = SparseTensor(rowptr=graph.crow.long(), col=graph.col.long(), sparse_sizes=graph.shape)
    form.storage.csr2csc(), form.storage.colptr(), form.storage.row()
    return found | {"PyG SparseTensor": form}


def baselines(case: dict) -> dict:
    try:
        from torch_geometric.nn import GATConv as Theirs
    except ImportError:
        return {}
    graph, x = inputs(case)
    return {
        name: step(Theirs(*arguments(case), add_self_loops=False), x, form, case["train"])
        for name, form in forms(graph).items()
    }


def work(case: dict) -> dict:
    """The linear map, the weighted sum over edges (and their backward); every array read or written once."""
    n, e, width, passes = case["nodes"], case["edges"] + case["nodes"], case["heads"] * case["width"], 1
    flop = 2 * n * case["inputs"] * width + 2 * e * width
    if case["train"]:  # the linear map again for its weight, the sum again for x and for the scores
        passes, flop = 3, 2 * flop + 2 * e * width
    return dict(flop=flop, bytes=passes * (4 * n * (case["inputs"] + 2 * width) + 4 * e))
