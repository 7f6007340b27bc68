"""What callers hand to a layer besides dense features: compressed rows, sparse features, values of an adjacency."""

import numpy as np
import pytest
import scipy.sparse
import torch

from sparsegnn import CSRGraph
from sparsegnn.nn import CompressedRows, GATConv, GATv2Conv, GCNConv, MaxK, SAGEConv, SparseLinear
from sparsegnn.nn.inner import Linear
from sparsegnn.ops import maxk_spmm, spmm

from .twins import assert_close, twins

N, E = 12, 50


def edges(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(N, (2, E), generator=g).unique(dim=1)


# --- compressed rows -------------------------------------------------------------------------------------------------

INDEX = torch.tensor([[0, 3], [1, 2], [2, 7]], dtype=torch.uint8)
ROWS = {  # name: (values, index, width, group, error, message)
    "beyond the width": (torch.ones(3, 2), INDEX + 1, 8, 0, ValueError, r"index must be in \[0, 8\), got 1 to 8"),
    "far beyond": (torch.ones(3, 2), INDEX.short() + 30000, 300, 0, ValueError, "index must be in"),
    "negative": (torch.ones(3, 2), INDEX.short() - 5, 300, 0, ValueError, "index must be in"),
    "falling": (torch.ones(3, 2), INDEX.flip(1), 8, 0, ValueError, "index must ascend within every row"),
    "repeated": (torch.ones(3, 2), INDEX * 0, 8, 0, ValueError, "index must ascend within every row"),
    "of another size": (torch.ones(3, 3), INDEX, 8, 0, ValueError, r"index must have shape \[3, 3\]"),
    "of another type": (torch.ones(3, 2), INDEX.long(), 8, 0, TypeError, "index must be torch.uint8 for width=8"),
    "too wide": (torch.ones(3, 2), INDEX.short(), 1 << 16, 0, ValueError, r"width must be in \[0, 32768\]"),
    "of another group": (torch.ones(3, 2), INDEX, 8, 4, ValueError, "index must have 1 entries in every group of 4"),
    "of uneven groups": (torch.ones(3, 2), INDEX, 8, 3, ValueError, "group must divide the 8 columns"),
    "no tensor": ([1], INDEX, 8, 0, TypeError, "values must be a Tensor"),
}


@pytest.mark.parametrize("name", ROWS)
def test_compressed_rows_that_leave_their_memory_are_refused(name):
    values, index, width, group, error, message = ROWS[name]
    with pytest.raises(error, match=f"CompressedRows: {message}"):
        CompressedRows(values, index, width, group)
    if name != "no tensor":
        graph = CSRGraph.from_edge_index(torch.tensor([[0, 1], [1, 2]]), 3)
        with pytest.raises(error, match=f"maxk_spmm: {message}"):
            maxk_spmm(graph, values, index, width, group=group or None)


def test_compressed_rows_stay_what_they_are():
    rows = CompressedRows(torch.rand(3, 2), INDEX, 8)
    with pytest.raises(ValueError, match=r"CompressedRows: values must have shape \[3, 2\]"):
        rows.map(lambda v: v[:2])
    made = MaxK(2, compressed=True)(torch.rand(3, 8))
    assert torch.equal(CompressedRows(made.values, made.index, 8).to_dense(), made.to_dense())


# --- sparse features -------------------------------------------------------------------------------------------------


def features(form):
    """A matrix, and arrays that share its memory: of values, and of int32 indices."""
    m = scipy.sparse.random(N, 9, 0.4, "csr", dtype=np.float64, random_state=np.random.default_rng(0))
    if form.startswith("csr"):
        parts = [torch.from_numpy(a) for a in (m.indptr, m.indices, m.data)]
        return torch.sparse_csr_tensor(*parts, m.shape), m.data
    m = m.tocoo()
    row, col, val = (torch.from_numpy(a.copy()) for a in (m.row.astype(np.int64), m.col.astype(np.int64), m.data))
    if form == "uncoalesced":
        row, col, val = (torch.cat([t, t.flip(0)]) for t in (row, col, val))
    x = torch.sparse_coo_tensor(torch.stack([row, col]), val, m.shape)
    x = x._coalesced_(True) if form != "uncoalesced" else x
    if form == "coo unsorted":
        x = torch.sparse_coo_tensor(torch.stack([row, col]).flip(1), val.flip(0), m.shape)._coalesced_(True)
    return x, x._values().numpy()


LINEARS = {
    "dense": lambda: Linear(9, 5, bias=False).double(),
    "sparse": lambda: SparseLinear(9, 5, bias=False, sparsity=0.5).double(),
    "gcn": lambda: GCNConv(9, 5, normalize=False, bias=False).double(),
}


@pytest.mark.parametrize("write", ["numpy", "data", "in place", "nothing"])
@pytest.mark.parametrize("form", ["csr", "coo", "coo unsorted", "uncoalesced"])
@pytest.mark.parametrize("kind", LINEARS)
def test_new_values_reach_the_gradient_too(kind, form, write):
    (x, array), layer = features(form), LINEARS[kind]()
    loops = [torch.arange(N).expand(2, -1)] if kind == "gcn" else []
    weight = layer.lin if kind == "gcn" else layer
    dy = torch.randn(N, 5, dtype=torch.float64)
    for _ in range(3):
        if write == "numpy":
            array *= -2
        elif write == "data":
            (x.values() if form == "csr" else x._values()).data[1:] = 7
        elif write == "in place":
            (x.values() if form == "csr" else x._values()).mul_(3)
        dense = torch.zeros(N, 9, dtype=torch.float64)
        at = x.to_sparse_coo() if form == "csr" else x
        dense.index_put_(tuple(at._indices()), at._values(), accumulate=True)
        y = layer(x, *loops)
        wanted = weight.weight if kind != "sparse" else weight.dense_weight()
        torch.testing.assert_close(y, dense @ wanted.T)
        (got,) = torch.autograd.grad(y, [weight.values if kind == "sparse" else weight.weight], dy)
        full = dy.T @ dense
        torch.testing.assert_close(got, full[wanted != 0] if kind == "sparse" else full)


def test_indices_are_those_of_the_first_use():
    """Writes to them through numpy are not seen: both passes keep the old ones, which are in the matrix."""
    m = scipy.sparse.random(N, 9, 0.4, "csr", dtype=np.float64, random_state=np.random.default_rng(0))
    parts = [torch.from_numpy(a) for a in (m.indptr, m.indices, m.data)]
    x, layer, old = torch.sparse_csr_tensor(*parts, m.shape), LINEARS["dense"](), torch.from_numpy(m.toarray())
    layer(x)
    m.indices[:] = 1 << 20
    y = layer(x)
    torch.testing.assert_close(y, old @ layer.weight.T)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), [layer.weight])[0], old.sum(0).expand(5, 9))


