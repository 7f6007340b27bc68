"""GCNConv and gcn() as one op: the same results as in two, and chosen where it should be.

On the CPU the op is the two ops, so that these tests check the wiring; tests/csrc/test_entries.py runs them on the CUDA
entries, where it is the fused kernels.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparsegnn import CSRGraph, flops
from sparsegnn.nn import GCNConv
from sparsegnn.ops import _fused, gcn


@pytest.fixture
def one_op(monkeypatch):
    """Lets the choice of path think of the CPU as it does of CUDA."""
    monkeypatch.setattr(_fused, "DEVICES", {"cpu", "cuda"})


class Calls(TorchDispatchMode):
    """Names of our ops that are called."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "sparsegnn":
            self.names.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


def graph_of(nodes=90, edges=500, weighted=False, seed=0, hub=400):
    """Random, with isolated nodes, self-loops, and a node that is the neighbour of many and has many."""
    g = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(nodes - 5, (2, edges), generator=g)
    star = torch.randint(nodes, (hub,), generator=g)
    seven = torch.full_like(star, 7)
    edge_index = torch.cat([edge_index, torch.stack([star, seven]), torch.stack([seven, star])], 1)
    weight = torch.rand(edge_index.size(1), generator=g, dtype=torch.float64) + 0.1 if weighted else None
    return CSRGraph.from_edge_index(edge_index, nodes, weight)


def run(conv, x, graph, seed=5):
    """Output and gradients of all that has one, after the same draws."""
    torch.manual_seed(seed)
    leaf = x.clone().requires_grad_()
    with Calls() as calls:
        y = conv(leaf, graph)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y.dtype)
        grads = torch.autograd.grad(y, [leaf, *conv.parameters()], dy)
    return [y.detach(), *grads], calls.names


def dense(conv, x, graph):
    """A x W^T + bias in fp64, with dense matrices."""
    a = torch.zeros(graph.shape, dtype=torch.float64)
    val = torch.ones(graph.num_edges, dtype=torch.float64) if graph.val is None else graph.val.double()
    a.index_put_((graph.rows(), graph.col.long()), val, accumulate=True)
    if conv.normalize:
        scale, diag = graph.gcn_norm(dtype=torch.float64)
        a = scale[:, None] * (a + torch.diag(diag)) * scale
    return a @ x.double() @ conv.lin.dense_weight().double().T + conv.bias.double()


