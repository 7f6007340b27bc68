"""Nodes with many self-loops, of which the last counts: nothing may be summed that has to be subtracted again."""

import pytest
import torch

from sparsegnn import CSRGraph
from sparsegnn.nn import CompressedRows, GCNConv
from sparsegnn.ops import gcn

N = 8


def edges(repeated, weights=None):
    """A path, and ``repeated`` self-loops of node 3 and two of node 5; ``weights`` of the loops of node 3."""
    path = torch.stack([torch.arange(N - 1), torch.arange(1, N)])
    loops = torch.tensor([3] * repeated + [5, 5]).expand(2, -1)
    given = torch.ones(repeated) if weights is None else torch.tensor(weights)
    return torch.cat([path, loops], 1), torch.cat([torch.full((N - 1,), 0.5), given, torch.tensor([3.0, 0.25])])


def wanted(x, index, weight, improved=False):
    gcn_norm = pytest.importorskip("torch_geometric.nn.conv.gcn_conv").gcn_norm
    weight = None if weight is None else weight.double()
    index, value = gcn_norm(index, weight, N, improved, dtype=torch.float64)
    matrix = torch.zeros(N, N, dtype=torch.float64).index_put((index[1], index[0]), value, accumulate=True)
    return matrix @ x.double()


def identity(layer, **options):
    conv = layer(4, 4, bias=False, **options)
    with torch.no_grad():
        conv.lin.weight.copy_(torch.eye(4))
    return conv


def rows(x):
    return CompressedRows(x, torch.arange(4, dtype=torch.uint8).expand(N, 4).contiguous(), 4)


def learned(x, graph, index, weight, improved):
    w = torch.ones(graph.num_edges) if weight is None else weight
    return identity(GCNConv, improved=improved)(x, index, w.to(x.dtype).requires_grad_())


PATHS = {
    "graph": lambda x, graph, index, weight, improved: identity(GCNConv, improved=improved)(x, graph),
    "edge list": lambda x, graph, index, weight, improved: identity(GCNConv, improved=improved)(x, index, weight),
    "learned weights": learned,
    "compressed rows": lambda x, graph, index, weight, improved: identity(GCNConv, improved=improved)(rows(x), graph),
    "cached": lambda x, graph, index, weight, improved: identity(GCNConv, improved=improved, cached=True)(x, graph),
    "op": lambda x, graph, index, weight, improved: gcn(graph, x, torch.eye(4), improved=improved),
}
GRAPHS = {  # name: (loops of node 3, their weights, whether the graph has weights)
    "100,000 loops": (100_000, None, False),
    "300 loops": (300, None, False),
    "large weights": (3, [1e8, 1.0, 1.0], True),
    "opposite weights": (3, [1e8, -1e8, 2.0], True),
    "infinite weights": (2, [float("inf"), 2.0], True),
    "one loop": (1, [2.0], True),
}


@pytest.mark.parametrize("improved", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", GRAPHS)
def test_values_and_gradients_are_pygs(name, path, improved):
    repeated, weights, weighted = GRAPHS[name]
    index, weight = edges(repeated, weights)
    weight = weight if weighted else None
    if path == "learned weights" and not weighted:
        improved = False  # which counts where there are weights
    graph = CSRGraph.from_edge_index(index, N, weight)
    x = torch.randn(N, 4, requires_grad=True)
    other = x.detach().double().requires_grad_()
    got, want = PATHS[path](x, graph, index, weight, improved), wanted(other, index, weight, improved)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
    dy = torch.randn(N, 4)
    got.backward(dy)
    want.backward(dy.double())
    torch.testing.assert_close(x.grad.double(), other.grad, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["300 loops", "large weights"])
def test_low_precision_and_compiled(name):
    repeated, weights, weighted = GRAPHS[name]
    index, weight = edges(repeated, weights)
    weight = weight if weighted else None
    x, graph = torch.randn(N, 4), CSRGraph.from_edge_index(index, N, weight)
    want = wanted(x.bfloat16(), index, weight)
    low = gcn(graph, x.bfloat16(), torch.eye(4).bfloat16())
    assert (low.double() - want).norm() <= 1e-2 * want.norm()
    torch._dynamo.reset()
    conv = identity(GCNConv)
    for fresh in (index, CSRGraph.from_edge_index(index, N, weight)):
        given = [weight] if weighted and fresh is index else []
        compiled = torch.compile(conv, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, fresh, *given).double(), wanted(x, index, weight), rtol=2e-6, atol=2e-6)


def test_scale_and_diag_of_the_graph_itself():
    """The factors of A + L with the repeated loops in A, as exact as their sums allow."""
    index, weight = edges(300, None)
    for w in (None, weight.double()):
        graph = CSRGraph.from_edge_index(index, N, w)
        scale, diag = graph.gcn_norm(dtype=torch.float64)
        val = torch.ones(graph.num_edges, dtype=torch.float64) if w is None else graph.val
        full = torch.zeros(N, N, dtype=torch.float64).index_put((graph.rows(), graph.col.long()), val, accumulate=True)
        got = scale[:, None] * (full + diag.diag()) * scale
        torch.testing.assert_close(got, wanted(torch.eye(N), index, w))
        assert graph.gcn_norm(dtype=torch.float64)[1] is diag
    assert graph.normed()[0] is not graph and graph.normed()[0].num_edges < 20
    assert CSRGraph.from_edge_index(index[:, :8], N).normed()[2] is not None
