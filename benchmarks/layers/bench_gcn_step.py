"""A training step of a two-layer GCN (128 - 256 - 40, Adam), against PyG and against dense weights.

``sparsegnn`` is ours with 90 % sparse weights as a user writes it: ``GCNConv``, ``relu``, ``GCNConv``. ``fused`` has
the activation in the layer (``act="relu"``), ``fused cached`` also keeps the aggregate of the constant input
(``cached=True``). ``dense fused`` is the same with dense weights, the best dense path there is: the honest measure of
what weight sparsity itself brings. PyG's layers have ``cached=True``.
"""

import copy

import torch
import torch.nn.functional as F
from harness.graphs import lognormal

from sparsegnn.nn import GCNConv

FEATURES, CLASSES = 128, 40


def cases() -> list[dict]:
    return [dict(nodes=20_000, edges=200_000, hidden=256, sparsity=0.9, quick=True)] + [
        dict(nodes=170_000, edges=2_300_000, hidden=256, sparsity=0.9)
    ]


class Net(torch.nn.Module):
    def __init__(self, conv1, conv2, fused=False):
        super().__init__()
        self.conv1, self.conv2, self.act = conv1, conv2, torch.nn.Identity() if fused else F.relu

    def forward(self, x, graph):
        return self.conv2(self.act(self.conv1(x, graph)), graph)


def step(net: Net, graph, nodes: int):
    """A closure that trains one step on random features and labels."""
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(nodes, FEATURES, generator=g), torch.randint(CLASSES, (nodes,), generator=g)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

    def run():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x, graph), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def ours(case: dict, sparsity: float | None = None, fused: bool = False, cached: bool = False):
    torch.manual_seed(0)
    s = case["sparsity"] if sparsity is None else sparsity
    conv1 = GCNConv(FEATURES, case["hidden"], cached=cached, sparsity=s, act="relu" if fused else None)
    net = Net(conv1, GCNConv(case["hidden"], CLASSES, sparsity=s), fused)
    return step(net, lognormal(case["nodes"], case["edges"]), case["nodes"])


def baselines(case: dict) -> dict:
    found = {
        "fused": ours(case, fused=True),
        "fused cached": ours(case, fused=True, cached=True),
        "dense": ours(case, 0.0),
        "dense fused": ours(case, 0.0, fused=True),
        "dense fused cached": ours(case, 0.0, fused=True, cached=True),
    }
    try:
        from torch_geometric.nn import GCNConv as PyG
    except ImportError:
        return found
    graph, h = lognormal(case["nodes"], case["edges"]), case["hidden"]
    net = Net(PyG(FEATURES, h, cached=True), PyG(h, CLASSES, cached=True))
    target = torch.repeat_interleave(torch.arange(graph.num_rows), graph.crow.diff().long())
    try:
        from torch_sparse import SparseTensor

        adj = SparseTensor(rowptr=graph.crow.long(), col=graph.col.long(), sparse_sizes=graph.shape)
        found["PyG torch_sparse"] = step(copy.deepcopy(net), adj, case["nodes"])
    except ImportError:
        pass
    found["PyG edge_index"] = step(copy.deepcopy(net), torch.stack([graph.col.long(), target]), case["nodes"])
    return found


def work(case: dict) -> dict:
    """FLOPs of the sparse step (two passes over the edges at the narrower widths, three products per nonzero weight);
    bytes: every activation and gradient read or written once per use."""
    n, e, h, kept = case["nodes"], case["edges"], case["hidden"], 1 - case["sparsity"]
    flop = 2 * e * (FEATURES + 2 * CLASSES) + 2 * n * kept * (2 * FEATURES * h + 3 * h * CLASSES)
    return dict(flop=int(flop), bytes=4 * n * (3 * FEATURES + 8 * h + 8 * CLASSES))
