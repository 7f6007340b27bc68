"""What PyG's tools make of this library's own layers: the same as of PyG's with the same weights."""

import copy
import io
import pickle
import sys
import types

import fresh
import pytest
import torch
import torch_geometric.nn as pyg
from pyg.pairs import (
    BIPARTITE,
    HETERO,
    KINDS,
    WIDTH,
    N,
    Net,
    Traced,
    both,
    features,
    graph,
    hetero_inputs,
    kinds,
    more_of,
)
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.utils import get_embeddings, get_num_hops

import sparsegnn
from sparsegnn import CSRGraph, nn

# --- what a layer is -------------------------------------------------------------------------------------------------


@kinds
def test_is_one_of_pygs_and_stays_ours(kind):
    conv = KINDS[kind](nn, WIDTH, WIDTH)
    ours = getattr(nn, kind.partition(",")[0])
    assert isinstance(conv, pyg.MessagePassing) and isinstance(conv, ours) and type(conv) is ours
    assert conv.__class__.__name__ == ours.__name__ and issubclass(conv.__class__, ours)
    assert not isinstance(conv, pyg.GCNConv) and not isinstance(nn.SparseLinear(4, 4), pyg.MessagePassing)
    edges, wanted = graph(), repr(conv)
    edges_of = more_of(kind, edges)
    x, call = features().float(), [t.float() for t in edges_of]
    before = conv(x, edges, *call)
    file = io.BytesIO()
    torch.save(conv, file)
    file.seek(0)
    copies = [copy.deepcopy(conv), copy.copy(conv), torch.load(file, weights_only=False)]
    copies += [pickle.loads(pickle.dumps(conv, protocol)) for protocol in range(6)]
    for other in copies:
        assert type(other) is ours and isinstance(other, pyg.MessagePassing) and repr(other) == wanted
        torch.testing.assert_close(other(x, edges, *call), before)


def test_gcn2_is_one_of_pygs():
    assert isinstance(nn.GCN2Conv(4, 0.1), pyg.MessagePassing)
    kinds = {getattr(nn, name) for name in vars(nn) if name.endswith("Conv")} | {nn.APPNP}
    assert all(issubclass(kind, sparsegnn.nn.convolution.Convolution) for kind in kinds) and len(kinds) == 10


def test_pyg_is_not_imported_and_may_come_later():
    program = """
import sys, torch, sparsegnn
from sparsegnn.nn import GCNConv
conv = GCNConv(4, 3)
assert "torch_geometric" not in sys.modules and conv.__class__ is GCNConv
conv(torch.randn(5, 4), torch.randint(5, (2, 9)))
import torch_geometric.nn as pyg
from torch_geometric.utils import get_num_hops
assert isinstance(conv, pyg.MessagePassing) and get_num_hops(torch.nn.Sequential(conv, GCNConv(3, 2))) == 2
"""
    fresh.output(program)


def test_a_class_that_torch_makes_of_a_layer():
    conv, x, edges = nn.GCNConv(WIDTH, 4), features().float(), graph()
    torch.nn.utils.parametrize.register_parametrization(conv, "bias", torch.nn.Tanh())
    assert type(conv).__name__ == "ParametrizedGCNConv" and isinstance(conv, (nn.GCNConv, pyg.MessagePassing))
    wanted, text = conv(x, edges), repr(conv)
    assert "ParametrizationList" in text
    torch.testing.assert_close(copy.deepcopy(conv)(x, edges), wanted)
    torch.nn.utils.parametrize.remove_parametrizations(conv, "bias")
    torch.testing.assert_close(conv(x, edges), wanted)


def test_compiled():
    conv, x, edges = nn.SAGEConv(WIDTH, 4), features().float(), graph()
    compiled = torch.compile(conv, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, edges), conv(x, edges))


# --- tools that look for message passing -----------------------------------------------------------------------------


@kinds
def test_hops_embeddings_and_summary(kind, monkeypatch):
    (ours, theirs), edges, x = both(kind), graph(), features()
    more = more_of(kind, edges)
    assert get_num_hops(ours) == get_num_hops(theirs) == 2
    got, want = (get_embeddings(model, x, edges, *more) for model in (ours, theirs))
    assert len(got) == len(want) == 2
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    monkeypatch.setitem(sys.modules, "tabulate", types.SimpleNamespace(tabulate=lambda rows, **options: rows))
    rows = pyg.summary(ours, x, edges, *more)
    assert rows == pyg.summary(theirs, x, edges, *more) and len(rows) == 4  # convolutions are leaves


@pytest.mark.parametrize("aggr", ["sum", "mean", "max"])
@pytest.mark.parametrize("kind", BIPARTITE)
def test_to_hetero(kind, aggr):
    x, edges = hetero_inputs()
    ours, theirs = (
        pyg.to_hetero(Traced(BIPARTITE[kind], p, (WIDTH, WIDTH, 4)).double(), HETERO, aggr) for p in (nn, pyg)
    )
    for model in (ours, theirs):
        model(x, edges)  # the first call of lazy layers
    theirs.load_state_dict(ours.state_dict())
    assert len({name.split(".")[1] for name, _ in ours.named_parameters()}) == 3  # one layer for each kind of edge
    for name, wanted in theirs(x, edges).items():
        torch.testing.assert_close(ours(x, edges)[name], wanted)


