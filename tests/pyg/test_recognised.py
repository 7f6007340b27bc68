"""What PyG's tools make of this library's own layers: the same as of PyG's with the same weights, or an error."""

import copy
import io
import pickle
import subprocess
import sys
import types

import pytest
import torch
import torch_geometric.nn as pyg
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer, GraphMaskExplainer
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.utils import get_embeddings, get_num_hops

import sparsegnn
from sparsegnn import CSRGraph, nn

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
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


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


@pytest.mark.parametrize("kind", ["GCNConv", "SAGEConv", "GATConv"])
def test_gnn_explainer(kind):
    edges, x, found = graph(), features(), []
    for model in both(kind):
        torch.manual_seed(0)
        explainer = Explainer(
            model, GNNExplainer(epochs=20), explanation_type="model", node_mask_type="attributes",
            edge_mask_type="object", model_config=dict(mode="multiclass_classification", task_level="node",
                                                       return_type="raw"))  # fmt: skip
        explanation = explainer(x, edges, index=7)
        found.append((explanation.edge_mask, explanation.node_mask, explainer.get_masked_prediction(
            x, edges, edge_mask=explanation.edge_mask)))  # fmt: skip
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    assert 0 < found[0][0].count_nonzero() < edges.size(1)


CONFIG = dict(mode="multiclass_classification", task_level="node", return_type="raw")


def explain(algorithm, **masks):
    model, edges, x = Net(KINDS["GATConv"], nn), graph(), features().float()
    Explainer(model, algorithm, explanation_type="model", model_config=CONFIG, **masks)(x, edges, index=3)


REFUSED = {
    "attention": lambda: explain(AttentionExplainer(), edge_mask_type="object"),
    "graph mask": lambda: explain(GraphMaskExplainer(2, epochs=1, log=False), node_mask_type="attributes",
                                  edge_mask_type="object"),
    "bases": lambda: pyg.to_hetero_with_bases(Traced(BIPARTITE["SAGEConv"], nn), HETERO, 2, {"x": WIDTH}),
    "message": lambda: nn.GCNConv(4, 4).message(torch.ones(3, 4)),
    "propagate": lambda: nn.GCNConv(4, 4).propagate(graph(), x=features()),
    "replaced": lambda: setattr(nn.SAGEConv(4, 4), "explain_message", lambda *args: None),
    "aggregate replaced": lambda: setattr(nn.GINConv(torch.nn.Identity()), "aggregate", lambda *args: None),
}  # fmt: skip
HOOKS = [name for name in dir(pyg.MessagePassing) if name.startswith("register_") and name not in dir(torch.nn.Module)]


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_about_messages_is_refused(what):
    with pytest.raises(NotImplementedError, match=r"is about single messages.*torch_geometric.nn.*accelerate"):
        REFUSED[what]()


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_messages_are_refused(name):
    assert len(HOOKS) == 10
    with pytest.raises(NotImplementedError, match=f"GATConv: {name} is about single messages"):
        getattr(nn.GATConv(4, 4), name)(lambda *args: None)


def test_every_method_of_pygs_base_is_known():
    """A new one of a later PyG must be looked at: it may be about messages too."""
    theirs = {n for n in vars(pyg.MessagePassing) if not n.startswith("_") and callable(vars(pyg.MessagePassing)[n])}
    ours = {*sparsegnn.nn.recognised.ABOUT_MESSAGES, *sparsegnn.nn.recognised.HOOKS}
    assert theirs - ours == {"forward", "reset_parameters", "jittable"}


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
