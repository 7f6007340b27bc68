"""Arguments of PyG's layers, layer by layer: ours do the same with each of them, or refuse it with the way out."""

import copy
import itertools

import numpy as np
import pytest
import torch
from nn.twins import Initial, assert_close, random_graph

import sparsegnn
from sparsegnn import CSRGraph, nn
from sparsegnn.nn import SparseLinear

pyg = pytest.importorskip("torch_geometric.nn")

N, WIDTH = 40, 6


def mlp():
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, 5), torch.nn.ReLU(), torch.nn.Linear(5, 4))


#: name: positional arguments (functions make modules), options
LAYERS = {
    "GCNConv": ((WIDTH, 4), {}),
    "GCNConv, aggregation first": ((WIDTH, 9), dict(improved=True)),
    "GCNConv, no norm": ((WIDTH, 9), dict(normalize=False, bias=False)),
    "SAGEConv": ((WIDTH, 4), {}),
    "SAGEConv, all options": ((WIDTH, 9), dict(normalize=True, project=True)),
    "GraphConv": ((WIDTH, 4), {}),
    "GraphConv, aggregation first": ((WIDTH, 9), dict(bias=False)),
    "GINConv": ((mlp,), dict(eps=0.3)),
    "GINConv, trained": ((mlp,), dict(train_eps=True)),
    "SGConv": ((WIDTH, 4), dict(K=2)),
    "TAGConv": ((WIDTH, 4), dict(K=2)),
    "TAGConv, aggregation first": ((WIDTH, 9), dict(K=2, normalize=False)),
    "APPNP": ((3, 0.2), {}),
    "GCN2Conv": ((WIDTH, 0.2), dict(theta=0.5, layer=2)),
    "GCN2Conv, two weights": ((WIDTH, 0.2), dict(shared_weights=False)),
    "GATConv": ((WIDTH, 4), dict(heads=2)),
    "GATv2Conv": ((WIDTH, 4), dict(heads=2, concat=False)),
}
ATTENTION = ("GATConv", "GATv2Conv")
BATCHED = [name for name in LAYERS if name not in ATTENTION]
WEIGHTED = [name for name in BATCHED if not name.startswith(("SAGE", "GIN"))]


def made(package, name, **more):
    args, options = LAYERS[name]
    args = [a() if callable(a) else a for a in args]
    return getattr(package, name.partition(",")[0])(*args, **{**options, **more}).double()


def both(name, ours=None, theirs=None):
    """Ours and PyG's with the same parameters, with such other options."""
    torch.manual_seed(3)
    a, b = made(nn, name, **(ours or {})), made(pyg, name, **((ours if theirs is None else theirs) or {}))
    for p in a.parameters():
        torch.nn.init.normal_(p, std=0.5)
    b.load_state_dict(a.state_dict())
    assert list(a.state_dict()) == list(b.state_dict())
    return [Initial(conv) if name.startswith("GCN2") else conv for conv in (a, b)]


def results(conv, x, edges, *more):
    """The output, and gradients of all leaves and parameters."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, *more) if t.is_floating_point()]
    y = conv(leaves[0], edges, *leaves[1:])
    flow = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).cos().view(y.shape)
    wanted = [*leaves, *(p for _, p in sorted(conv.named_parameters()))]
    return [y.detach(), *torch.autograd.grad(y, wanted, flow, allow_unused=True, materialize_grads=True)]


def features(*lead, n=N, width=WIDTH):
    return torch.randn(*lead, n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(n + width))


# --- leading dimensions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggr", ["add", "mean", "max"])
@pytest.mark.parametrize("name", [name for name in BATCHED if not name.startswith("GCN2")])  # PyG's takes no batch
def test_leading_dimensions(name, aggr):
    (edges, weight), convs = random_graph(), both(name, dict(aggr=aggr))
    for lead in ((3,), (2, 3), (1,)):
        x = features(*lead)
        got, want = (results(conv, x, edges) for conv in convs)
        assert got[0].is_contiguous()
        assert_close(got, want)
        if name in WEIGHTED:
            assert_close(*(results(conv, x, edges, weight) for conv in convs))


@pytest.mark.parametrize("name", BATCHED)
def test_leading_dimensions_are_examples(name):
    """Of dense and of sparse weights, with a fused activation: the same as one call for each example."""
    (edges, weight), sparse = random_graph(), {} if name.startswith(("APPNP", "GIN")) else dict(sparsity=0.5)
    more = dict(act="relu") if name.startswith("GCNConv") else {}
    for options in (more, more | sparse):
        conv = made(nn, name, **options)
        conv = Flipped(conv) if name.startswith("GCN2") else conv
        x, w = features(3), (weight,) if name in WEIGHTED else ()
        wanted = torch.stack([conv(each, edges, *w) for each in x])
        torch.testing.assert_close(conv(x, edges, *w), wanted)
        torch.testing.assert_close(conv(x, CSRGraph.from_edge_index(edges, N), *w), wanted)


class Flipped(torch.nn.Module):
    """A GCN2Conv with an x_0 that is another for each node and example."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, *args):
        return self.conv(x, x.flip(-2) * 2, *args)


