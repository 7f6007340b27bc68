"""Whose memory a graph is: its own, whatever it was made of and in whatever mode; and what goes to files."""

import copy
import io
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from nn.twins import Initial

from sparsegnn import CSRGraph
from sparsegnn.nn import (
    APPNP,
    CompressedRows,
    GATConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    SAGEConv,
    SGConv,
    TAGConv,
)
from sparsegnn.ops import spmm

N, E = 20, 80


def edges(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(N, (2, E), generator=g), torch.rand(E, generator=g) + 0.1


def matrix(dtype=np.float32):
    index, weight = edges()
    made = scipy.sparse.csr_matrix((weight.numpy().astype(dtype), (index[1], index[0])), shape=(N, N))
    made.sort_indices()
    return made


def from_torch(index_dtype):
    m = matrix()
    parts = [torch.from_numpy(a.copy()) for a in (m.indptr.astype(index_dtype), m.indices.astype(index_dtype), m.data)]
    return torch.sparse_csr_tensor(*parts, (N, N)), parts


def of_csr():
    _, (crow, col, val) = from_torch(np.int32)
    return CSRGraph.from_csr(crow, col, val), [col, val]


def of_torch():
    m, (crow, col, val) = from_torch(np.int32)
    return CSRGraph.from_any(m), [col, val]


def of_coo():
    m = from_torch(np.int64)[0].to_sparse_coo()
    return CSRGraph.from_any(m), [m._indices(), m._values()]


def of_scipy():
    m = matrix()
    return CSRGraph.from_any(m), [m.indices, m.data]


def of_edges():
    index, weight = edges()
    return CSRGraph.from_edge_index(index.int(), N, weight), [index, weight]


def of_weights():
    _, (crow, col, val) = from_torch(np.int32)
    return CSRGraph.from_csr(crow, col).weighted(val), [val]


def of_cached_layer():
    _, (crow, col, val) = from_torch(np.int32)
    conv = GCNConv(4, 4, cached=True)
    conv(torch.rand(N, 4), CSRGraph.from_csr(crow, col), val)
    return conv._cached_graph, [val]


MADE = {f.__name__: f for f in (of_csr, of_torch, of_coo, of_scipy, of_edges, of_weights, of_cached_layer)}


def dense(graph):
    a = torch.zeros(graph.shape, dtype=torch.float64)
    val = torch.ones(graph.num_edges) if graph.val is None else graph.val.detach()
    return a.index_put((graph.rows(), graph.col.long()), val.double(), accumulate=True)


@pytest.mark.parametrize("derived", [False, True])
@pytest.mark.parametrize("make", MADE)
def test_later_writes_of_the_caller_do_not_reach_a_graph(make, derived):
    graph, arrays = MADE[make]()
    want = dense(graph).clone()
    if derived:
        graph.transpose(), graph.gcn_norm()
    for array in arrays:  # as numpy or .data write: no version counter sees it
        (array.numpy() if isinstance(array, torch.Tensor) else array)[:] = 0
    x = torch.rand(N, 3, requires_grad=True)
    y = spmm(graph, x)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(y.double(), want @ x.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), (want.T @ torch.ones(N, 3).double()), rtol=1e-5, atol=1e-5)
    norm, fresh = graph.gcn_norm()[0], CSRGraph(graph.crow, graph.col, graph.val, N).gcn_norm()[0]
    assert torch.equal(norm, fresh)


def test_weights_that_are_learned_stay_the_callers():
    _, (crow, col, val) = from_torch(np.int32)
    val.requires_grad_()
    for graph in (CSRGraph.from_csr(crow, col, val), CSRGraph.from_csr(crow, col).weighted(val)):
        before = graph.gcn_norm()[0]
        with torch.no_grad():
            val.mul_(3)  # a step of an optimizer
        assert graph.val is val and not torch.equal(graph.gcn_norm()[0], before)


# --- inference mode --------------------------------------------------------------------------------------------------

LAYERS = {
    "gcn": lambda: GCNConv(4, 4),
    "gcn of few columns": lambda: GCNConv(4, 9),
    "gcn max": lambda: GCNConv(4, 4, aggr="max"),
    "gcn without norm": lambda: GCNConv(4, 4, normalize=False, sparsity=0.5),
    "gcn cached": lambda: GCNConv(4, 9, cached=True),
    "sage": lambda: SAGEConv(4, 4),
    "gin": lambda: GINConv(torch.nn.Linear(4, 4), train_eps=True),
    "sgc cached": lambda: SGConv(4, 9, K=2, cached=True),
    "tag": lambda: TAGConv(4, 4, K=2),
    "graph conv": lambda: GraphConv(4, 4),
    "appnp cached": lambda: APPNP(2, 0.1, cached=True),
    "gcn2 cached": lambda: Initial(GCN2Conv(4, 0.1, cached=True)),
    "gat": lambda: GATConv(4, 4),
    "gatv2": lambda: GATv2Conv(4, 4),
}


def graphs():
    index, weight = edges()
    graph = CSRGraph.from_edge_index(index, N, weight)
    return {
        "edge list": lambda: CSRGraph.from_edge_index(index, N, weight),
        "scipy": lambda: CSRGraph.from_any(matrix()),
        "csr": lambda: CSRGraph.from_csr(graph.crow, graph.col, graph.val.clone()),
        "weighted": lambda: CSRGraph.from_csr(graph.crow, graph.col).weighted(weight[: graph.num_edges] + 0),
        "with loops": lambda: CSRGraph.from_edge_index(index, N, weight).add_self_loops(),
        "without loops": lambda: CSRGraph.from_edge_index(index.clone(), N, weight.clone()).remove_self_loops(),
    }