def test_to_hetero_of_sparse_weights():
    x, edges = hetero_inputs()
    net = Traced(lambda p, i, o: p.SAGEConv((i, i), o, sparsity=0.5), nn, (WIDTH, WIDTH, 4)).double()
    model = pyg.to_hetero(net, HETERO)
    wanted = sparsegnn.densify(copy.deepcopy(model))(x, edges)
    for name, y in model(x, edges).items():
        torch.testing.assert_close(y, wanted[name])


def test_to_hetero_refuses_as_pygs():
    for package in (nn, pyg):
        with pytest.raises(ValueError, match="add_self_loops"):
            pyg.to_hetero(Traced(KINDS["GCNConv"], package), HETERO)


def test_hetero_conv():
    x, edges = hetero_inputs()
    ours, theirs = (
        pyg.HeteroConv({edge: p.SAGEConv((WIDTH, WIDTH), 4).double() for edge in HETERO[1]}) for p in (nn, pyg)
    )
    theirs.load_state_dict(ours.state_dict())
    for name, wanted in theirs(x, edges).items():
        torch.testing.assert_close(ours(x, edges)[name], wanted)


# --- explainers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigmoid", [True, False])
@kinds
def test_an_edge_mask_acts(kind, sigmoid):
    (ours, theirs), edges, x = both(kind), graph(), features()
    more, results = more_of(kind, edges), []
    before = ours(x, edges, *more)
    for model in (ours, theirs):
        mask = torch.nn.Parameter(torch.linspace(-2, 2, edges.size(1), dtype=torch.float64))
        set_masks(model, mask, edges, apply_sigmoid=sigmoid)
        y = model(x, edges, *more)
        wanted = [mask, *(p for _, p in sorted(model.named_parameters()) if p is not mask)]
        results.append((y, *torch.autograd.grad(y.cos().sum(), wanted)))
        clear_masks(model)
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    assert not torch.allclose(results[0][0], before)
    torch.testing.assert_close(ours(x, edges, *more), before)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_an_edge_mask_acts_on_gcn2():
    edges, x, ys = graph(), features(), []
    ours, theirs = (package.GCN2Conv(WIDTH, 0.3, theta=0.5, layer=1).double() for package in (nn, pyg))
    theirs.load_state_dict(ours.state_dict())
    for conv in (ours, theirs):
        set_masks(conv, torch.linspace(-2, 2, edges.size(1), dtype=torch.float64), edges)
        ys.append(conv(x, x.flip(0), edges))
    torch.testing.assert_close(*ys)


@kinds
def test_an_edge_mask_follows_the_edges_of_a_graph(kind):
    """A CSRGraph has its edges in another order than the list that it was made from."""
    (ours, _), edges, x = both(kind), graph(), features()
    more = more_of(kind, edges)
    set_masks(ours, torch.linspace(-2, 2, edges.size(1), dtype=torch.float64), edges)
    made = CSRGraph.from_edge_index(edges, N)
    torch.testing.assert_close(ours(x, made, *more), ours(x, edges, *more))
    for conv in (ours.conv1, ours.conv2):
        conv._edge_mask = torch.ones(3)
    with pytest.raises(ValueError, match=f"an explainer's mask must have one entry for each of {edges.size(1)} edges"):
        ours(x, edges, *more)
    ours.conv1._edge_mask = None
    with pytest.raises(ValueError, match="an explainer must set a mask"):
        ours(x, edges, *more)


def test_a_kept_aggregate_is_not_the_masked_one():
    conv, edges, x = nn.GCNConv(WIDTH, 4, cached=True).double(), graph(), features()
    plain = [conv(x, edges) for _ in range(3)][-1]
    set_masks(conv, torch.zeros(edges.size(1), dtype=torch.float64), edges)
    masked = [conv(x, edges) for _ in range(3)]
    assert not torch.allclose(masked[2], plain) and torch.equal(masked[0], masked[2])
    clear_masks(conv)
    torch.testing.assert_close(conv(x, edges), plain)


# --- accelerate, which is for PyG's ----------------------------------------------------------------------------------


def test_accelerate_leaves_our_layers_alone():
    net = Net(KINDS["GCNConv"], nn)
    with pytest.raises(ValueError, match="model must have a convolution of PyG"):
        sparsegnn.accelerate(net)
    mixed = torch.nn.ModuleList([nn.GCNConv(6, 4), pyg.GCNConv(6, 4)])
    sparsegnn.accelerate(mixed)
    assert "forward" not in vars(mixed[0]) and "forward" in vars(mixed[1])
    rows = {row["layer"]: row["kernel"] for row in sparsegnn.summary(mixed, show=False)}
    assert "PyG" not in rows["0"] and rows["0"].startswith("cpu/")
    sparse = sparsegnn.sparsify(mixed, 0.5)
    assert isinstance(sparse[0].lin, nn.SparseLinear) and isinstance(sparse[1].lin, nn.SparseLinear)
    dense = sparsegnn.densify(sparse)
    assert type(dense[0].lin) is torch.nn.Linear or type(dense[0].lin).__module__ == "sparsegnn.nn.inner"
    assert type(dense[1].lin) is pyg.Linear