@pytest.mark.parametrize("name", ["SAGEConv", "GraphConv", "GINConv"])
def test_leading_dimensions_of_pairs(name):
    m, (edges, _) = 33, random_graph(33)
    width = WIDTH if name == "GINConv" else 3
    args, convs = ((WIDTH, width), 4), []
    for package in (nn, pyg):
        convs.append(made(package, name) if name == "GINConv" else getattr(package, name)(*args).double())
    convs[1].load_state_dict(convs[0].state_dict())
    for leads in (((2,), (2,)), ((2, 3), (2, 3)), ((2,), ()), ((), (2,)), ((1, 3), (2, 1))):
        source, target = features(*leads[0]), features(*leads[1], n=m, width=width)
        assert_close(*([conv((source, target), edges)] for conv in convs))
        assert_close(*([conv((source, None), edges, size=(N, m))] for conv in convs))


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_refuses_leading_dimensions_as_pygs(name):
    with pytest.raises(AssertionError):
        made(pyg, name)(features(2), random_graph()[0])
    with pytest.raises(ValueError, match=rf"{name}: x must have shape \[N, 6\], got \[2, 40, 6\]"):
        made(nn, name)(features(2), random_graph()[0])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda e: nn.SAGEConv((6, 6), 4)((torch.randn(2, 40, 6), torch.randn(3, 40, 6)), e), "same leading sizes"),
        (lambda e: nn.GCNConv(6, 4)(torch.randn(0, 40, 6), e), "at least one example"),
        (lambda e: nn.GCNConv(6, 4)(torch.randn(2, 40, 5), e), r"x must have shape \[N, 6\], got \[2, 40, 5\]"),
        (lambda e: nn.GCNConv(6, 4)(torch.randn(6), e), r"x must have shape \[N, 6\], got \[6\]"),
        (lambda e: nn.TAGConv(6, 4)(torch.randn(2, 39, 6), CSRGraph.from_edge_index(e, 40)), r"got \[2, 39, 6\]"),
        (lambda e: nn.GCN2Conv(6, 0.1)(torch.randn(2, 40, 6), torch.randn(40, 6), e), r"x_0 must have shape \[2, 40"),
        (lambda e: nn.GCNConv(6, 4)(torch.randn(2, 40, 6).to_sparse(), e), r"x must have shape"),
    ],
)
def test_bad_leading_dimensions(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_graph()[0])


# --- reductions ------------------------------------------------------------------------------------------------------

ONE = {
    "list": lambda: ["mean"], "tuple": lambda: ("max",), "class": lambda: "MeanAggregation", "sum": lambda: "Sum",
    "mean module": lambda: pyg.MeanAggregation(), "sum module": lambda: pyg.SumAggregation(),
    "max module": lambda: pyg.MaxAggregation(), "min module": lambda: pyg.MinAggregation(),
    "list of a module": lambda: [pyg.MaxAggregation()], "multi of one": lambda: pyg.MultiAggregation(["min"]),
}  # fmt: skip
SEVERAL = {
    "two": lambda: ["mean", "max"], "three": lambda: ("add", "min", "MeanAggregation"),
    "modules": lambda: [pyg.MaxAggregation(), "sum"], "multi": lambda: pyg.MultiAggregation(["mean", "max"]),
    "twice": lambda: ["sum", "sum"],
}  # fmt: skip
OTHERS = {
    "mul": lambda: "mul", "median": lambda: "median", "softmax": lambda: pyg.SoftmaxAggregation(), "none": lambda: None,
    "mul module": lambda: pyg.MulAggregation(), "in a list": lambda: ["mean", "std"], "empty": lambda: [],
    "sum of two": lambda: pyg.MultiAggregation(["mean", "max"], mode="sum"), "number": lambda: 3,
}  # fmt: skip


