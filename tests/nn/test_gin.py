"""GINConv against PyG's: values and every gradient, over the constructor's options and forms of x."""

import copy
import itertools

import pytest
import torch
from nn.twins import assert_close
from ops.harness import pairwise

from sparsegnn import CSRGraph
from sparsegnn.nn import GINConv, MaxK, SparseLinear

pyg = pytest.importorskip("torch_geometric.nn")
EdgeIndex = pytest.importorskip("torch_geometric").EdgeIndex

AXES = dict(
    aggr=("add", "sum", "mean", "max", "min"),
    train_eps=(False, True),
    flow=("source_to_target", "target_to_source"),
    eps=(0.0, 0.3, -1),
    form=("nodes", "the same twice", "square", "bipartite", "no targets"),
    hidden=(8, 3),  # of the MLP: wider than x, and narrower, which is multiplied first
)


def mlp(width=6, hidden=8):
    return torch.nn.Sequential(torch.nn.Linear(width, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 5))


def inputs(form, flow="source_to_target", seed=0):
    """Leaves, how they make x, edges and size; with duplicates, self-loops and isolated nodes."""
    g = torch.Generator().manual_seed(seed)
    rows = 20 if form in ("nodes", "the same twice", "square") else 25
    leaves = [torch.randn(n, 6, generator=g, dtype=torch.float64) for n in (20, rows)]
    leaves = leaves[: 2 if form in ("square", "bipartite") else 1]
    edges = torch.stack([torch.randint(18, (70,), generator=g), torch.randint(rows - 2, (70,), generator=g)])
    make = {
        "nodes": lambda x: x,
        "the same twice": lambda x: (x, x),
        "square": lambda *pair: pair,
        "bipartite": lambda *pair: pair,
        "no targets": lambda x: (x, None),
    }[form]
    more = dict(size=(20, rows) if flow == "source_to_target" else (rows, 20)) if form == "no targets" else {}
    return leaves, make, edges if flow == "source_to_target" else edges.flip(0), more


def run(conv, leaves, make, edge_index, more):
    leaves = [t.clone().requires_grad_() for t in leaves]
    y = conv(make(*leaves), edge_index, **more)
    flow = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    wanted = [*leaves, *(p for _, p in sorted(conv.named_parameters()))]
    return [y.detach(), *torch.autograd.grad(y, wanted, flow, allow_unused=True, materialize_grads=True)]


def twins(hidden=8, **options):
    """From the same seed: PyG draws the weights of ``nn`` anew."""
    made = []
    for module in (GINConv, pyg.GINConv):
        torch.manual_seed(3)
        made.append(module(mlp(hidden=hidden), **options).double())
    ours, theirs = made
    assert {k: v.tolist() for k, v in ours.state_dict().items()} == {
        k: v.tolist() for k, v in theirs.state_dict().items()
    }
    return ours, theirs


def test_agrees_with_pyg_over_all_options():
    fixed = dict(train_eps=False, flow="source_to_target", eps=0.3)  # the sum in one pass, and what is not
    axes = [("add", "mean"), AXES["form"], AXES["hidden"]]
    more = [fixed | dict(aggr=a, form=form, hidden=hidden) for a, form, hidden in itertools.product(*axes)]
    for seed, given in enumerate([*pairwise(**AXES), *more]):
        form, flow = given.pop("form"), given["flow"]
        if flow == "target_to_source" and form in ("bipartite", "no targets"):
            continue  # of which PyG takes the numbers of nodes the other way round
        ours, theirs = twins(**given)
        case = inputs(form, flow, seed)
        assert_close(run(ours, *case), run(theirs, *case))


@pytest.mark.parametrize("train_eps", [False, True])
def test_compressed_rows_low_precision_and_copies(train_eps):
    ours, _ = twins(eps=0.5, train_eps=train_eps)
    (x,), _, edges, _ = inputs("nodes")
    rows = MaxK(3, compressed=True)
    got = run(copy.deepcopy(ours), [x], rows, edges, {})
    assert_close(got, run(ours, [x], MaxK(3), edges, {}))
    wanted = run(ours, [x], torch.nn.Identity(), edges, {})
    low, half = copy.deepcopy(ours).float(), copy.deepcopy(ours).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close([t.double() for t in run(low, [x.float()], torch.nn.Identity(), edges, {})], wanted, 3e-2)
    assert_close([t.double() for t in run(half, [x.bfloat16()], torch.nn.Identity(), edges, {})], wanted, 3e-2)