OPTIONS = [
    dict(),
    dict(act="relu"),
    dict(act="relu", dropout=0.4),
    dict(dropout=0.4),
    dict(normalize=False, act="relu"),
    dict(pattern="fan_in"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layer_equals_two_ops(one_op, monkeypatch, options, weighted, dtype):
    torch.manual_seed(0)
    graph, x = graph_of(weighted=weighted), torch.randn(90, 20, dtype=dtype)
    conv = GCNConv(20, 24, sparsity=0.7, **options).to(dtype)
    torch.nn.init.normal_(conv.bias)
    got, names = run(conv, x, graph)
    assert {"spmm_linear", "spmm_linear_backward"} <= set(names) and not {"spmm", "sparse_linear"} & set(names)
    monkeypatch.setattr(_fused, "DEVICES", set())
    wanted, names = run(conv, x, graph)
    assert {"spmm", "sparse_linear"} <= set(names) and "spmm_linear" not in names
    bound = 1e-12 if dtype == torch.float64 else 5e-6
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == dtype and (g - w).norm() <= bound * w.norm()
    assert torch.equal(got[0] == 0, wanted[0] == 0)  # the same outputs are dropped
    if not options.get("dropout"):
        y = dense(conv, x, graph)
        y = y.relu() if options.get("act") else y
        assert (got[0].double() - y).norm() <= (1e-13 if dtype == torch.float64 else 1e-5) * y.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(one_op, dtype):
    torch.manual_seed(0)
    graph, x = graph_of(), torch.randn(90, 33).to(dtype)
    conv = GCNConv(33, 40, sparsity=0.9).to(dtype)
    got, names = run(conv, x, graph)
    assert "spmm_linear_backward" in names
    y = dense(conv, x, graph)
    assert got[0].dtype == dtype and (got[0].double() - y).norm() <= 1e-2 * y.norm()
    wide, _ = run(GCNConv(33, 40, sparsity=0.9).double(), x.double(), graph)  # another layer: shapes alone
    assert [g.shape for g in got] == [g.shape for g in wide]


@pytest.mark.parametrize("bias", [True, False])
def test_function_equals_layer(one_op, bias):
    torch.manual_seed(0)
    graph, x = graph_of(), torch.randn(90, 16, dtype=torch.float64)
    conv = GCNConv(16, 16, sparsity=0.6, act="relu", bias=bias).double()
    lin = conv.lin
    pattern = (lin.crow, lin.col, lin.ccol, lin.row, lin.perm)

    class Function(torch.nn.Module):
        def parameters(self):
            return conv.parameters()

        def forward(self, x, graph):
            return gcn(graph, x, lin.values, conv.bias, pattern=pattern, act="relu")

    got, names = run(Function(), x, graph)
    assert {"spmm_linear", "spmm_linear_backward"} <= set(names)
    for g, w in zip(got, run(conv, x, graph)[0], strict=True):
        assert torch.equal(g, w)


def test_training_steps_equal_those_in_two_ops(one_op, monkeypatch):
    """Three layers, ReLU and dropout: losses of ten steps of Adam in fp64."""
    graph, x = graph_of(60, 300), torch.randn(60, 12, dtype=torch.float64)
    target = torch.randint(5, (60,), generator=torch.Generator().manual_seed(1))
    losses = {}
    for devices in ({"cpu"}, set()):
        monkeypatch.setattr(_fused, "DEVICES", devices)
        torch.manual_seed(3)
        layers = [GCNConv(a, b, sparsity=0.5, act=act, dropout=0.2 if act else 0.0).double()
                  for a, b, act in ((12, 16, "relu"), (16, 16, "relu"), (16, 16, None))]  # fmt: skip
        optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters()], 0.02)
        losses[bool(devices)] = []
        for _ in range(10):
            h = x
            for layer in layers:
                h = layer(h, graph)
            loss = torch.nn.functional.cross_entropy(h[:, :5], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[bool(devices)].append(loss.item())
    assert losses[True] == pytest.approx(losses[False], rel=1e-9)
    assert losses[True][-1] < losses[True][0]


def test_same_bits_twice(one_op):
    graph, x = graph_of(), torch.randn(90, 20)
    conv = GCNConv(20, 24, sparsity=0.7, act="relu", dropout=0.3)
    assert all(torch.equal(a, b) for a, b in zip(run(conv, x, graph)[0], run(conv, x, graph)[0], strict=True))


def test_autocast_and_flops(one_op):
    graph, x = graph_of(), torch.randn(90, 16)
    conv = GCNConv(16, 16, sparsity=0.9)
    with torch.autocast("cpu", torch.bfloat16):
        low, names = run(conv, x, graph)
    assert "spmm_linear" in names and low[0].dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in low[1:])
    y = dense(conv, x, graph)
    assert (low[0].double() - y).norm() <= 1e-2 * y.norm()
    edges = int((graph.rows() != graph.col).sum()) + 90  # some nodes have several self-loops: one for each instead
    work = 2 * edges * 16 + 2 * 90 * conv.lin.values.numel()
    assert flops(conv, x, graph, show=False)["total"] == work


def test_compiles_without_graph_breaks(one_op):
    graph, x = graph_of(), torch.randn(90, 16)
    graph.gcn_norm(), graph.transpose()
    conv = GCNConv(16, 16, sparsity=0.75, act="relu")
    compiled = torch.compile(conv, fullgraph=True)
    wanted, _ = run(conv, x, graph)
    leaf = x.clone().requires_grad_()
    y = compiled(leaf, graph)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y.dtype)
    got = [y.detach(), *torch.autograd.grad(y, [leaf, *conv.parameters()], dy)]
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w)


# --- the choice ---


def names_of(conv, x, graph):
    with Calls() as calls:
        conv(x, graph)
    return {"spmm", "sparse_linear", "spmm_linear"} & set(calls.names)