@pytest.mark.parametrize("aggr", ONE)
@pytest.mark.parametrize("name", BATCHED)
def test_one_reduction_in_other_words(name, aggr):
    (edges, _), x = random_graph(), features()
    convs = both(name, dict(aggr=ONE[aggr]()), dict(aggr=ONE[aggr]()))
    if name.startswith("GCN2") and convs[0].conv.aggr in ("max", "min"):  # of which PyG's has no gradient
        assert_close(*([conv(x, edges)] for conv in convs))
    else:
        assert_close(*(results(conv, x, edges) for conv in convs))


@pytest.mark.parametrize("aggr", SEVERAL)
def test_several_reductions(aggr):
    edges, weight = random_graph()
    for lead in ((), (2,)):
        x = features(*lead)
        for name in ("SAGEConv", "SAGEConv, all options"):
            convs = both(name, dict(aggr=SEVERAL[aggr]()), dict(aggr=SEVERAL[aggr]()))
            assert_close(*(results(conv, x, edges) for conv in convs))
        for options in (dict(bias=False), dict(bias=False, normalize=False)):
            convs = both("GCNConv", options | dict(aggr=SEVERAL[aggr]()), options | dict(aggr=SEVERAL[aggr]()))
            assert_close(*(results(conv, x, edges, weight) for conv in convs))
        wide = [p.GINConv(torch.nn.Identity(), aggr=SEVERAL[aggr]()).double() for p in (nn, pyg)]
        assert_close(*([conv((x, None), edges, size=(N, N))] for conv in wide))
    lazy = nn.SAGEConv(-1, 4, aggr=SEVERAL[aggr]()).double()
    assert lazy(features(), edges).shape == (N, 4) and lazy.lin_l.in_features == WIDTH * len(lazy.aggr)


@pytest.mark.parametrize("name", [n for n in LAYERS if not n.startswith(("SAGE", "GCNConv, no", *ATTENTION))])
def test_several_reductions_are_refused_where_pyg_fails(name):
    theirs = made(pyg, name, aggr=["mean", "max"])
    theirs = Initial(theirs) if name.startswith("GCN2") else theirs
    with pytest.raises(RuntimeError):
        theirs(features(), random_graph()[0])
    with pytest.raises(ValueError, match="aggr must be one reduction where .*, got .'mean', 'max'."):
        made(nn, name, aggr=["mean", "max"])(features(), random_graph()[0])


@pytest.mark.parametrize("aggr", OTHERS)
@pytest.mark.parametrize("name", [name for name in LAYERS if "," not in name])
def test_other_reductions_are_refused(name, aggr):
    where = "" if name in ATTENTION else "sparsegnn.accelerate"
    with pytest.raises(ValueError, match=f"{name}: aggr must be .*torch_geometric.nn.{name}.*{where}"):
        made(nn, name, aggr=OTHERS[aggr]())


def test_a_module_that_is_watched_is_refused():
    module = pyg.MeanAggregation()
    module.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="SAGEConv: aggr must be"):
        nn.SAGEConv(6, 4, aggr=module)


@pytest.mark.parametrize("name", ATTENTION)
def test_reductions_of_attention(name):
    (edges, _), x = random_graph(), features()
    for aggr in ("sum", ["add"], pyg.SumAggregation()):
        convs = both(name, dict(aggr=aggr), dict(aggr=aggr))
        assert_close(*(results(conv, x, edges) for conv in convs))
    for aggr in ("mean", ["sum", "max"]):
        with pytest.raises(ValueError, match=f"{name}: aggr must be 'add' or 'sum'"):
            made(nn, name, aggr=aggr)


