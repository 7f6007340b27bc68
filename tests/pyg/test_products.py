"""Every covered convolution of PyG gives the same as without accelerate, from the kernels."""

import pytest
import torch
import torch_geometric.nn as pyg
from pyg.oracle import check, paths, watched
from torch import nn
from torch_geometric.utils import spmm

import sparsegnn

N, E = 30, 160


def edges(n=N, m=N, e=E, seed=0):
    """With self-loops, repeated edges and isolated nodes."""
    g = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randint(n - 3, (e,), generator=g), torch.randint(m - 2, (e,), generator=g)])
    return torch.cat([index, index[:, :9], torch.arange(0, min(n, m) - 3, 7).expand(2, -1)], 1)


INDEX = edges()


def features(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def weights(kind):
    w = torch.rand(INDEX.size(1), dtype=torch.float64) + 0.1
    return None if kind == "none" else w.requires_grad_() if kind == "learned" else w


WEIGHTED = {
    "gcn": lambda **k: pyg.GCNConv(6, 4, **k),
    "gcn-wide": lambda **k: pyg.GCNConv(6, 14, **k),
    "gcn-improved": lambda **k: pyg.GCNConv(6, 4, improved=True, bias=False, **k),
    "gcn-plain": lambda **k: pyg.GCNConv(6, 4, normalize=False, **k),
    "gcn-no-loops": lambda **k: pyg.GCNConv(6, 14, add_self_loops=False, **k),
    "gcn-cached": lambda **k: pyg.GCNConv(6, 4, cached=True, **k),
    "gcn-mean": lambda **k: pyg.GCNConv(6, 14, aggr="mean", **k),
    "gcn-max": lambda **k: pyg.GCNConv(6, 4, aggr="max", **k),
    "graph": lambda **k: pyg.GraphConv(6, 4, **k),
    "graph-wide": lambda **k: pyg.GraphConv(6, 14, **k),
    "graph-mean": lambda **k: pyg.GraphConv(6, 4, aggr="mean", **k),
    "graph-max": lambda **k: pyg.GraphConv(6, 4, aggr="max", **k),
    "sg": lambda **k: pyg.SGConv(6, 4, K=2, **k),
    "tag": lambda **k: pyg.TAGConv(6, 4, **k),
    "tag-plain": lambda **k: pyg.TAGConv(6, 4, normalize=False, **k),
    "appnp": lambda **k: pyg.APPNP(3, 0.1, **k),
    "appnp-cached": lambda **k: pyg.APPNP(3, 0.1, cached=True, **k),
    "appnp-plain": lambda **k: pyg.APPNP(3, 0.1, normalize=False, **k),
    "appnp-mean": lambda **k: pyg.APPNP(3, 0.1, aggr="mean", **k),
    "arma": lambda **k: pyg.ARMAConv(6, 4, num_stacks=2, num_layers=2, **k),
    "le": lambda **k: pyg.LEConv(6, 4, **k),
    "lg": lambda **k: pyg.LGConv(**k),
    "cheb": lambda **k: pyg.ChebConv(6, 4, 3, **k),
    "cheb-rw": lambda **k: pyg.ChebConv(6, 4, 2, normalization="rw", **k),
    "ssg": lambda **k: pyg.SSGConv(6, 4, 0.1, **k),
    "mixhop": lambda **k: pyg.MixHopConv(6, 4, **k),
    "gated": lambda **k: pyg.GatedGraphConv(6, 2, **k),
    "simple": lambda **k: pyg.SimpleConv(**k),
    "wl": lambda **k: pyg.WLConvContinuous(**k),
}
PLAIN = {
    "sage": lambda **k: pyg.SAGEConv(6, 4, **k),
    "sage-wide": lambda **k: pyg.SAGEConv(6, 14, **k),
    "sage-max": lambda **k: pyg.SAGEConv(6, 4, aggr="max", **k),
    "sage-min": lambda **k: pyg.SAGEConv(6, 4, aggr="min", **k),
    "sage-project": lambda **k: pyg.SAGEConv(6, 4, project=True, normalize=True, **k),
    "sage-no-root": lambda **k: pyg.SAGEConv(6, 4, root_weight=False, bias=False, **k),
    "gin": lambda **k: pyg.GINConv(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4)), train_eps=True, **k),
    "gin-fixed": lambda **k: pyg.GINConv(nn.Linear(6, 4), eps=0.3, **k),
    "gin-mean": lambda **k: pyg.GINConv(nn.Linear(6, 4), eps=0.3, aggr="mean", **k),
    "resgated": lambda **k: pyg.ResGatedGraphConv(6, 4, act=nn.Identity(), **k),
    "mf": lambda **k: pyg.MFConv(6, 4, **k),
    "cluster": lambda **k: pyg.ClusterGCNConv(6, 4, **k),
}


