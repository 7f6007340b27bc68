"""The formats of graphs that PyG takes: sparse matrices, EdgeIndex, loaders, batches; attention with its options."""

import pytest
import torch
import torch_geometric.nn as pyg
from pyg.oracle import accelerated, check, paths
from torch_geometric import EdgeIndex
from torch_geometric.data import Batch, Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.utils import to_torch_csr_tensor

N = 30


def edges(n=N, m=N, e=150, seed=0):
    """With self-loops; some nodes have no edge into them."""
    g = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randint(n, (e,), generator=g), torch.randint(m - 4, (e,), generator=g)])
    return torch.cat([index, torch.arange(0, min(n, m) - 4, 5).expand(2, -1)], 1)


def single(index, n=N, m=N):
    """Without repeated edges, which matrices add up."""
    flat = (index[0] * m + index[1]).unique()
    return torch.stack([flat // m, flat % m])


def features(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


KINDS = {
    "gcn": lambda: pyg.GCNConv(6, 4), "sage": lambda: pyg.SAGEConv(6, 4), "sage-max": lambda: pyg.SAGEConv(6, 4, "max"),
    "graph": lambda: pyg.GraphConv(6, 4), "gin": lambda: pyg.GINConv(torch.nn.Linear(6, 4)),
    "sg": lambda: pyg.SGConv(6, 4, K=2), "appnp": lambda: pyg.APPNP(2, 0.1), "lg": lambda: pyg.LGConv(),
    "gat": lambda: pyg.GATConv(6, 4, heads=2), "gatv2": lambda: pyg.GATv2Conv(6, 4, heads=2),
}  # fmt: skip
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("weighted", [False, True])
@kinds
def test_torch_csr(kind, weighted):
    index = single(edges())
    w = torch.rand(index.size(1), dtype=torch.float64) + 0.1 if weighted else None
    adj = to_torch_csr_tensor(index.flip(0), w if weighted else torch.ones(index.size(1)).double(), size=(N, N))
    x = features(N, 6)
    check(KINDS[kind]().double(), lambda m: m(x, adj), x)


@pytest.mark.parametrize("weighted", ["none", "constant", "learned"])
@kinds
def test_sparse_tensor(kind, weighted):
    sparse = pytest.importorskip("torch_sparse")
    index = single(edges())
    w = None if weighted == "none" else (torch.rand(index.size(1), dtype=torch.float64) + 0.1)
    leaf = () if weighted != "learned" else (w.requires_grad_(),)
    x = features(N, 6)

    def call(m):
        return m(x, sparse.SparseTensor(row=index[1], col=index[0], value=w, sparse_sizes=(N, N)))

    check(KINDS[kind]().double(), call, x, *leaf)


def test_a_sparse_tensor_is_converted_once_and_its_changes_are_noticed():
    sparse = pytest.importorskip("torch_sparse")
    index, x = single(edges()), features(N, 6)
    value = torch.rand(index.size(1), dtype=torch.float64)
    adj = sparse.SparseTensor(row=index[1], col=index[0], value=value, sparse_sizes=(N, N))
    conv = pyg.GCNConv(6, 4).double()
    other = accelerated(conv)
    check(conv, lambda m: m(x, adj), x, other=other)
    adj.storage.value().mul_(torch.arange(index.size(1)))
    check(conv, lambda m: m(x, adj), x, other=other)


@kinds
def test_edge_index(kind):
    index = EdgeIndex(edges(), sparse_size=(N, N)).sort_by("col").values
    x = features(N, 6).detach().float().requires_grad_()
    check(KINDS[kind](), lambda m: m(x, index), x)


def test_int32_edges():
    """Against int64 ones: the gradient of PyG's own path is wrong with int32."""
    x, index = features(N, 6), edges()
    conv = pyg.SAGEConv(6, 4).double()
    check(conv, lambda m: m(x, index.int() if "forward" in vars(m) else index), x)


def test_neighbor_loader():
    pytest.importorskip("torch_sparse")  # samples
    data = Data(x=features(N, 6).detach(), edge_index=edges())
    model = pyg.GraphSAGE(6, 8, 2, 4).double()
    other = accelerated(model)
    for batch in NeighborLoader(data, num_neighbors=[3, 3], batch_size=8):
        check(model, lambda m, batch=batch: m(batch.x, batch.edge_index), other=other)


def test_batch():
    data, model = Data(x=features(N, 6).detach(), edge_index=edges()), pyg.GraphSAGE(6, 8, 2, 4).double()
    batch = Batch.from_data_list([data, Data(x=torch.zeros(3, 6).double(), edge_index=torch.zeros(2, 0).long()), data])
    check(model, lambda m: m(batch.x, batch.edge_index))


@pytest.mark.parametrize("n", [0, 5])
@pytest.mark.parametrize("kind", ["gcn", "sage", "sage-max", "gat", "appnp"])
def test_no_edges(kind, n):
    x = features(n, 6)
    check(KINDS[kind]().double(), lambda m: m(x, torch.zeros(2, 0).long()), x)


def test_empty_and_isolated_rows_of_a_mean():
    x, index = features(N, 6), torch.tensor([[1, 2], [0, 0]])
    check(pyg.SAGEConv(6, 4).double(), lambda m: m(x, index), x)


# --- attention -------------------------------------------------------------------------------------------------------

ATTENTION = {
    "gat": lambda **k: pyg.GATConv(6, 4, heads=3, **k),
    "gatv2": lambda **k: pyg.GATv2Conv(6, 4, heads=3, **k),
}
OPTIONS = [
    {}, dict(concat=False), dict(bias=False, residual=True), dict(negative_slope=0.5, add_self_loops=False),
    dict(flow="target_to_source"), dict(edge_dim=3), dict(edge_dim=3, fill_value="max"),
    dict(edge_dim=3, fill_value=2.0, add_self_loops=True), dict(edge_dim=3, add_self_loops=False),
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ATTENTION)
def test_attention(kind, options):
    conv, x, index = ATTENTION[kind](**options).double(), features(N, 6), edges()
    attr = features(index.size(1), 3)
    given, leaves = ((attr,), (x, attr)) if "edge_dim" in options else ((), (x,))
    check(conv, lambda m: m(x, index, *given), *leaves)


@pytest.mark.parametrize("kind, make", [
    ("gat", lambda: pyg.GATConv((6, 5), 4, heads=2, add_self_loops=False)),
    ("gat-loops", lambda: pyg.GATConv((6, 5), 4, heads=2)),
    ("gatv2", lambda: pyg.GATv2Conv((6, 5), 4, heads=2, add_self_loops=False)),
])  # fmt: skip
def test_bipartite_attention(kind, make):
    source, target, index = features(N, 6), features(12, 5), edges(N, 12)
    check(make().double(), lambda m: m((source, target), index), source, target)


def test_attention_without_targets():
    source, index = features(N, 6), edges(N, 12)
    conv = pyg.GATConv((6, 5), 4, add_self_loops=False).double()
    check(conv, lambda m: m((source, None), index, size=(N, 12)), source)


@pytest.mark.parametrize("kind", ATTENTION)
def test_dropout_of_attention_has_the_right_mean(kind):
    conv, x, index = ATTENTION[kind](dropout=0.5).double(), features(N, 6), edges()
    other = accelerated(conv)
    with torch.no_grad():
        conv.eval()
        want = conv(x, index)
        drawn = torch.stack([other(x, index) for _ in range(800)])
        other.eval()
        torch.testing.assert_close(other(x, index), want)
    assert paths(other)[""] == "ours" and not torch.equal(drawn[0], drawn[1])
    error = (drawn.mean(0) - want).abs() / (drawn.std(0) / 800**0.5 + 1e-9)
    assert error.max() < 6


def test_attention_of_another_kind_is_pygs():
    class Mine(pyg.GATConv):
        def edge_update(self, alpha_j, alpha_i, edge_attr, index, ptr, dim_size):
            return 1 + super().edge_update(alpha_j, alpha_i, edge_attr, index, ptr, dim_size)

    x, index = features(N, 6), edges()
    check(Mine(6, 4).double(), lambda m: m(x, index), x, ours=False)
    check(pyg.GATConv(6, 4, aggr="max").double(), lambda m: m(x, index), x, ours=False)
