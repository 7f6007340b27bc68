"""A graph or sparse features first used within a transform serve afterwards: what is kept on them is made outside."""

import copy

import pytest
import torch
from nn.twins import Initial
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from sparsegnn import CSRGraph
from sparsegnn.nn import (
    APPNP,
    GATConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    SAGEConv,
    SGConv,
    SparseLinear,
    TAGConv,
)

N = 12
EDGES = torch.randint(N, (2, 50), generator=torch.Generator().manual_seed(0))
WEIGHT = torch.rand(50, generator=torch.Generator().manual_seed(0))


def forward_mode(f, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


TRANSFORMS = {
    "grad": lambda f, x: grad(lambda x: f(x).square().sum())(x),
    "vjp": lambda f, x: vjp(f, x)[1](torch.ones_like(f(x)))[0],
    "jvp": lambda f, x: jvp(f, (x,), (x,))[1],
    "vmap": lambda f, x: vmap(f)(torch.stack([x, x * 2])),
    "jacrev": lambda f, x: jacrev(lambda s: f(x * s).sum())(x.new_ones(x.shape[-1])),
    "forward over reverse": lambda f, x: jacfwd(jacrev(lambda s: f(x * s).sum()))(x.new_ones(x.shape[-1])),
    "vmap of grad": lambda f, x: vmap(grad(lambda x: f(x).sum()))(torch.stack([x, x * 2])),
    "functionalize": lambda f, x: functionalize(f)(x),
    "forward mode": forward_mode,
}
LAYERS = {
    "GCN": lambda: GCNConv(6, 4),
    "GCN, sparse": lambda: GCNConv(6, 4, sparsity=0.5),
    "GCN, kept": lambda: GCNConv(6, 8, cached=True),
    "GCN, max": lambda: GCNConv(6, 4, aggr="max"),
    "SAGE": lambda: SAGEConv(6, 4),
    "GIN": lambda: GINConv(torch.nn.Linear(6, 4)),
    "GIN, trained": lambda: GINConv(torch.nn.Linear(6, 4), train_eps=True),
    "SGC": lambda: SGConv(6, 4, K=2),
    "SGC, sparse": lambda: SGConv(6, 4, K=2, sparsity=0.5),
    "SGC, kept": lambda: SGConv(6, 8, K=2, cached=True),
    "TAG": lambda: TAGConv(6, 4, K=2),
    "TAG, aggregation first": lambda: TAGConv(6, 8, K=2, sparsity=0.5),
    "Graph": lambda: GraphConv(6, 4),
    "APPNP": lambda: APPNP(2, 0.1),
    "GCN2": lambda: Initial(GCN2Conv(6, 0.1, 0.5, 2, shared_weights=False)),
    "GAT": lambda: GATConv(6, 4),
    "GATv2": lambda: GATv2Conv(6, 4),
}


def loops_and_norm(weight):
    """[N, N], D^-1/2 (A + L) D^-1/2 in plain PyTorch."""
    a = torch.zeros(N, N, dtype=torch.float64)
    last = torch.ones(N, dtype=torch.float64)
    for (source, target), w in zip(EDGES.T.tolist(), weight.double().tolist(), strict=True):
        if source == target:
            last[source] = w
        else:
            a[target, source] += w
    a += torch.diag(last)
    scale = a.sum(1).pow(-0.5)
    return scale[:, None] * a * scale


@pytest.mark.sampled(4)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_graph_serves_after_a_transform(layer, transform, weighted):
    conv, x = LAYERS[layer](), torch.randn(N, 6)
    graph = CSRGraph.from_edge_index(EDGES, N, WEIGHT if weighted else None)
    fresh = copy.deepcopy(conv), copy.deepcopy(graph)
    TRANSFORMS[transform](lambda x: conv(x, graph), x)
    got, want = ((x.clone().requires_grad_(), f, g) for f, g in ((conv, graph), fresh))
    for leaf, f, g in (got, want):
        f(leaf, g).square().sum().backward()
    torch.testing.assert_close(got[0].grad, want[0].grad)
    for other in TRANSFORMS.values():
        other(lambda x: conv(x, graph), x)
    graph.add_self_loops(), graph.transpose(), copy.deepcopy(graph), copy.deepcopy(conv)
    if layer == "GCN":
        want = loops_and_norm(WEIGHT if weighted else torch.ones(50)) @ x.double() @ conv.lin.weight.double().T
        torch.testing.assert_close(conv(x, graph).double(), want + conv.bias.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_layer_that_caches_its_graph_within_a_transform(transform, sparsity):
    conv, x = GCNConv(6, 8, cached=True, sparsity=sparsity), torch.randn(N, 6)
    TRANSFORMS[transform](lambda x: conv(x, EDGES, WEIGHT), x)
    weight = conv.lin.to_dense().weight if sparsity else conv.lin.weight
    want = loops_and_norm(WEIGHT) @ x.double() @ weight.double().T + conv.bias.double()
    for _ in range(3):
        y = conv(x, EDGES, WEIGHT)
        torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5)
        y.sum().backward()


def test_weights_that_a_transform_differentiates_on_a_graph_that_stays():
    conv, x, graph = GCNConv(6, 4), torch.randn(N, 6), CSRGraph.from_edge_index(EDGES, N)

    def f(w):
        return conv(x, graph, w).square().sum()

    got = grad(f)(WEIGHT), vmap(grad(f))(torch.stack([WEIGHT, WEIGHT]))[1], jacrev(f)(WEIGHT)
    leaf = WEIGHT.clone().requires_grad_()
    (want,) = torch.autograd.grad(f(leaf), leaf)
    for g in got:
        torch.testing.assert_close(g, want)
    GATConv(6, 4)(x, graph).sum().backward()


@pytest.mark.parametrize("transform", ["grad", "vjp", "jvp", "vmap", "jacrev", "vmap of grad"])
@pytest.mark.parametrize("form", ["to_sparse_csr", "to_sparse_coo"])
@pytest.mark.parametrize("layer", ["linear", "dense", "sparse"])
def test_sparse_features(layer, form, transform):
    dense = torch.randn(N, 6) * (torch.rand(N, 6) < 0.4)
    x, graph = getattr(dense, form)(), CSRGraph.from_edge_index(EDGES, N)
    sparsity = 0.0 if layer == "dense" else 0.5
    m = SparseLinear(6, 4, sparsity=0.5) if layer == "linear" else GCNConv(6, 4, sparsity=sparsity)
    more, given = () if layer == "linear" else (graph,), dict(m.named_parameters())
    name = next(n for n in given if n.endswith(("values", "weight")))

    def of(x):
        return lambda w: functional_call(m, {**given, name: w}, (x, *more))

    point = given[name].detach().view(1, -1)  # the last dimension is what jacrev() scales

    def flat(f):
        return lambda w: f(w.view(given[name].shape))

    got, want = (TRANSFORMS[transform](flat(of(features)), point) for features in (x, dense))
    torch.testing.assert_close(got, want)
    m(x, *more).sum().backward()
    torch.testing.assert_close(m(x, *more), m(dense, *more))


@pytest.mark.parametrize("form", ["to_sparse_csr", "to_sparse_coo"])
def test_sparse_features_are_differentiated_twice(form):
    dense, layer = torch.randn(N, 6) * (torch.rand(N, 6) < 0.4), SparseLinear(6, 4, sparsity=0.5)
    found = []
    for x in (getattr(dense, form)(), dense):
        (g,) = torch.autograd.grad(layer(x).tanh().sum(), layer.values, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), layer.values)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("mode", ["real", "fake"])
@pytest.mark.parametrize("layer", ["GCN, kept", "GAT"])
def test_a_graph_serves_after_tracing(layer, mode):
    """Tracing may refuse a graph that was not used before; it must not leave tensors without data on it."""
    conv, x, graph = LAYERS[layer](), torch.randn(N, 6), CSRGraph.from_edge_index(EDGES, N)
    try:
        make_fx(lambda x: conv(x, graph), tracing_mode=mode, _allow_non_fake_inputs=True)(x)
    except RuntimeError:
        pass
    got = conv(x, graph)
    got.sum().backward()
    torch.testing.assert_close(got, conv(x, CSRGraph.from_edge_index(EDGES, N)))