def trained(layer, x, graph):
    x = x if x.layout != torch.strided else x.clone().requires_grad_()
    y = layer(x, graph)
    y.square().sum().backward()
    leaves = [*layer.parameters()] if x.layout != torch.strided else [x, *layer.parameters()]
    return [y.detach(), *(leaf.grad.clone() for leaf in leaves)]


def assert_trained_alike(layer, x, graph, other, other_x=None):
    got = trained(layer, x, graph)
    layer.zero_grad()
    layer = copy.deepcopy(layer)
    if (inner := getattr(layer, "conv", layer)) and getattr(inner, "cached", False):
        inner._cached_graph = None
    for g, w in zip(got, trained(layer, x if other_x is None else other_x, other), strict=True):
        assert not g.is_inference()
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_kept_under_inference_mode_serves_training(name):
    index, weight = edges()
    x = torch.rand(N, 4)
    graph, layer = CSRGraph.from_edge_index(index, N, weight), LAYERS[name]()
    with torch.inference_mode():
        for _ in range(3):  # a kept aggregate comes with the second
            layer(x, graph)
        graph.transpose()
        if graph.num_rows == graph.num_cols:
            graph.looped()[0].transpose()
    assert_trained_alike(layer, x, graph, CSRGraph.from_edge_index(index, N, weight))
    if name == "gcn cached":  # the aggregate that inference kept, of an input without gradient
        with torch.inference_mode():
            for _ in range(3):
                layer(x, graph)
        layer(x, graph).sum().backward()


@pytest.mark.parametrize("form", graphs())
def test_graphs_made_under_inference_mode_serve_training(form):
    with torch.inference_mode():
        graph = graphs()[form]()
        moved = graph.to("meta").to("meta")
    wanted, layers = graphs()[form](), [GCNConv(4, 4), GATConv(4, 4)]
    assert not any(t.is_inference() for t in (graph.crow, graph.col, graph.val, moved.crow))
    for layer in layers:
        assert_trained_alike(layer, torch.rand(N, 4), graph, wanted)


@pytest.mark.parametrize("form", ["csr", "coo", "uncoalesced"])
def test_sparse_features_of_inference_mode_serve_training(form):
    def make():
        x = (torch.arange(N * 4).view(N, 4) % 3 == 0).float()
        if form == "csr":
            return x.to_sparse_csr()
        x = x.to_sparse_coo()
        return x if form == "coo" else torch.sparse_coo_tensor(x.indices().flip(1), x.values().flip(0), x.shape)

    index, _ = edges()
    with torch.inference_mode():
        made, layer = make(), GCNConv(4, 4)
        layer(made, index)
    layer, plain = GCNConv(4, 4), make()
    with torch.inference_mode():
        layer(plain, index)
    for x in (made, plain):
        assert_trained_alike(layer, x, index, index, make())


# --- files -----------------------------------------------------------------------------------------------------------


def saved(obj, **changes):
    stream = io.BytesIO()
    if changes:
        obj = copy.copy(obj)
        for name, value in changes.items():
            object.__setattr__(obj, name, value)
    torch.save(obj, stream)
    stream.seek(0)
    return stream


def test_graphs_and_compressed_rows_are_loaded_with_weights_only():
    index, weight = edges()
    graph = CSRGraph.from_edge_index(index, N, weight)
    graph.looped(), graph.gcn_norm(), graph.transpose()
    for made in (graph, graph.remove_self_loops(), graph.weighted(None).add_self_loops()):
        got = torch.load(saved({"graphs": [made]}), weights_only=True)["graphs"][0]
        assert torch.equal(dense(got), dense(made)) and got.num_given == made.num_given
        assert torch.equal(got.perm, made.perm) and torch.equal(got.transpose()[2], made.transpose()[2])
    rows = CompressedRows(torch.rand(3, 2), torch.tensor([[0, 1], [1, 3], [0, 3]], dtype=torch.uint8), 4)
    got = torch.load(saved(rows), weights_only=True)
    assert torch.equal(got.to_dense(), rows.to_dense())


BROKEN = {
    "col": torch.full((E,), 2**30, dtype=torch.int32),
    "crow": torch.full((N + 1,), E, dtype=torch.int32),
    "val": torch.ones(E - 1),
    "num_cols": 1,
    "perm": torch.zeros(3, dtype=torch.int32),
    "num_given": -5,
}


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(name, weights_only):
    graph = CSRGraph.from_edge_index(*edges()[:1], N, edges()[1])
    with pytest.raises((ValueError, pickle.UnpicklingError), match="CSRGraph: "):
        torch.load(saved(graph, **{name: BROKEN[name]}), weights_only=weights_only)


def test_broken_rows_are_refused():
    rows = CompressedRows(torch.rand(2, 2), torch.tensor([[0, 1], [1, 3]], dtype=torch.uint8), 4)
    with pytest.raises((ValueError, pickle.UnpicklingError), match="CompressedRows: index must be in"):
        torch.load(saved(rows, index=rows.index + 9), weights_only=True)


def test_copies_keep_what_is_derived():
    graph = CSRGraph.from_edge_index(edges()[0], N)
    graph.transpose(), graph.looped(), graph.gcn_norm()
    other = copy.deepcopy({"a": graph, "b": graph})
    assert other["a"] is other["b"] and other["a"]._structure.keys() == graph._structure.keys()
    assert other["a"].crow.data_ptr() != graph.crow.data_ptr() and other["a"].gcn_norm()[0] is not graph.gcn_norm()[0]