@pytest.mark.parametrize("weight", ["none", "constant", "learned"])
@pytest.mark.parametrize("kind", WEIGHTED)
def test_weighted(kind, weight):
    conv, x, w = WEIGHTED[kind]().double(), features(N, 6), weights(weight)
    check(conv, lambda m: m(x, INDEX, w), x, *([w] if weight == "learned" else []))


@pytest.mark.parametrize("kind", PLAIN)
def test_plain(kind):
    conv, x = PLAIN[kind]().double(), features(N, 6)
    check(conv, lambda m: m(x, INDEX), x)


@pytest.mark.parametrize("kind", ["gcn", "gcn-wide", "graph", "sg", "appnp", "arma", "le", "cheb", "sage", "gin"])
def test_flow(kind):
    conv, x = (WEIGHTED | PLAIN)[kind](flow="target_to_source").double(), features(N, 6)
    check(conv, lambda m: m(x, INDEX), x)


def test_dropout_of_edges_in_appnp():
    conv, x = pyg.APPNP(3, 0.1, dropout=0.5).double(), features(N, 6)
    check(conv, lambda m: m(x, INDEX), x)  # PyG draws, from the same generator


@pytest.mark.parametrize("weight", ["none", "constant", "learned"])
def test_gcn2(weight):
    conv, x, x0, w = pyg.GCN2Conv(6, 0.1, 0.5, 1).double(), features(N, 6), features(N, 6), weights(weight)
    check(conv, lambda m: m(x, x0, INDEX, w), x, x0, *([w] if weight == "learned" else []))


def test_convolutions_that_make_their_weights():
    x, attr, negative = features(N, 6), features(INDEX.size(1), 3), edges(seed=1)
    check(pyg.PDNConv(6, 4, 3, 5).double(), lambda m: m(x, INDEX, attr), x, attr)
    check(pyg.SignedConv(6, 4, first_aggr=True).double(), lambda m: m(x, INDEX, negative), x)


def test_pan():
    pytest.importorskip("torch_sparse")
    x = features(N, 6).detach().float().requires_grad_()  # of float64 torch_sparse makes no products
    check(pyg.PANConv(6, 4, 2), lambda m: m(x, single(INDEX))[0], x)