@pytest.mark.parametrize("first", [torch.nn.Linear(6, 9), SparseLinear(6, 8, sparsity=0.5)])
@pytest.mark.parametrize("aggr", ["add", "mean", "max"])
def test_sparse_features(first, aggr):
    """Are multiplied by the first layer before the sum, unless a hook wants to see that layer called."""
    conv = GINConv(torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(first.out_features, 5)), 0.3, aggr=aggr)
    conv, edges = copy.deepcopy(conv).double(), torch.randint(20, (2, 70))
    x = (torch.rand(20, 6) * (torch.rand(20, 6) < 0.3)).double()
    wanted = conv.nn(conv._sum(CSRGraph.from_edge_index(edges, 20), x, x))
    if aggr == "max":
        with pytest.raises(TypeError, match="GINConv: x must be dense"):
            conv(x.to_sparse_csr(), edges)
        return
    assert_close([conv(x.to_sparse_csr(), edges)], [wanted])
    seen = []
    conv.nn[0].register_forward_hook(lambda module, args, y: seen.append(args[0].shape))
    assert_close([conv(x, edges)], [wanted])
    assert seen == [(20, 6)]


def test_weights_of_the_graph_do_not_count():
    conv, ((x,), _, edges, _) = GINConv(mlp()).double(), inputs("nodes")
    graph = CSRGraph.from_edge_index(edges, 20, torch.rand(70))
    assert torch.equal(conv(x, graph), conv(x, edges))
    square, pair = CSRGraph.from_edge_index(edges, 20), (x, None)
    for known in (square, EdgeIndex(edges, sparse_size=(20, 20))):  # how many targets
        assert torch.equal(conv(pair, known), conv(pair, edges, size=(20, 20)))
    with pytest.raises(ValueError, match="GINConv: size must be given where x has no targets"):
        conv(pair, EdgeIndex(edges))


def test_reset():
    sparse = SparseLinear(6, 4, sparsity=0.5)
    conv = GINConv(torch.nn.Sequential(sparse, torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(4, 2))), 0.25, True)
    before = [p.detach().clone() for p in conv.parameters()]
    with torch.no_grad():
        for p in conv.parameters():
            p.zero_()
    conv.reset_parameters()
    assert conv.eps.item() == 0.25 and all(p.any() for p in conv.parameters()) and len(before) == 5
    assert GINConv(torch.relu)(torch.randn(3, 2), torch.zeros(2, 0, dtype=torch.int64)).shape == (3, 2)


x, edges = torch.randn(20, 6), torch.zeros(2, 1, dtype=torch.int64)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: GINConv(3), TypeError, "GINConv: nn must be a Module or a function, got int"),
        (lambda: GINConv(mlp(), "0"), TypeError, "GINConv: eps must be a float, got str"),
        (lambda: GINConv(mlp(), aggr="lstm"), ValueError, "GINConv: aggr must be one of .* got 'lstm'"),
        (lambda: GINConv(mlp(), flow="up"), ValueError, "GINConv: flow must be source_to_target or .* got 'up'"),
        (
            lambda: GINConv(torch.nn.Tanh())(x.to_sparse(), edges),
            TypeError,
            "GINConv: x must be dense, got torch.sparse_coo",
        ),
        (lambda: GINConv(mlp())(x[0], edges), ValueError, r"GINConv: x must have shape \[N, -1\], got \[6\]"),
        (lambda: GINConv(mlp())((x, x[:, :1]), edges), ValueError, r"as wide as sources \(6\), got 1"),
        (lambda: GINConv(mlp())((x, None), edges), ValueError, "GINConv: size must be given where x has no targets"),
        (lambda: GINConv(mlp())((x, x), edges, (20, 7)), ValueError, "size must give 20 targets as x does, got"),
        (lambda: GINConv(mlp())((x, x, x), edges), ValueError, "a pair of sources and targets, got 3 of them"),
        (
            lambda: GINConv(mlp(), flow="target_to_source")(x, CSRGraph.from_edge_index(edges, 20)),
            ValueError,
            r"GINConv: edge_index must be a Tensor \[2, E\] with flow='target_to_source'",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