# --- edge features ---------------------------------------------------------------------------------------------------


def adjacency(form, weight):
    index = edges()
    if form == "SparseTensor":
        torch_sparse = pytest.importorskip("torch_sparse")
        return torch_sparse.SparseTensor(row=index[1], col=index[0], value=weight, sparse_sizes=(N, N))
    coo = torch.sparse_coo_tensor(index.flip(0), weight, (N, N)).coalesce()
    if form == "graph":
        return CSRGraph.from_edge_index(index, N, weight)
    if form == "scipy":
        i = coo.indices().numpy()
        return scipy.sparse.csr_matrix((coo.values().numpy(), (i[0], i[1])), shape=(N, N))
    return coo if form == "coo" else coo.to_sparse_csr()


@pytest.mark.parametrize("form", ["SparseTensor", "coo", "csr", "scipy", "graph"])
@pytest.mark.parametrize("layer", ["GATConv", "GATv2Conv"])
@pytest.mark.parametrize("loops", [True, False])
def test_values_of_an_adjacency_are_no_edge_features(layer, form, loops):
    ours, theirs = twins(layer, 4, 3, heads=2, edge_dim=1, add_self_loops=loops)
    x, weight = torch.randn(N, 4, dtype=torch.float64), torch.rand(edges().size(1), dtype=torch.float64)
    adj = adjacency(form, weight)
    if form in ("scipy", "graph") or (form == "SparseTensor" and loops):  # which PyG does not take
        with pytest.raises(ValueError, match=f"{layer}: edge_attr must be given with edge_dim"):
            ours(x, adj)
        if form != "SparseTensor":
            return
        with pytest.raises(NotImplementedError):
            theirs(x, adj)
    else:
        assert_close([ours(x, adj)], [theirs(x, adj)])
    bare = CSRGraph.from_any(adj).weighted(None)
    assert_close([ours(x, bare)], [theirs(x, edges())])


