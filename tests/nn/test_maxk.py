"""MaxK in front of graph layers: compressed rows give what dense rows with zeros give, values and gradients."""

import pytest
import torch
from nn.twins import assert_close
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsegnn import CSRGraph
from sparsegnn.nn import CompressedRows, GATConv, GCNConv, MaxK, SAGEConv


@pytest.fixture
def graph():
    g = torch.Generator().manual_seed(0)
    return CSRGraph.from_edge_index(torch.randint(40, (2, 200), generator=g), 40)


def features(width=24):
    return torch.randn(40, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("k, group", [(1, None), (6, None), (24, None), (6, 4), (8, 3)])
def test_dense_output_and_gradient(k, group):
    x = features().requires_grad_()
    y = MaxK(k, group)(x)
    keep = x.detach().view(40, -1, group or 24).topk(k * (group or 24) // 24).indices
    mask = torch.zeros(40, 24 // (group or 24), group or 24, dtype=torch.float64).scatter(2, keep, 1).view(40, 24)
    assert torch.equal(y, x * mask)
    flow = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, flow)[0], flow * mask)


def test_leading_dimensions():
    x = torch.randn(2, 3, 5, 24)
    assert torch.equal(MaxK(6)(x), MaxK(6)(x.view(-1, 24)).view(x.shape))


def run(layer, maxk, x, graph):
    x = x.clone().requires_grad_()
    y = layer(maxk(x), graph)
    flow = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], flow)]


@pytest.mark.parametrize("sizes", [(24, 7), (24, 60)], ids=["narrow", "wide"])
@pytest.mark.parametrize("sparsity", [0.0, 0.7])
@pytest.mark.parametrize("aggr", ["add", "mean", "max"])
@pytest.mark.parametrize("layer", [GCNConv, SAGEConv])
def test_compressed_rows_as_dense_ones(graph, layer, aggr, sparsity, sizes):
    conv = layer(*sizes, aggr=aggr, sparsity=sparsity).double()
    got = run(conv, MaxK(5, compressed=True), features(), graph)
    assert_close(got, run(conv, MaxK(5), features(), graph))


@pytest.mark.parametrize("cached", [False, True])
def test_weighted_graphs_and_their_gradient(graph, cached):
    weight = torch.rand(200, dtype=torch.float64)
    conv, x = GCNConv(24, 9, cached=cached).double(), features()
    grads = []
    for maxk in (MaxK(5), MaxK(5, compressed=True)):
        conv._cached_graph = None
        w = weight.clone().requires_grad_()
        conv(maxk(x), graph, w).square().sum().backward()
        grads.append(w.grad)
    assert_close(grads[:1], grads[1:])


def test_rows_describe_themselves():
    rows = MaxK(3, compressed=True)(features().requires_grad_())
    assert isinstance(rows, CompressedRows) and rows.shape == (40, 24) and rows.size(1) == 24 and rows.requires_grad
    assert "CompressedRows([40, 24], k=3" in repr(rows)
    doubled = rows.map(lambda v: 2 * v)
    assert torch.equal(doubled.to_dense(), 2 * rows.to_dense())
    leaves, spec = torch.utils._pytree.tree_flatten(rows)
    assert len(leaves) == 2 and torch.utils._pytree.tree_unflatten(leaves, spec).width == 24


def test_bad_arguments(graph):
    with pytest.raises(ValueError, match="MaxK: k must be in"):
        MaxK(0)
    with pytest.raises(TypeError, match="MaxK: k must be an int, got float"):
        MaxK(2.5)
    with pytest.raises(ValueError, match="maxk: k must be in"):
        MaxK(30)(features())
    with pytest.raises(ValueError, match=r"MaxK: x must be a Tensor of shape \[N, F\]"):
        MaxK(3, compressed=True)(torch.randn(2, 3, 4))
    with pytest.raises(TypeError, match="GATConv: x must be a floating-point Tensor"):
        GATConv(24, 5)(MaxK(3, compressed=True)(features().float()), graph)
    with pytest.raises(ValueError, match=r"GCNConv: x must have shape \[N, 20\]"):
        GCNConv(20, 5)(MaxK(3, compressed=True)(features().float()), graph)


@pytest.mark.parametrize("layer", [GCNConv, SAGEConv])
@pytest.mark.parametrize("group", [None, 8])
def test_training_on_compressed_rows_learns(graph, layer, group):
    torch.manual_seed(0)
    first, act, second = layer(24, 64), MaxK(16, group, compressed=True), layer(64, 4)
    x, target = features().float(), torch.randint(4, (40,))
    optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()], lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        rows = act(first(x, graph)).map(lambda v: torch.nn.functional.dropout(v, 0.1))
        loss = torch.nn.functional.cross_entropy(second(rows, graph), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


class Calls(TorchDispatchMode):
    """The names of our ops, in the order they ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "sparsegnn":
            self.names.append(function._opname)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("group", [None, 8])
@pytest.mark.parametrize("layer, root", [(GCNConv, {}), (SAGEConv, dict(root_weight=False)), (SAGEConv, {})])
def test_a_training_step_runs_on_the_kernels(graph, layer, root, group):
    """Aggregation reads compressed rows both ways: no dense features forward, no spmm of dense rows at all."""
    x, conv = features(32).float().requires_grad_(), layer(32, 8, **root)  # no narrower than what MaxK keeps
    graph.transpose(), graph.gcn_norm()
    with Calls() as forward:
        y = conv(MaxK(8, group, compressed=True)(x), graph)
    with Calls() as backward:
        y.sum().backward()
    wanted = ["maxk", "maxk_spmm"] + ["maxk_expand"] * (layer is SAGEConv and not root)  # W_r x is a dense product
    assert [n for n in forward.names if "maxk" in n or n == "spmm"] == wanted
    assert [n for n in backward.names if n == "maxk_spmm_backward"] and "spmm" not in backward.names
    assert x.grad is not None and (x.grad != 0).any()


@pytest.mark.parametrize("layer", [GCNConv, SAGEConv])
def test_a_narrower_layer_multiplies_first(graph, layer):
    """A (x W) of 4 columns is less than A x of 8, with the same result and gradients."""
    x, conv = features(32), layer(32, 4).double()
    results = []
    for act in (MaxK(8, compressed=True), MaxK(8)):
        leaf = x.clone().requires_grad_()
        with Calls() as forward:
            y = conv(act(leaf), graph)
        assert "maxk_spmm" not in forward.names and "spmm" in forward.names
        results.append((y.detach(), torch.autograd.grad(y.square().sum(), leaf)[0]))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_compiles(graph):
    conv, act = SAGEConv(24, 8).double(), MaxK(6, compressed=True)
    x = features()
    graph.transpose()
    compiled = torch.compile(lambda x: conv(act(x), graph), fullgraph=True)
    assert torch.equal(compiled(x), conv(act(x), graph))


@pytest.mark.parametrize("drop", [nn.Dropout(0.5), lambda x: nn.functional.dropout(x, 0.5)], ids=["module", "function"])
def test_dropout_of_compressed_rows_is_compressed(drop):
    x = features().requires_grad_()
    rows = MaxK(6, compressed=True)(x)
    got = drop(rows)
    assert isinstance(got, CompressedRows) and got.index is rows.index and 0 < got.values.eq(0).sum() < 40 * 6
    torch.testing.assert_close(got.values, torch.where(got.values == 0, 0, 2 * rows.values))
    torch.autograd.grad(got.to_dense().sum(), x)
    with pytest.raises(TypeError, match="relu"):
        nn.functional.relu(rows)
