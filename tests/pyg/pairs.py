"""Nets of this library's layers and of PyG's, of the same weights, and what they are called with."""

import pytest
import torch
import torch_geometric.nn as pyg

from sparsegnn import nn

N, WIDTH = 30, 6


def graph(n=N, m=N, e=90, seed=0):
    g = torch.Generator().manual_seed(seed)
    edges = torch.stack([torch.randint(n, (e,), generator=g), torch.randint(m - 2, (e,), generator=g)])
    edges = edges[:, edges[0] != edges[1]]
    return torch.cat([edges, torch.arange(0, min(n, m) - 4, 5).expand(2, -1)], 1)


def features(n=N, width=WIDTH, seed=1):
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mlp(inputs, outputs):
    return torch.nn.Sequential(torch.nn.Linear(inputs, 5), torch.nn.ReLU(), torch.nn.Linear(5, outputs))


KINDS = {
    "GCNConv": lambda p, i, o: p.GCNConv(i, o), "GCNConv, weights": lambda p, i, o: p.GCNConv(i, o, cached=True),
    "SAGEConv": lambda p, i, o: p.SAGEConv(i, o), "SAGEConv, max": lambda p, i, o: p.SAGEConv(i, o, aggr="max"),
    "SAGEConv, two": lambda p, i, o: p.SAGEConv(i, o, aggr=["mean", "min"]),
    "GraphConv": lambda p, i, o: p.GraphConv(i, o), "GraphConv, mean": lambda p, i, o: p.GraphConv(i, o, aggr="mean"),
    "GINConv": lambda p, i, o: p.GINConv(mlp(i, o)),
    "GINConv, trained": lambda p, i, o: p.GINConv(mlp(i, o), train_eps=True),
    "SGConv": lambda p, i, o: p.SGConv(i, o, K=2, cached=False), "TAGConv": lambda p, i, o: p.TAGConv(i, o, K=2),
    "APPNP": lambda p, i, o: p.APPNP(2, 0.2), "GATConv": lambda p, i, o: p.GATConv(i, o, heads=2, concat=False),
    "GATConv, no loops": lambda p, i, o: p.GATConv(i, o, add_self_loops=False),
    "GATConv, edges": lambda p, i, o: p.GATConv(i, o, edge_dim=2),
    "GATv2Conv": lambda p, i, o: p.GATv2Conv(i, o, heads=2, concat=False),
    "GATv2Conv, edges": lambda p, i, o: p.GATv2Conv(i, o, edge_dim=2, add_self_loops=False),
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", KINDS)


class Net(torch.nn.Module):
    def __init__(self, make, package, widths=(WIDTH, 5, 4)):
        super().__init__()
        self.conv1, self.conv2 = make(package, *widths[:2]), make(package, *widths[1:])

    def forward(self, x, edge_index, *more):
        return self.conv2(self.conv1(x, edge_index, *more).relu(), edge_index, *more)


class Traced(Net):
    """Of whose calls torch.fx knows the arguments."""

    def forward(self, x, edge_index):
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


def both(kind, widths=(WIDTH, 5, 4)):
    torch.manual_seed(2)
    widths = (WIDTH,) * 3 if kind == "APPNP" else widths
    ours, theirs = (Net(KINDS[kind], package, widths).double() for package in (nn, pyg))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def more_of(kind, edges):
    """Further arguments of a call."""
    g = torch.Generator().manual_seed(4)
    if kind.endswith("edges"):
        return (torch.randn(edges.size(1), 2, dtype=torch.float64, generator=g),)
    weighted = kind.endswith("weights") or kind in ("GraphConv", "TAGConv")
    return (torch.rand(edges.size(1), dtype=torch.float64, generator=g) + 0.1,) if weighted else ()


HETERO = (["a", "b"], [("a", "to", "b"), ("b", "back", "a"), ("a", "self", "a")])
BIPARTITE = {
    "SAGEConv": lambda p, i, o: p.SAGEConv((i, i), o), "SAGEConv, lazy": lambda p, i, o: p.SAGEConv((-1, -1), o),
    "SAGEConv, two": lambda p, i, o: p.SAGEConv((i, i), o, aggr=["mean", "max"]),
    "GraphConv": lambda p, i, o: p.GraphConv((i, i), o, aggr="mean"), "GINConv": lambda p, i, o: p.GINConv(mlp(i, o)),
    "GATConv": lambda p, i, o: p.GATConv((i, i), o, heads=2, concat=False, add_self_loops=False),
    "GATv2Conv": lambda p, i, o: p.GATv2Conv((i, i), o, add_self_loops=False),
}  # fmt: skip


def hetero_inputs():
    sizes = {"a": 20, "b": 14}
    x = {kind: features(n, seed=n) for kind, n in sizes.items()}
    return x, {edge: graph(sizes[edge[0]], sizes[edge[2]], 60, seed=i) for i, edge in enumerate(HETERO[1])}