# --- flow, node_dim, and what else PyG's base takes ------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_flow(name):
    edges, weight = random_graph()
    convs = both(name, dict(flow="target_to_source"))
    x = features()
    assert_close(*(results(conv, x, edges) for conv in convs))
    if name in WEIGHTED:
        assert_close(*(results(conv, x, edges, weight) for conv in convs))
    turned = both(name)[0]
    turned.load_state_dict(convs[0].state_dict())
    torch.testing.assert_close(convs[0](x, edges), turned(x, edges.flip(0)))
    with pytest.raises(ValueError, match="edge_index must be a Tensor .*with flow='target_to_source'.*transpose"):
        convs[0](x, CSRGraph.from_edge_index(edges, N))


@pytest.mark.parametrize("name", ["SAGEConv", "GraphConv", "GINConv", *ATTENTION])
def test_flow_of_pairs(name):
    """Of as many targets as sources as PyG, which counts others wrongly."""
    (edges, _), x, target = random_graph(), features(), features().flip(0)
    ours, theirs = both(name, dict(flow="target_to_source"))
    torch.testing.assert_close(ours((x, target), edges), theirs((x, target), edges))
    torch.testing.assert_close(ours((x, x), edges), theirs(x, edges))
    message = rf"{name}: x must have as many targets as sources with flow=.* give edge_index.flip\(0\)"
    with pytest.raises(ValueError, match=message):
        ours((x, target[:36]), edges)
    if name != "GATv2Conv":
        with pytest.raises(ValueError, match=message):
            ours((x, None), edges, size=(N, 36))
    with pytest.raises(ValueError, match=f"{name}: flow must be"):
        made(nn, name, flow="up")


@pytest.mark.parametrize("name", LAYERS)
def test_options_of_the_base(name):
    (edges, _), x = random_graph(), features()
    plain, first = both(name)
    dim = {} if name in ATTENTION else dict(node_dim=-2)
    ours, theirs = both(name, dict(decomposed_layers=2, **dim), dim)
    for conv in (ours, theirs):
        conv.load_state_dict(plain.state_dict())
        torch.testing.assert_close(conv(x, edges), first(x, edges))
    for wrong in (1, 0 if dim else -2, None, "0"):
        with pytest.raises(ValueError, match="node_dim must be -?[02], got .*movedim"):
            made(nn, name, node_dim=wrong)
    for wrong in (0, True, 1.5):
        with pytest.raises(ValueError, match="decomposed_layers must be an int of at least 1"):
            made(nn, name, decomposed_layers=wrong)
    assert made(nn, name, aggr_kwargs={}) is not None
    with pytest.raises(ValueError, match="aggr_kwargs must be empty.*accelerate"):
        made(nn, name, aggr_kwargs=dict(learn=True))
    with pytest.raises(TypeError, match=f"{name.partition(',')[0]}: got an unexpected argument 'agr'"):
        made(nn, name, agr="add")


# --- weights of edges [E, 1] -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_in_a_column(name):
    (edges, weight), x = random_graph(), features()
    convs = both(name)
    got, want = (results(conv, x, edges, weight[:, None]) for conv in convs)
    assert_close(got, want)
    flat = results(convs[0], x, edges, weight)
    assert_close([t.flatten() for t in got], [t.flatten() for t in flat])
    graph = CSRGraph.from_edge_index(edges, N, weight[:, None])
    torch.testing.assert_close(convs[0](x, graph), flat[0])
    for wrong in (weight[None], weight[:, None].expand(-1, 2), weight[:, None, None]):
        with pytest.raises(ValueError, match=r"edge_weight must have shape \["):
            convs[0](x, edges, wrong)