def single(index):
    """Without repeated edges."""
    flat = (index[0] * N + index[1]).unique()
    return torch.stack([flat // N, flat % N])


@pytest.mark.parametrize("aggr", ["mean", "add", "max"])
@pytest.mark.parametrize("bases", [None, 2])
def test_rgcn(aggr, bases):
    conv, x = pyg.RGCNConv(6, 4, 3, num_bases=bases, aggr=aggr).double(), features(N, 6)
    kind = torch.randint(3, (INDEX.size(1),))
    check(conv, lambda m: m(x, INDEX, kind), x)


@pytest.mark.parametrize("make", [
    lambda: pyg.SAGEConv((6, 5), 4), lambda: pyg.SAGEConv((6, 5), 14), lambda: pyg.GraphConv((6, 5), 4),
    lambda: pyg.SAGEConv((6, 5), 4, aggr="max"), lambda: pyg.LEConv((6, 5), 4),
])  # fmt: skip
def test_bipartite(make):
    conv, source, target = make().double(), features(N, 6), features(12, 5)
    index = edges(N, 12)
    check(conv, lambda m: m((source, target), index), source, target)


@pytest.mark.parametrize("kind", ["sage", "sage-wide", "graph", "gin"])
def test_pair_without_targets(kind):
    conv, source = (WEIGHTED | PLAIN)[kind]().double(), features(N, 6)
    index = edges(N, 12)
    check(conv, lambda m: m((source, None), index, size=(N, 12)), source)


@pytest.mark.parametrize("kind", ["gcn-plain", "graph", "sage", "gin", "appnp", "arma"])
def test_a_batch_of_features_on_one_graph(kind):
    """[B, N, F] runs as one wide aggregation."""
    conv, x = (WEIGHTED | PLAIN)[kind]().double(), features(3, N, 6)
    assert check(conv, lambda m: m(x, INDEX), x).kernels <= 6  # three layers at most, forward and backward


def test_edge_weights_as_a_column():
    conv, x = pyg.GraphConv(6, 4).double(), features(N, 6)
    check(conv, lambda m: m(x, INDEX, weights("constant")[:, None]), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gcn", "gcn-wide", "graph", "sage", "appnp"])
def test_dtypes(kind, dtype):
    conv, x = (WEIGHTED | PLAIN)[kind]().to(dtype), features(N, 6).detach().to(dtype).requires_grad_()
    low = dict(rtol=0.1, atol=0.1) if dtype == torch.bfloat16 else {}
    check(conv, lambda m: m(x, INDEX), x, **low)


@pytest.mark.parametrize("kind", ["gcn", "gcn-wide", "graph", "sage", "sage-wide", "appnp"])
def test_autocast_keeps_dtypes(kind):
    conv, x = (WEIGHTED | PLAIN)[kind](), features(N, 6).detach().float().requires_grad_()

    def call(m):
        with torch.autocast("cpu", torch.bfloat16):
            return m(x, INDEX, weights("constant").float()) if kind in WEIGHTED else m(x, INDEX)

    check(conv, call, x, rtol=0.05, atol=0.05)


# --- which messages are products -------------------------------------------------------------------------------------


class Mine(pyg.MessagePassing):
    """A convolution of a user's: its message is known by its code."""

    def forward(self, x, edge_index, scale=None):
        return self.propagate(edge_index, h=x, scale=scale)

    def message(self, h_j, scale):
        return h_j if scale is None else scale.unsqueeze(-1) * h_j

    def message_and_aggregate(self, a, h):
        return spmm(a, h, reduce=self.aggr)


class Squared(Mine):
    def message(self, h_j, scale):
        return h_j * h_j


class Aggregated(Mine):
    def aggregate(self, inputs, index, dim_size=None):
        return 2 * super().aggregate(inputs, index, dim_size=dim_size)


class Updated(Mine):
    def update(self, inputs):
        return inputs + 1


class Targets(pyg.MessagePassing):
    def forward(self, x, edge_index):
        return self.propagate(edge_index, x=x)

    def message(self, x_i):
        return x_i


class NotSage(pyg.SAGEConv):
    def message(self, x_j):
        return x_j + 1


class Louder(pyg.GCNConv):
    def forward(self, x, edge_index):
        return 2 * super().forward(x, edge_index)


@pytest.mark.parametrize("conv, ours", [
    (Mine(), True), (Squared(), False), (Aggregated(), False), (Updated(), False), (Targets(), False),
    (NotSage(6, 14), False), (Louder(6, 4), True),
])  # fmt: skip
def test_messages_of_users(conv, ours):
    both = nn.ModuleList([conv.double(), pyg.LGConv()])
    x = features(N, 6)
    watch = check(both, lambda m: m[0](x, INDEX), x, ours=ours)
    assert ours or watch.kernels == 0


@pytest.mark.parametrize("name, function", [("update", lambda self, inputs: inputs + 1),
                                            ("message", lambda self, h_j, scale: h_j * h_j)])  # fmt: skip
def test_classes_that_change_later(monkeypatch, name, function):
    x, conv = features(N, 6), Mine()
    other = sparsegnn.accelerate(Mine())
    other(x, INDEX)
    monkeypatch.setattr(Mine, name, function)
    check(conv, lambda m: m(x, INDEX), x, other=other, ours=False)


def test_a_matrix_in_a_convolution_of_the_users():
    x, a = features(N, 6), torch.sparse_coo_tensor(INDEX.flip(0), weights("constant"), (N, N)).coalesce()
    check(Mine(), lambda m: m(x, a.to_sparse_csr()), x)


@pytest.mark.parametrize("aggr", ["add", "mean", "max", "min", "mul", "median", ["mean", "max"], "softmax"])
def test_aggregations(aggr):
    conv, x = pyg.SAGEConv(6, 4, aggr=aggr).double(), features(N, 6)
    other = check(conv, lambda m: m(x, INDEX), x, ours=aggr in ("add", "mean", "max", "min"))
    assert other is not None


def test_gating_by_a_sigmoid_is_not_linear():
    conv, x = pyg.ResGatedGraphConv(6, 4).double(), features(N, 6)
    check(conv, lambda m: m(x, INDEX), x, ours=False)


def test_refused_features_take_the_old_path():
    conv = sparsegnn.accelerate(pyg.SimpleConv())
    with watched() as watch:
        y = conv(torch.arange(N)[:, None], INDEX)
    assert watch.kernels == 0 and y.dtype == torch.int64 and paths(conv) == {"": "features of another kind"}


@pytest.mark.parametrize("weighted", ["none", "constant", "learned"])
def test_constant_steps_of_appnp_are_one_node(weighted):
    """Where each step is one, what flows to x is a tensor for every step."""
    conv, x = sparsegnn.accelerate(pyg.APPNP(4, 0.1).double()), features(N, 6)
    y, w = None, weights(weighted)
    for _ in range(2):
        y = conv(x, INDEX, w)
    one = type(y.grad_fn).__name__ == "_StepsBackward"
    assert one == (weighted != "learned")
    check(pyg.APPNP(4, 0.1).double(), lambda m: m(x, INDEX, w), x, *((w,) if weighted == "learned" else ()))
