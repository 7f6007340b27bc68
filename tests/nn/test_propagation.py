"""SGConv, TAGConv, APPNP, GCN2Conv and GraphConv against PyG's, over options, forms of x and graphs."""

import copy
import itertools

import pytest
import torch
from nn.twins import Initial, assert_close, random_graph, run, twins
from ops.harness import pairwise
from torch.nn import functional as F

from sparsegnn import CSRGraph, densify, nn
from sparsegnn.nn import APPNP, GCN2Conv, GINConv, GraphConv, MaxK, SGConv, SparseLinear, TAGConv

pyg = pytest.importorskip("torch_geometric.nn")

WIDTH = 6
HOPS = dict(K=(0, 1, 3), aggr=("add", "mean", "max", "min"), flow=("source_to_target", "target_to_source"), size=(4, 9))
LOOPS, BIAS, CACHED = dict(add_self_loops=(True, False)), dict(bias=(True, False)), dict(cached=(False, True))
#: name: (axes of the options, positional arguments of an option for the size of the result)
LAYERS = {
    "SGConv": (HOPS | LOOPS | BIAS, lambda size: (WIDTH, size)),
    "TAGConv": (HOPS | BIAS | dict(normalize=(True, False)), lambda size: (WIDTH, size)),
    "APPNP": (HOPS | LOOPS | CACHED | dict(normalize=(True, False), alpha=(0.0, 0.1, 1)), lambda size: ()),
    "GCN2Conv": (
        dict(flow=HOPS["flow"], aggr=("add", "mean"), size=(WIDTH,), normalize=(True, False),
             shared_weights=(True, False), alpha=(0.0, 0.3, 1.0), theta=(None, 0.5, 0.0)) | LOOPS | CACHED,
        lambda size: (size,),
    ),
    "GraphConv": (dict(flow=HOPS["flow"], aggr=HOPS["aggr"], size=(4, 9)) | BIAS, lambda size: (WIDTH, size)),
}  # fmt: skip
SMALL = {  # one layer of each kind: (positional arguments, options)
    "SGConv": ((WIDTH, 4), dict(K=2)),
    "SGConv, aggregation first": ((WIDTH, 9), dict(K=2)),
    "TAGConv": ((WIDTH, 4), dict(K=2)),
    "TAGConv, aggregation first": ((WIDTH, 9), dict(K=2)),
    "APPNP": ((3, 0.2), {}),
    "GCN2Conv": ((WIDTH, 0.2), dict(theta=0.5, layer=2)),
    "GCN2Conv, two weights": ((WIDTH, 0.2), dict(shared_weights=False)),
    "GraphConv": ((WIDTH, 4), {}),
    "GraphConv, aggregation first": ((WIDTH, 9), {}),
}
LINEAR = [name for name in SMALL if not name.startswith(("APPNP", "GCN2"))]