def test_edge_features_that_a_layer_cannot_use():
    conv = GATv2Conv(4, 3)
    with pytest.raises(ValueError, match="GATv2Conv: edge_attr must be None without edge_dim"):
        conv(torch.randn(N, 4), edges(), torch.rand(edges().size(1)))


# --- gradients of the weights alone ----------------------------------------------------------------------------------

ALONE = {
    **{f"spmm {r}": (lambda g, x, w, r=r: spmm(g, x, r, w)) for r in ("sum", "mean", "max", "min")},
    **{f"maxk {r}": (lambda g, x, w, r=r: maxk_spmm(g, *rows(x), 6, r, w)) for r in ("sum", "mean")},
    **{
        f"gcn {r} {n}": (lambda g, x, w, r=r, n=n: frozen(GCNConv, aggr=r, normalize=n)(x, g.weighted(w)))
        for r in ("add", "mean", "max", "min")
        for n in (True, False)
    },
}


def rows(x):
    return x, torch.arange(6, dtype=torch.uint8).expand(N, 6).contiguous()


def frozen(layer, **options):
    conv = layer(6, 6, bias=False, **options).double().requires_grad_(False)
    conv.lin.weight.copy_(torch.eye(6))
    return conv


def reduced(form, index, x, w):
    """The same in plain PyTorch."""
    kind, reduce, *norm = form.split()
    if norm == ["True"]:
        gcn_norm = pytest.importorskip("torch_geometric.nn.conv.gcn_conv").gcn_norm
        index, w = gcn_norm(index, w, N, dtype=torch.float64)
    message = w[:, None] * x[index[0]]
    to, zero = index[1][:, None].expand_as(message), x.new_zeros(N, 6)
    name = {"add": "sum", "max": "amax", "min": "amin"}.get(reduce, reduce)
    return zero.scatter_reduce(0, to, message, name, include_self=False)


@pytest.mark.parametrize("bipartite", [False, True])
@pytest.mark.parametrize("form", ALONE)
def test_gradients_of_edge_weights_alone(form, bipartite):
    if bipartite and form.startswith("gcn"):
        pytest.skip("square graphs only")
    index, x = edges(), torch.randn(N, 6, dtype=torch.float64)
    w = torch.rand(index.size(1), dtype=torch.float64).requires_grad_()
    graph = CSRGraph.from_edge_index(index, (N + 3, N) if bipartite else N)
    given = w if form.startswith("gcn") else w[graph.perm.long()]
    y = ALONE[form](graph, x, given)[:N]
    want = reduced(form, index, x, w)
    dy = torch.randn_like(want)
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(*(torch.autograd.grad(v, w, dy)[0] for v in (y, want)))


def test_layers_with_frozen_weights_train_what_is_left():
    for conv in (GATConv(4, 3), SAGEConv(4, 3)):
        conv.requires_grad_(False)
        assert not conv(torch.randn(N, 4), edges()).requires_grad
