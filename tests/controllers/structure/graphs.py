"""Small graphs and a model for the methods that change graphs, with dense matrices in place of everything of ours."""

import numpy as np
import torch
from torch import nn

from sparsegnn import CSRGraph
from sparsegnn.nn import GCNConv

N = 14


def edges(seed=0, n=N, e=26, loops=2, directed=False):
    """[2, E] without duplicates, as a numpy array; both directions unless directed; some self-loops."""
    g = np.random.default_rng(seed)
    upper = [(i, j) for i in range(n) for j in range(n) if (i != j if directed else i < j)]
    chosen = np.array(upper)[g.choice(len(upper), e, replace=False)].T
    chosen = chosen if directed else np.concatenate([chosen, chosen[::-1]], 1)
    loop = np.tile(g.choice(n, loops, replace=False), (2, 1))
    return np.concatenate([chosen, loop], 1)


def graph(seed=0, weighted=False, directed=False, **kwargs):
    index = edges(seed, directed=directed, **kwargs)
    weight = None
    if weighted:
        draw = np.random.default_rng(seed).random((N, N)) + 0.5
        draw = draw if directed else draw + draw.T
        weight = torch.from_numpy(draw[tuple(index)])
    return CSRGraph.from_edge_index(torch.from_numpy(index.copy()), N, weight)


def dense(graph):
    """A[target, source] in float64."""
    a = torch.zeros(graph.shape, dtype=torch.float64)
    val = torch.ones(graph.num_edges) if graph.val is None else graph.val.detach()
    return a.index_put((graph.rows(), graph.col.long()), val.double(), accumulate=True)


class GCN(nn.Module):
    def __init__(self, seed=0, cached=False, features=7, hidden=6):
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = GCNConv(features, hidden, cached=cached)
        self.act = nn.ReLU()
        self.conv2 = GCNConv(hidden, 3, cached=cached)
        self.double()

    def forward(self, x, graph):
        return self.conv2(self.act(self.conv1(x, graph)), graph)


def batch(step=0, features=7):
    g = torch.Generator().manual_seed(100 + step)
    x = torch.randn(N, features, generator=g, dtype=torch.float64)
    return x, torch.randn(N, 3, generator=g, dtype=torch.float64)


def loss_of(model, graph, step=0):
    x, y = batch(step)
    return (model(x, graph) - y).square().mean()


def train(model, optimizer, graph, steps, first=0):
    """A loop that knows nothing of methods."""
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(model, graph, step).backward()
        optimizer.step()


def gcn(a, x, weights, biases):
    """The same network on a dense matrix with its weights, written out; differentiable in ``a``."""
    a = a + torch.diag((a.diagonal() == 0).to(a))
    scale = a.sum(1).pow(-0.5)
    norm = scale[:, None] * a * scale
    hidden = (norm @ x @ weights[0].t() + biases[0]).relu()
    return norm @ hidden @ weights[1].t() + biases[1]