# --- numpy's integers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("name", LAYERS)
def test_numpys_integers(name, integer):
    args, options = LAYERS[name]
    args = [integer(a) if type(a) is int else a() if callable(a) else a for a in args]
    options = {k: integer(v) if type(v) is int else v for k, v in options.items()}
    kind = name.partition(",")[0]
    conv, plain = getattr(nn, kind)(*args, **options), made(nn, name).float()
    conv.load_state_dict(plain.state_dict())
    call, like = (Initial(c) if kind == "GCN2Conv" else c for c in (conv, plain))
    x, (edges, _) = features().float(), random_graph()
    assert torch.equal(call(x, edges), like(x, edges))
    assert not any(isinstance(v, np.integer) for v in vars(conv).values())
    assert repr(conv) == repr(plain) or kind == "GINConv"
    copy.deepcopy(conv)


def test_numpys_integers_elsewhere():
    edges = torch.tensor([[0, 1], [1, 2]])
    assert CSRGraph.from_edge_index(edges, np.int64(4)).shape == (4, 4)
    assert CSRGraph.from_edge_index(edges, (np.int32(3), np.int64(4))).shape == (3, 4)
    graph = CSRGraph.from_csr(torch.tensor([0, 1]), torch.tensor([2]), None, np.int64(5))
    assert graph.shape == (1, 5) and type(graph.num_cols) is int
    layer = SparseLinear(np.int64(6), np.int32(4), sparsity=0.5)
    assert type(layer.in_features) is int and layer(torch.randn(2, 6)).shape == (2, 4)
    assert nn.MaxK(np.int64(2))(torch.randn(3, 5)).shape == (3, 5)
    assert nn.SAGEConv((np.int64(3), np.int8(5)), np.int64(2)).lin_r.in_features == 5
    assert nn.GATConv((np.int64(3), np.int8(5)), 2, heads=np.int64(2), edge_dim=np.int64(1)).lin_edge.in_features == 1
    model = sparsegnn.sparsify(torch.nn.Linear(8, 8), 0.5, rows=np.int64(16))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsegnn.SET(model, optimizer, update_every=np.int64(2), stop_at=np.int64(4))
    for wrong in (True, np.float64(3), 3.0, "3", np.bool_(True)):
        with pytest.raises(TypeError, match="in_channels must be an int, got"):
            nn.GCNConv(wrong, 4)
        with pytest.raises(TypeError, match="in_features must be an int, got"):
            SparseLinear(wrong, 4)


# --- targets without features ----------------------------------------------------------------------------------------


def stub(crow, col, val, shape):
    """What CSRGraph reads of a torch_sparse.SparseTensor."""

    class SparseTensor:
        def sparse_sizes(self):
            return shape

        def sparse_size(self, dim):
            return shape[dim]

        def csr(self):
            return crow, col, val

    return SparseTensor()


@pytest.mark.parametrize("name", ["SAGEConv", "GraphConv", "GINConv", "GATConv"])
def test_targets_without_features(name):
    """An adjacency matrix says how many they are."""
    m, g = 23, torch.Generator().manual_seed(0)
    flat = torch.randperm(N * (m - 2), generator=g)[:90]
    edges = torch.stack([flat % N, flat // N])
    graph, x = CSRGraph.from_edge_index(edges, (m, N)), features()
    csr = torch.sparse_csr_tensor(graph.crow.long(), graph.col.long(), torch.ones(90).double(), (m, N))
    options = dict(add_self_loops=False) if name == "GATConv" else dict(root_weight=False) if "SAGE" in name else {}
    ours, theirs = both(name, options)
    wanted = theirs((x, None), csr)
    assert wanted.size(0) == m
    forms = (csr, csr.to_sparse_coo(), graph, stub(graph.crow.long(), graph.col.long(), None, (m, N)))
    for adjacency in forms:
        torch.testing.assert_close(ours((x, None), adjacency), wanted)
    torch.testing.assert_close(ours((x, None), edges, size=(N, m)), wanted)
    for adjacency in forms:
        with pytest.raises(ValueError, match=f"{name}: x must have one row per"):
            ours((x[1:], None), adjacency)


def test_every_layer_is_in_the_table():
    kinds = {name.partition(",")[0] for name in LAYERS}
    assert kinds == {k for k in vars(nn) if isinstance(vars(nn)[k], type) and (k.endswith("Conv") or k == "APPNP")}
    assert len(list(itertools.chain(BATCHED, ATTENTION))) == len(LAYERS)