def both(name, /, *sizes, **options):
    ours, theirs = twins(name, *sizes, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def small(name, **more):
    sizes, options = SMALL[name]
    return getattr(nn, name.partition(",")[0])(*sizes, **options, **more)


def pyg_of(name):
    sizes, options = SMALL[name]
    return getattr(pyg, name.partition(",")[0])(*sizes, **options)


def call(conv):
    """The layer with x for x_0 too, in part: so that both have a gradient."""
    return Initial(conv) if "GCN2" in type(conv).__name__ else conv


@pytest.mark.parametrize("weights", ["none", "trained", "constant"])
@pytest.mark.parametrize("name", LAYERS)
def test_agrees_with_pyg_over_all_options(name, weights):
    axes, sizes = LAYERS[name]
    for seed, given in enumerate(pairwise(**axes)):
        edges, weight = random_graph(seed=seed)
        size, beta = given.pop("size", None), {} if given.get("theta") is None else dict(layer=2)
        ours, theirs = map(call, both(name, *sizes(size), **given, **beta))
        x = torch.randn(40, WIDTH, dtype=torch.float64)
        if weights == "constant":
            ours, theirs = (_with(conv, weight) for conv in (ours, theirs))
        weight = weight if weights == "trained" and not given.get("cached") else None
        for _ in range(2 if given.get("cached") else 1):
            got = _run(ours, x, edges, weight)
        assert_close(got, _run(theirs, x, edges, weight))


def _run(conv, x, edges, weight):
    """As run(), where not every leaf has to take part: K = 0."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight) if t is not None]
    y = conv(leaves[0], edges, *leaves[1:])
    flow = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = [*leaves, *(p for _, p in sorted(conv.named_parameters()))]
    return [y.detach(), *torch.autograd.grad(y, wanted, flow, allow_unused=True, materialize_grads=True)]


def _with(conv, weight):
    class Weighted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, x, edges):
            return self.conv(x, edges, weight)

    return Weighted()


@pytest.mark.parametrize("name", SMALL)
def test_a_graph_with_weights_is_as_the_weights_beside_it(name):
    conv, (edges, weight) = call(small(name).double()), random_graph()
    x = torch.randn(40, WIDTH, dtype=torch.float64)
    wanted = conv(x, edges, weight)
    assert torch.equal(conv(x, CSRGraph.from_edge_index(edges, 40, weight)), wanted)
    assert torch.equal(conv(x, CSRGraph.from_edge_index(edges, 40), weight), wanted)
    matrix = torch.sparse_coo_tensor(edges.flip(0), weight, (40, 40)).coalesce()  # sums weights of the same edge
    torch.testing.assert_close(conv(x, matrix), wanted)


@pytest.mark.parametrize("aggr", ["max", "min"])
def test_gcn2_of_extrema(aggr):
    """PyG's has no gradient there; its APPNP has, and one step of that is what GCN2Conv multiplies."""
    (edges, weight), x = random_graph(), torch.randn(40, WIDTH, dtype=torch.float64)
    ours, step = GCN2Conv(WIDTH, 0.3, aggr=aggr).double(), pyg.APPNP(1, 0.3, aggr=aggr)

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight1 = ours.weight1

        def forward(self, x, *args):
            return step(x, *args) @ self.weight1

    class Ours(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = ours

        def forward(self, x, *args):
            return self.conv(x, x, *args)

    assert_close(run(Ours(), x, edges, weight), run(Theirs(), x, edges, weight))


def test_graph_conv_of_pairs():
    edges = torch.stack([torch.randint(20, (70,)), torch.randint(24, (70,))])
    x = [torch.randn(n, w, dtype=torch.float64) for n, w in ((20, WIDTH), (25, 3))]
    weight = torch.rand(70, dtype=torch.float64)
    for out, aggr, target in itertools.product((4, 9), ("add", "max"), (True, False)):
        results = []
        for conv in both("GraphConv", (WIDTH, 3), out, aggr=aggr):
            leaves = [t.clone().requires_grad_() for t in (*x, weight)]
            y = conv((leaves[0], leaves[1] if target else None), edges, leaves[2], size=(20, 25))
            wanted = [*leaves, *(p for _, p in sorted(conv.named_parameters()))]
            flow = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
            results.append([y, *torch.autograd.grad(y, wanted, flow, allow_unused=True, materialize_grads=True)])
        assert_close(*results)


# --- forms of x, and precisions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("aggr", ["add", "mean", "max"])
def test_compressed_rows(name, aggr):
    conv, (edges, weight) = call(small(name, aggr=aggr).double()), random_graph()
    x = torch.randn(40, WIDTH, dtype=torch.float64)

    def through(act):
        def layer(leaf, *args):
            return conv(act(leaf), *args)

        layer.named_parameters = conv.named_parameters
        return layer

    for w in (None, weight):
        assert_close(run(through(MaxK(2, compressed=True)), x, edges, w), run(through(MaxK(2)), x, edges, w))


@pytest.mark.parametrize("form", ["to_sparse_csr", "to_sparse_coo"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("name", LINEAR)
def test_sparse_features(name, sparsity, form):
    x = torch.randn(40, WIDTH, dtype=torch.float64) * (torch.rand(40, WIDTH) < 0.3)
    edges, weight = random_graph()
    conv = small(name, sparsity=sparsity).double()
    for w in (None, weight):
        results = []
        for given in (x, getattr(x, form)()):
            y = conv(given, edges, w)
            results.append([y, *torch.autograd.grad(y.square().sum(), list(conv.parameters()))])
        assert_close(*results)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("aggr", ["add", "max"])
def test_sparse_features_are_refused_where_they_are_aggregated(name, aggr):
    if aggr == "add" and name in LINEAR:
        pytest.skip("taken")
    conv, x = small(name, aggr=aggr), torch.randn(40, WIDTH).to_sparse_csr()
    more = (torch.randn(40, WIDTH),) if "GCN2" in name else ()
    with pytest.raises(TypeError, match=f"{name.partition(',')[0]}: x must be dense, got torch.sparse_csr: call"):
        conv(x, *more, random_graph()[0])


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("name", SMALL)
def test_precisions(name, sparsity):
    if sparsity and name == "APPNP":
        pytest.skip("has no weight")
    edges, weight = random_graph()
    x = torch.randn(40, WIDTH, dtype=torch.float64)
    exact = call(small(name, **(dict(sparsity=sparsity) if sparsity else {})).double())
    single, half = copy.deepcopy(exact).float(), copy.deepcopy(exact).bfloat16()
    for w in (None, weight):
        wanted, low = run(exact, x, edges, w), None if w is None else w.float()
        assert_close([t.double() for t in run(single, x.float(), edges, low)], wanted, 1e-5)
        got = run(half, x.bfloat16(), edges, None if w is None else w.bfloat16())
        assert all(t.dtype == torch.bfloat16 for t in got)
        assert_close([t.double() for t in got], wanted, 8e-2)
        with torch.autocast("cpu", torch.bfloat16):
            got = run(single, x.float(), edges, low)
        assert got[0].dtype == torch.bfloat16 and all(t.dtype == torch.float32 for t in got[1:])
        assert_close([t.double() for t in got], wanted, 5e-2)


# --- sparse weights, copies, lazy widths -----------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["unstructured", "fan_in"])
@pytest.mark.parametrize("name", [n for n in SMALL if n != "APPNP"])
def test_sparse_equals_pygs_with_zeros(name, pattern):
    edges, weight = random_graph()
    sparse = small(name, sparsity=0.5, pattern=pattern).double()
    assert any(isinstance(m, SparseLinear) for m in sparse.modules())
    dense = densify(copy.deepcopy(sparse))
    assert not any(isinstance(m, SparseLinear) for m in dense.modules()) and type(dense) is type(sparse)
    theirs = pyg_of(name).double()
    theirs.load_state_dict(dense.state_dict())
    assert list(dense.state_dict()) == list(theirs.state_dict())
    x, again = torch.randn(40, WIDTH, dtype=torch.float64), small(name, sparsity=0.5, pattern=pattern).double()
    again.load_state_dict(sparse.state_dict())
    for conv in (sparse, dense, again, copy.deepcopy(sparse)):
        got, wanted = (run(call(c), x, edges, weight) for c in (conv, theirs))
        assert_close(got[:3], wanted[:3])  # y, and the gradients of x and the weights of edges
    dense_feature = torch.randn(40, WIDTH, dtype=torch.float64) * (torch.rand(40, WIDTH) < 0.5)
    if name in LINEAR:  # the dense layer is one that takes sparse features
        assert_close([dense(dense_feature.to_sparse_csr(), edges)], [dense(dense_feature, edges)])
    with torch.no_grad():
        for p in sparse.parameters():
            p.fill_(7)
    sparse.reset_parameters()
    assert not any((p == 7).any() for p in sparse.parameters())


@pytest.mark.parametrize("name", LINEAR)
def test_lazy_width_and_initialisation(name):
    (_, out), options = SMALL[name]
    kind, (edges, _) = name.partition(",")[0], random_graph()
    lazy = getattr(nn, kind)(-1, out, **options)
    lazy.reset_parameters()
    lazy(torch.randn(40, 60), edges)
    dense, theirs = getattr(nn, kind)(60, out, **options), getattr(pyg, kind)(60, out, **options)
    assert list(lazy.state_dict()) == list(theirs.state_dict())
    lazy.load_state_dict(theirs.state_dict())
    getattr(nn, kind)(-1, out, **options).load_state_dict(theirs.state_dict())
    lazy = getattr(nn, kind)(-1, out, **options)
    lazy(torch.randn(40, 60), edges)
    for conv in (lazy, dense, theirs):  # nn.Linear's
        conv.reset_parameters()
        assert all(0.7 * 60**-0.5 < p.abs().max() <= 60**-0.5 for p in conv.parameters() if p.dim() == 2)


def test_gcn2_begins_as_pygs():
    for sparsity in (0.0, 0.75):
        conv = GCN2Conv(40, 0.1, sparsity=sparsity)
        weight = conv.weight1.values if sparsity else conv.weight1
        bound = (6 / 80 / (1 - sparsity)) ** 0.5
        assert 0.9 * bound < weight.abs().max() <= bound


# --- what is cached --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SGConv", "APPNP", "GCN2Conv"])
def test_the_first_graph_stays(name):
    (edges, weight), x = random_graph(), torch.randn(40, WIDTH)
    conv, plain = call(small(name, cached=True)), call(small(name))
    plain.load_state_dict(conv.state_dict())
    wanted, none = plain(x, edges, weight.float()), torch.empty(2, 0).long()
    for graph in (edges, none, none):
        torch.testing.assert_close(conv(x, graph, weight.float() if graph is edges else None), wanted)
    conv = getattr(conv, "conv", conv)
    copied = copy.deepcopy(conv)
    for c in (conv, copied):
        if c is conv:
            c.reset_parameters()
            plain.load_state_dict(call(c).state_dict())
            wanted = plain(x, none)
        torch.testing.assert_close(call(c)(x, none), wanted if c is conv else call(copied)(x, edges))


def test_sgc_keeps_the_propagated_features_and_notices_others():
    (edges, _), x = random_graph(), torch.randn(40, WIDTH)
    conv, plain = SGConv(WIDTH, 4, K=2, cached=True), SGConv(WIDTH, 4, K=2)
    plain.load_state_dict(conv.state_dict())
    calls, graph = [], CSRGraph.from_edge_index(edges, 40)

    def check(x, kept):
        with _counting(calls):
            y = conv(x, graph)
        assert len(calls) == (0 if kept else 2)
        torch.testing.assert_close(y, plain(x, graph))
        calls.clear()

    check(x, False), check(x, False), check(x, True), check(x, True)
    x.mul_(2)
    check(x, False), check(x, False), check(x, True)
    other = torch.randn(40, WIDTH)
    check(other, False), check(x, False)
    graph.assign_(graph.subset(torch.arange(0, graph.num_edges, 2)))
    check(x, False)
    leaf = x.clone().requires_grad_()
    for _ in range(3):
        check(leaf, False)


class _counting(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() == "sparsegnn::spmm":
            self.calls.append(func)
        return func(*args, **(kwargs or {}))


def test_derivatives_of_appnps_steps():
    """Gradients of gradients, and of a batch of gradients, with constant weights and without."""
    (edges, weight), x = random_graph(12, 40), torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    for w in (None, weight):
        conv = APPNP(3, 0.2)
        assert type(conv(x, edges, w).grad_fn).__name__ == "_StepsBackward"
        assert torch.autograd.gradcheck(lambda x: conv(x, edges, w).tanh(), x)  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda x: conv(x, edges, w).tanh(), x, fast_mode=True)  # noqa: B023
        y, flow = conv(x, edges, w), torch.randn(2, 12, 3, dtype=torch.float64)
        (got,) = torch.autograd.grad(y, x, flow, is_grads_batched=True, retain_graph=True)
        assert_close(got, [torch.autograd.grad(y, x, f, retain_graph=True)[0] for f in flow])
        y = conv(x, edges, w).tanh()
        (first,) = torch.autograd.grad(y, x, flow, is_grads_batched=True, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, retain_graph=True)
        each = [torch.autograd.grad(y, x, f, create_graph=True)[0] for f in flow]
        assert_close([second], torch.autograd.grad(sum(g.square().sum() for g in each), x))


# --- dropout of edges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normalize", [True, False])
def test_appnp_drops_edges(normalize, weighted):
    """Against the dense matrix with the same draws: of every edge, and of those that are left in the next step."""
    edges, weight = random_graph()
    edges = torch.cat([edges[:, edges[0] != edges[1]].unique(dim=1), torch.arange(40).expand(2, 40)], 1)
    weight = torch.rand(edges.size(1), dtype=torch.float64) + 0.1
    w = weight if weighted else torch.ones_like(weight)
    a = torch.zeros(40, 40, dtype=torch.float64).index_put((edges[1], edges[0]), w, accumulate=True)
    if normalize:
        scale = a.sum(1).pow(-0.5)
        a = scale[:, None] * a * scale
    conv = APPNP(3, 0.1, dropout=0.4, normalize=normalize)
    x = torch.randn(40, WIDTH, dtype=torch.float64)
    graph = CSRGraph.from_edge_index(edges, 40, weight if weighted else None)
    torch.manual_seed(5)
    got = conv(x, graph)
    torch.manual_seed(5)
    val, y = a[graph.rows(), graph.col.long()], x
    for _ in range(3):
        val = F.dropout(val, 0.4)
        dropped = torch.zeros_like(a).index_put((graph.rows(), graph.col.long()), val)
        y = 0.9 * dropped @ y + 0.1 * x
    assert_close([got], [y])
    assert_close([conv.eval()(x, graph)], [pyg.APPNP(3, 0.1, normalize=normalize)(x, edges, w)])
    leaf = w.clone().requires_grad_()
    conv.train()(x, graph, leaf).sum().backward()
    assert (leaf.grad == 0).any() and (leaf.grad != 0).any()


# --- odd graphs and arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("name", SMALL)
def test_no_edges(name, n):
    sizes, options = SMALL[name]
    none = torch.empty(2, 0, dtype=torch.int64)
    x, weight = torch.randn(n, WIDTH, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
    ours, theirs = map(call, both(name.partition(",")[0], *sizes, **options))
    for w in (None, weight):
        assert_close(_run(ours, x, none, w), _run(theirs, x, none, w))


x, edges = torch.randn(3, WIDTH), torch.tensor([[0, 1], [1, 2]])


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: SGConv(6, 4, K=-1), ValueError, "SGConv: K must be at least 0, got -1"),
        (lambda: SGConv(6, 4, K=1.0), TypeError, "SGConv: K must be an int, got float"),
        (lambda: TAGConv(6, 4, K=True), TypeError, "TAGConv: K must be an int, got bool"),
        (lambda: TAGConv(6, 4, aggr="lstm"), ValueError, "TAGConv: aggr must be one of .* got 'lstm'"),
        (lambda: SGConv(6, 4, flow="up"), ValueError, "SGConv: flow must be .* got 'up'"),
        (lambda: SGConv(-1, 4, sparsity=0.5), ValueError, "SGConv: in_channels must be given"),
        (lambda: APPNP(2, "0.1"), TypeError, "APPNP: alpha must be a float, got str"),
        (lambda: APPNP(2, float("nan")), ValueError, "APPNP: alpha must be finite, got nan"),
        (lambda: APPNP(2, 0.1, dropout=1.5), ValueError, r"APPNP: dropout must be in \[0, 1\], got 1.5"),
        (lambda: GCN2Conv(-1, 0.1), ValueError, "GCN2Conv: channels must be at least 1, got -1"),
        (lambda: GCN2Conv(6, 0.1, theta=1.0), ValueError, "theta and layer must both be given, got theta=1.0"),
        (lambda: GCN2Conv(6, 0.1, theta=1.0, layer=0), ValueError, "GCN2Conv: theta / layer must be above -1"),
        (lambda: GraphConv((6, 4, 3), 4), ValueError, r"GraphConv: in_channels must be an int or a pair"),
        (lambda: GraphConv("6", 4), TypeError, "GraphConv: in_channels must be an int, got str"),
        (lambda: SGConv(7, 4)(x, edges), ValueError, r"SGConv: x must have shape \[N, 7\], got \[3, 6\]"),
        (lambda: TAGConv(6, 4)(x.int(), edges), TypeError, "TAGConv: x must be a floating-point Tensor"),
        (lambda: APPNP(2, 0.1)((x, x), edges), ValueError, "APPNP: x must be a Tensor .*got a tuple"),
        (lambda: GCN2Conv(6, 0.1)(x, x[:2], edges), ValueError, r"x_0 must have shape \[3, 6\] or more rows, got"),
        (
            lambda: GCN2Conv(6, 0.1)(x, x.to_sparse(), edges),
            TypeError,
            "x_0 must be dense, got torch.sparse_coo: call x_0",
        ),
        (lambda: GCN2Conv(6, 0.1)(x, edges, edges), TypeError, "x_0 must be a floating-point Tensor .* torch.int64"),
        (lambda: GCN2Conv(6, 0.1)(x, None, edges), TypeError, "x_0 must be a floating-point Tensor .* NoneType"),
        (lambda: GraphConv(6, 4)((x, None), edges), ValueError, "GraphConv: size must be given where x has no targets"),
        (lambda: GraphConv(6, 4)(x, edges, torch.ones(3)), ValueError, r"edge_weight must have shape \[2\], got \[3\]"),
        (
            lambda: APPNP(2, 0.1)(x, CSRGraph.from_edge_index(edges, 4)),
            ValueError,
            r"APPNP: x must have one row per node of the graph \(4, 4\)",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
    assert nn.GINConv is GINConv and nn.APPNP is APPNP