def test_where_the_layer_takes_two_ops(one_op):
    graph = graph_of()
    x = torch.randn(90, 16)
    leaf = x.clone().requires_grad_()
    two, one = {"spmm", "sparse_linear"}, {"spmm_linear"}
    sparse = dict(sparsity=0.7)
    assert names_of(GCNConv(16, 16, **sparse), leaf, graph) == one
    assert names_of(GCNConv(16, 16, **sparse), x, graph) == two  # a first layer: one gather in all
    with torch.no_grad():
        assert names_of(GCNConv(16, 16, **sparse), x, graph) == one
        assert names_of(GCNConv(16, 7, **sparse), x, graph) == two  # transform first
    assert names_of(GCNConv(16, 512, **sparse), leaf, graph) == two  # dy would be gathered at 32 times the width
    assert names_of(GCNConv(16, 16), leaf, graph) == {"spmm"}  # a dense weight
    assert names_of(GCNConv(16, 16, aggr="mean", **sparse), leaf, graph) == two
    assert names_of(GCNConv(16, 16, aggr="max", **sparse), leaf, graph) == two
    hooked = GCNConv(16, 16, **sparse)
    hooked.lin.register_forward_hook(lambda *_: None)
    assert names_of(hooked, leaf, graph) == two
    val = torch.rand(graph.num_edges, requires_grad=True)
    assert "spmm_linear" not in names_of(GCNConv(16, 16, **sparse), leaf, graph.weighted(val))
    cached = GCNConv(16, 16, cached=True, **sparse)
    with torch.no_grad():
        assert names_of(cached, x, graph) == one
        assert names_of(cached, x, graph) == two  # A x is made, and kept
        assert names_of(cached, x, graph) == {"sparse_linear"}


def test_nothing_changes_on_the_cpu():
    leaf = torch.randn(90, 16, requires_grad=True)
    assert names_of(GCNConv(16, 16, sparsity=0.7), leaf, graph_of()) == {"spmm", "sparse_linear"}


@pytest.mark.parametrize(
    "dtype, widest", [(torch.float32, 616), (torch.float64, 326), (torch.bfloat16, 1123), (torch.float16, 1123)]
)
def test_policy_asks_whether_a_tile_fits(one_op, dtype, widest):
    assert _fused.fits(widest, dtype) and not _fused.fits(widest + 1, dtype)
    x = torch.empty(10, widest, dtype=dtype)
    with torch.no_grad():
        assert _fused.fused(x, 50, widest, 1000)
        assert not _fused.fused(torch.empty(10, widest + 1, dtype=dtype), 50, widest, 1000)
        assert not _fused.fused(x, 50, widest, _fused.MOST_WEIGHTS + 1)
        assert not _fused.fused(x.to_sparse_csr(), 50, widest, 1000)
    leaf = torch.empty(10, 64, dtype=dtype, requires_grad=True)
    assert _fused.fused(leaf, 50, 64, 1000)
    assert not _fused.fused(leaf, 50, widest + 1, 1000)


GRAPHS = dict(arxiv=(169_343, 2_315_598), reddit=(232_965, 114_615_891), products=(2_449_029, 123_718_280))


@pytest.mark.parametrize(
    "graph, inputs, train, need_dx, one",
    [
        ("arxiv", 256, True, True, True),
        ("arxiv", 256, False, False, True),
        ("arxiv", 256, True, False, False),  # a first layer: two ops gather once in all
        ("arxiv", 128, True, True, True),  # spmm gathers whole rows: slices cost more than the misses they save
        ("reddit", 128, True, True, False),  # one op would gather dy at twice the width of x
        ("arxiv", 128, False, False, True),
        ("reddit", 256, True, True, False),  # spmm's slices stay in the L2, and all time is gathering
        ("products", 256, True, True, True),  # not even slices would
        ("products", 256, True, False, False),
    ],
)
def test_policy_weighs_bytes(monkeypatch, graph, inputs, train, need_dx, one):
    monkeypatch.setattr(_fused, "DEVICES", {"meta"})
    nodes, edges = GRAPHS[graph]
    x = torch.empty(nodes, inputs, device="meta", requires_grad=need_dx)
    with torch.set_grad_enabled(train):
        assert _fused.fused(x, edges, 256, inputs * 256 // 10) == one
    fused, two = _fused.expected(nodes, edges, inputs, 256, inputs * 256 // 10, 4, train, need_dx)
    assert (fused < two) == one and 0.2 < fused / two < 5
