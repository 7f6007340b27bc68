"""GCNConv against PyG's: values and every gradient, over the constructor's options."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from nn.twins import assert_close, random_graph, run, twins
from ops.harness import pairwise

from sparsegnn import CSRGraph
from sparsegnn.nn import GCNConv, SparseLinear
from sparsegnn.ops import gcn
from sparsegnn.ops.spmm_gcn import aggregate_first

pyg = pytest.importorskip("torch_geometric.nn")


AXES = dict(
    improved=(False, True),
    normalize=(True, False),
    add_self_loops=(None, True, False),
    bias=(True, False),
    aggr=("add", "mean", "max", "min"),
    flow=("source_to_target", "target_to_source"),
)


def options(full: bool) -> list[dict]:
    product = (dict(zip(AXES, row, strict=True)) for row in itertools.product(*AXES.values()))
    rows = product if full else pairwise(**AXES)
    return [row for row in rows if row["normalize"] or not row["add_self_loops"]]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", [(6, 11), (11, 6)], ids=["aggregate_first", "transform_first"])
@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.full)], ids=["pairs", "full"])
def test_agrees_with_pyg_over_all_options(full, sizes, weighted):
    for seed, given in enumerate(options(full)):
        edge_index, weight = random_graph(seed=seed)
        x = torch.randn(40, sizes[0], dtype=torch.float64)
        ours, theirs = twins("GCNConv", *sizes, **given)
        weight = weight if weighted else None
        assert_close(run(ours, x, edge_index, weight), run(theirs, x, edge_index, weight))


@pytest.mark.parametrize("seed", range(4))
def test_constant_weights_agree_with_pyg(seed):
    edge_index, weight = random_graph(seed=seed)
    for improved, loops in itertools.product((False, True), (False, True)):
        ours, theirs = twins("GCNConv", 6, 11, improved=improved, add_self_loops=loops)
        x = torch.randn(40, 6, dtype=torch.float64)
        assert_close([ours(x, edge_index, weight)], [theirs(x, edge_index, weight)])


def test_several_loops_of_a_node_count_once_and_only_the_last_has_a_gradient():
    edge_index = torch.tensor([[0, 1, 1, 2, 2, 1], [1, 0, 1, 2, 2, 1]])
    weight = torch.rand(6, dtype=torch.float64) + 0.5
    ours, theirs = twins("GCNConv", 3, 5, improved=True)
    x = torch.randn(3, 3, dtype=torch.float64)
    y, _, dweight, *_ = run(ours, x, edge_index, weight)
    assert_close([y, ours(x, edge_index, weight)], [theirs(x, edge_index, weight)] * 2)
    assert dweight[2] == dweight[3] == 0 and (dweight[[0, 1, 5]] != 0).all()
    leaf = weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda w: ours(x, edge_index, w), leaf)


def test_zero_degrees_give_zero_and_finite_gradients():
    edge_index, weight = torch.tensor([[0, 1], [1, 0]]), torch.tensor([0.0, 0.5])
    conv = GCNConv(2, 3, add_self_loops=False)
    y, *grads = run(conv, torch.randn(4, 2), edge_index, weight)
    assert y.isfinite().all() and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("options", [{}, dict(normalize=False), dict(improved=True)])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_form_of_a_graph_gives_the_same_bits(weighted, options):
    from torch_geometric import EdgeIndex
    from torch_geometric.data import Data
    from torch_geometric.utils import coalesce

    edge_index, weight = coalesce(*random_graph())
    weight = weight.float()
    source, target = edge_index
    x, conv = torch.randn(40, 9), GCNConv(9, 9, **options)
    forms = {
        "int64": (edge_index, weight if weighted else None),
        "int32": (edge_index.int(), weight if weighted else None),
        "EdgeIndex": (EdgeIndex(edge_index, sparse_size=(40, 40)), weight if weighted else None),
        "CSRGraph": (CSRGraph.from_edge_index(edge_index, 40), weight if weighted else None),
        "weighted CSRGraph": (CSRGraph.from_edge_index(edge_index, 40, weight if weighted else None), None),
        "Data": (Data(edge_index=edge_index, edge_weight=weight if weighted else None, num_nodes=40), None),
    }
    if weighted or not options.get("improved"):  # torch.sparse has weights always, if only ones
        matrix = torch.sparse_coo_tensor(edge_index.flip(0), weight if weighted else torch.ones_like(weight), (40, 40))
        forms |= {"coo": (matrix, None), "csr": (matrix.to_sparse_csr(), None)}
    try:
        from torch_sparse import SparseTensor

        value = weight if weighted else None
        forms["SparseTensor"] = (SparseTensor(row=target, col=source, value=value, sparse_sizes=(40, 40)), None)
    except ImportError:
        pass
    wanted = conv(x, *forms["int64"])
    for name, form in forms.items():
        assert torch.equal(conv(x, *form), wanted), name


def test_sparse_equals_dense_with_zeros():
    edge_index, weight = random_graph()
    for sizes in ((6, 30), (30, 6)):
        sparse = GCNConv(*sizes, sparsity=0.8).double()
        assert isinstance(sparse.lin, SparseLinear) and sparse.lin.values.numel() == 36
        assert {"lin.values", "lin.crow", "lin.col", "bias"} <= sparse.state_dict().keys()
        dense = pyg.GCNConv(*sizes).double()
        dense.load_state_dict({"lin.weight": sparse.lin.dense_weight().detach(), "bias": sparse.bias.detach()})
        x = torch.randn(40, sizes[0], dtype=torch.float64)
        got, wanted = run(sparse, x, edge_index, weight), run(dense, x, edge_index, weight)
        names = ["y", "x", "edge_weight", *sorted(n for n, _ in sparse.named_parameters())]
        got = dict(zip(names, got, strict=True))
        wanted = dict(zip(["y", "x", "edge_weight", "bias", "lin.weight"], wanted, strict=True))
        crow, col = sparse.lin.pattern()
        rows = torch.repeat_interleave(torch.arange(sizes[1]), crow.diff())
        assert_close([got["lin.values"]], [wanted["lin.weight"][rows, col.long()]])
        for name in ("y", "x", "edge_weight", "bias"):
            assert_close([got[name]], [wanted[name]])


def test_initialisation_has_the_scale_of_the_weights_that_exist():
    dense, sparse = GCNConv(400, 300), GCNConv(400, 300, sparsity=0.9)
    variance = [c.lin(torch.randn(2000, 400)).var().item() for c in (dense, sparse)]
    assert dense.lin.weight.abs().max() <= (6 / 700) ** 0.5
    np.testing.assert_allclose(*variance, rtol=0.1)
    before = sparse.lin.values.detach().clone(), sparse.lin.col.clone()
    torch.nn.init.ones_(sparse.bias)
    sparse.reset_parameters()
    assert not torch.equal(before[0], sparse.lin.values) and torch.equal(before[1], sparse.lin.col)
    assert sparse.lin.values.abs().max() <= (6 / 70) ** 0.5 and not sparse.bias.any()


def test_order_of_the_two_products():
    wide, narrow = torch.randn(5, 64), torch.randn(5, 16)
    assert aggregate_first(narrow, 64) and not aggregate_first(wide, 16)
    assert aggregate_first(torch.randn(5, 100), 64)  # no backward pass over the edges
    assert not aggregate_first(torch.randn(5, 100, requires_grad=True), 64)


def test_cached():
    edge_index, weight = random_graph()
    x, conv = torch.randn(40, 6), GCNConv(6, 8, cached=True)
    first = conv(x, edge_index, weight.float())
    assert torch.equal(conv(x, torch.empty(2, 0).long()), first)  # as PyG's: the first graph stays
    conv.reset_parameters()  # without edges a convolution is its product
    assert_close([conv(x, torch.empty(2, 0).long())], [x @ conv.lin.weight.T + conv.bias], 1e-5)


def test_lazy_input_width():
    edge_index, _ = random_graph()
    conv, theirs = GCNConv(-1, 8), pyg.GCNConv(6, 8)
    conv.reset_parameters()
    x = torch.randn(40, 6)
    conv.load_state_dict(theirs.state_dict())
    assert_close([conv(x, edge_index)], [theirs(x, edge_index)], 1e-5)
    other = GCNConv(-1, 8)
    other(x, edge_index)
    assert other.lin.weight.shape == (8, 6) and other.lin.weight.abs().max() <= (6 / 14) ** 0.5


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_dtypes(dtype, tolerance):
    edge_index, weight = random_graph()
    x = torch.randn(40, 20, dtype=torch.float64)
    for sizes in ((20, 30), (20, 10)):
        theirs = pyg.GCNConv(*sizes).double()
        ours = GCNConv(*sizes)
        ours.load_state_dict(theirs.state_dict())
        ours = ours.to(dtype)
        got, wanted = run(ours, x.to(dtype), edge_index, weight.to(dtype)), run(theirs, x, edge_index, weight)
        assert_close([g.double() for g in got], wanted, 5 * tolerance)
        assert all(g.dtype == dtype for g in got)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("sizes", [(20, 30), (30, 20)])
def test_autocast_gives_one_dtype(sizes, sparsity):
    edge_index, weight = random_graph()
    conv, x = GCNConv(*sizes, sparsity=sparsity), torch.randn(40, sizes[0])
    for w in (None, weight.float()):
        exact = run(conv, x, edge_index, w)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = run(conv, x, edge_index, w)
        assert got[0].dtype == torch.bfloat16
        assert all(a.dtype == b.dtype for a, b in zip(exact[1:], got[1:], strict=True))
        assert_close([g.float() for g in got], exact, 5e-2)


@pytest.mark.parametrize("sizes", [(20, 30), (30, 20)])
def test_same_bits_for_any_number_of_threads(sizes):
    edge_index, weight = random_graph(2000, 40_000)
    conv, x = GCNConv(*sizes, bias=False, sparsity=0.5), torch.randn(2000, sizes[0])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(conv, x, edge_index, weight.float()))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_hooks_see_the_output_of_lin_as_it_was():
    seen, (edge_index, _) = [], random_graph()
    for sizes in ((6, 30), (30, 6)):
        conv, x = GCNConv(*sizes), torch.randn(40, sizes[0])
        torch.nn.init.ones_(conv.bias)
        conv.lin.register_forward_hook(lambda module, args, y: seen.append((y, y.clone())))
        conv(x, edge_index)
    assert all(torch.equal(*pair) for pair in seen)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_no_edges(n):
    conv, theirs = twins("GCNConv", 3, 4)
    x, none = torch.randn(n, 3, dtype=torch.float64), torch.empty(2, 0, dtype=torch.int64)
    assert_close([conv(x, none)], [theirs(x, none)])


def test_cora(graph_data_dir):
    from sparsegnn.data import load

    data = load(graph_data_dir / "cora.npz")
    graph = CSRGraph.from_edge_index(data.edge_index, data.num_nodes)
    ours, theirs = twins("GCNConv", data.num_features, 64, dtype=torch.float32)
    weight = torch.rand(data.num_edges) + 0.1
    for w in (None, weight):
        wanted = run(theirs.double(), data.x.double(), data.edge_index, None if w is None else w.double())
        for g in (data.edge_index, graph):
            assert_close([t.double() for t in run(ours, data.x, g, w)], wanted, 2e-5)
        theirs.float()


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: GCNConv("3", 4), TypeError, "GCNConv: in_channels must be an int, got str"),
        (lambda: GCNConv(3, 0), ValueError, "GCNConv: out_channels must be at least 1, got 0"),
        (lambda: GCNConv(3, 4, sparsity=1.0), ValueError, "sparsity must be"),
        (lambda: GCNConv(3, 4, sparsity=float("nan")), ValueError, "sparsity must be"),
        (lambda: GCNConv(3, 4, sparsity=0.5, pattern="round"), ValueError, "pattern must be"),
        (lambda: GCNConv(-1, 4, sparsity=0.5), ValueError, "in_channels must be given"),
        (lambda: GCNConv(3, 4, normalize=False, add_self_loops=True), ValueError, "add_self_loops must be False"),
        (lambda: GCNConv(3, 4, aggr="median"), ValueError, "aggr must be one of .* got 'median'"),
        (lambda: GCNConv(3, 4, flow="up"), ValueError, "flow must be"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


edges = torch.tensor([[0, 1], [1, 0]])


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((torch.randn(2, 4), edges), ValueError, r"GCNConv: x must have shape \[N, 3\], got \[2, 4\]"),
        ((torch.randn(3), edges), ValueError, r"GCNConv: x must have shape \[N, 3\], got \[3\]"),
        ((torch.ones(2, 3).int(), edges), TypeError, "x must be a floating-point Tensor .* got torch.int32"),
        (((torch.ones(2, 3), None), edges), ValueError, "got a tuple"),
        ((None, edges), TypeError, "x must be a floating-point Tensor .* got NoneType"),
        ((torch.randn(1, 3), edges), ValueError, r"edge_index\[0\] must be in \[0, 1\), got 1"),
        ((torch.randn(2, 3), edges - 1), ValueError, r"edge_index\[0\] must be in \[0, 2\), got -1"),
        ((torch.randn(2, 3), edges.float()), TypeError, "edge_index must be int32 or int64"),
        ((torch.randn(2, 3), edges, torch.ones(3)), ValueError, r"edge_weight must have shape \[2\], got \[3\]"),
        ((torch.randn(2, 3), CSRGraph.from_edge_index(edges, 5)), ValueError, "one row per node of the graph"),
        ((torch.randn(2, 3), CSRGraph.from_edge_index(edges, (2, 3))), ValueError, "one row per node of the graph"),
        ((torch.randn(2, 3), None), TypeError, "graph must be .* got NoneType"),
    ],
)
def test_bad_inputs(args, error, message):
    with pytest.raises(error, match=message):
        GCNConv(3, 4)(*args)


# --- epilogue ---


@pytest.mark.parametrize("sparsity", [0.0, 0.7])
@pytest.mark.parametrize("sizes", [(6, 11), (11, 6)], ids=["aggregate_first", "transform_first"])
@pytest.mark.parametrize("bias", [True, False])
def test_activation_equals_relu_after_the_layer(sizes, sparsity, bias):
    edge_index, _ = random_graph()
    fused = GCNConv(*sizes, sparsity=sparsity, bias=bias, act="relu").double()
    assert "act='relu'" in repr(fused)
    plain = GCNConv(*sizes, sparsity=sparsity, bias=bias).double()
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(40, sizes[0], dtype=torch.float64)
    assert_close(run(fused, x, edge_index, None), run(Then(plain, torch.relu), x, edge_index, None))
    theirs = pyg.GCNConv(*sizes, bias=bias).double()
    with torch.no_grad():
        theirs.lin.weight.copy_(plain.lin.dense_weight() if sparsity else plain.lin.weight)
        if bias:
            theirs.bias.copy_(plain.bias)
    assert_close([fused(x, edge_index)], [theirs(x, edge_index).relu()])


class Then(torch.nn.Module):
    """A layer and a function after it, with the parameters' names of the layer."""

    def __init__(self, conv, function):
        super().__init__()
        self.conv, self.function = conv, function

    def forward(self, *args):
        return self.function(self.conv(*args))


@pytest.mark.parametrize("act", [None, "relu"])
@pytest.mark.parametrize("sparsity", [0.0, 0.7])
@pytest.mark.parametrize("sizes", [(6, 30), (30, 6)], ids=["aggregate_first", "transform_first"])
def test_dropout_is_drawn_from_torchs_generator_and_its_gradient_follows(sizes, sparsity, act):
    edge_index, _ = random_graph()
    conv = GCNConv(*sizes, sparsity=sparsity, act=act, dropout=0.4).double()
    assert "dropout=0.4" in repr(conv)
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(40, sizes[0], dtype=torch.float64, requires_grad=True)
    plain = conv.eval()(x, edge_index)
    conv.train()
    torch.manual_seed(3)
    y = conv(x, edge_index)
    torch.manual_seed(3)
    assert torch.equal(y, conv(x, edge_index)) and not torch.equal(y, conv(x, edge_index))
    kept = (y != 0) | (plain == 0)
    assert abs(kept[plain != 0].double().mean() - 0.6) < 0.2
    assert_close([y], [plain * kept / 0.6])
    flow = torch.randn(y.shape, dtype=torch.float64)
    names = [x, *conv.parameters()]
    assert_close(torch.autograd.grad(y, names, flow), torch.autograd.grad(plain, names, flow * kept / 0.6))


def test_hooks_and_probes_of_the_inner_weight_still_see_everything():
    edge_index, _ = random_graph()
    conv, seen = GCNConv(6, 11, sparsity=0.7, act="relu"), []
    x = torch.randn(40, 6)
    wanted = conv(x, edge_index)
    handle = conv.lin.register_forward_hook(lambda module, args, y: seen.append(y))
    torch.testing.assert_close(conv(x, edge_index), wanted)
    assert seen[0].min() < 0 and seen[0].shape == (40, 11)
    handle.remove()
    conv.lin.probe = torch.zeros(11, 6, requires_grad=True)
    y = conv(x, edge_index)
    torch.testing.assert_close(y, wanted)
    y.sum().backward()
    dense = GCNConv(6, 11, act="relu")
    with torch.no_grad():
        dense.lin.weight.copy_(conv.lin.dense_weight())
    dense(x, edge_index).sum().backward()
    torch.testing.assert_close(conv.lin.probe.grad, dense.lin.weight.grad)


def test_errors_of_the_epilogue():
    with pytest.raises(ValueError, match="GCNConv: act must be None or 'relu', got 'gelu'"):
        GCNConv(2, 3, act="gelu")
    with pytest.raises(ValueError, match=r"GCNConv: dropout must be in \[0, 1\], got 2"):
        GCNConv(2, 3, dropout=2)
    with pytest.raises(TypeError, match="GCNConv: dropout must be a float, got str"):
        GCNConv(2, 3, dropout="0.5")


# --- A x of a constant input ---


@pytest.mark.parametrize("sizes", [(6, 11), (11, 6)], ids=["aggregate_first", "transform_first"])
@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_cached_aggregate_of_a_constant_input(sizes, sparsity):
    edge_index, weight = random_graph()
    conv, plain = (GCNConv(*sizes, cached=cached, sparsity=sparsity).double() for cached in (True, False))
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(40, sizes[0], dtype=torch.float64)
    for _ in range(4):
        got, wanted = (run_parameters(c, x, edge_index, weight) for c in (conv, plain))
        assert_close(got, wanted)
    assert conv._kept._ax is not None and conv._kept._ax.shape == x.shape
    x[3] += 1  # in place
    for _ in range(3):
        assert_close([conv(x, edge_index)], [plain(x, edge_index, weight)])
    x.data = torch.randn(40, sizes[0], dtype=torch.float64)
    for _ in range(3):
        assert_close([conv(x, edge_index)], [plain(x, edge_index, weight)])
    leaf = x.clone().requires_grad_()  # the gradient of x still flows
    for _ in range(3):
        grads = [torch.autograd.grad(c(leaf, edge_index, weight).square().sum(), leaf)[0] for c in (conv, plain)]
        assert_close(grads[:1], grads[1:])


def run_parameters(conv, x, edge_index, weight):
    y = conv(x, edge_index, weight)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [p for _, p in sorted(conv.named_parameters())])]


def test_kept_aggregate_is_freed_and_goes_nowhere():
    edge_index, _ = random_graph()
    conv, x = GCNConv(6, 11, cached=True), torch.randn(40, 6)
    for _ in range(3):
        conv(x, edge_index)
    assert conv._kept._ax is not None and not any("kept" in key for key in conv.state_dict())
    assert copy.deepcopy(conv)._kept._ax is None and pickle.loads(pickle.dumps(conv))._kept._ax is None
    conv.reset_parameters()
    assert conv._kept._ax is None
    for _ in range(3):
        conv(x, edge_index)
    del x
    assert conv._kept._ax is None and conv._kept._state is None
    x = torch.randn(40, 6)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = conv(x, edge_index)
    assert low.dtype == torch.bfloat16 and conv(x, edge_index).dtype == torch.float32
    with torch.inference_mode():
        y = torch.randn(40, 6)
        for _ in range(3):
            torch.testing.assert_close(conv(y, edge_index), conv(y.clone(), edge_index))


# --- the function ---


@pytest.mark.parametrize("sparsity", [0.0, 0.7])
@pytest.mark.parametrize("sizes", [(6, 30), (30, 6)], ids=["aggregate_first", "transform_first"])
@pytest.mark.parametrize("weighted", [False, True])
def test_function_equals_layer_and_dense_matrices(sizes, sparsity, weighted):
    edge_index, weight = random_graph()
    graph = CSRGraph.from_edge_index(edge_index, 40, weight if weighted else None)
    conv = GCNConv(*sizes, sparsity=sparsity, act="relu").double()
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(40, sizes[0], dtype=torch.float64, requires_grad=True)
    lin = conv.lin
    pattern = (lin.crow, lin.col, lin.ccol, lin.row, lin.perm) if sparsity else None
    parameter = lin.values if sparsity else lin.weight
    y = gcn(graph, x, parameter, conv.bias, pattern=pattern, act="relu")
    flow = torch.randn_like(y)
    leaves = [x, parameter, conv.bias]
    assert_close(
        [y, *torch.autograd.grad(y, leaves, flow)], [z := conv(x, graph), *torch.autograd.grad(z, leaves, flow)]
    )
    adjacency = torch.zeros(40, 40, dtype=torch.float64)
    adjacency.index_put_(tuple(edge_index.flip(0)), weight if weighted else weight.new_ones(()), accumulate=True)
    adjacency.diagonal().copy_(torch.where(adjacency.diagonal() == 0, 1.0, adjacency.diagonal()))
    scale = adjacency.sum(1).pow(-0.5)
    dense = lin.dense_weight() if sparsity else lin.weight
    assert_close([y], [((scale[:, None] * adjacency * scale) @ x @ dense.T + conv.bias).relu()])
    seed = torch.tensor([9])
    dropped = gcn(graph, x, parameter, conv.bias, pattern=pattern, dropout=0.5, seed=seed)
    plain = gcn(graph, x, parameter, conv.bias, pattern=pattern)
    assert_close([dropped], [2 * plain * (dropped != 0)])
    assert 0.3 < (dropped != 0).double().mean() < 0.7
    assert torch.equal(dropped, gcn(graph, x, parameter, conv.bias, pattern=pattern, dropout=0.5, seed=seed))


def test_errors_of_the_function():
    graph = CSRGraph.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 3)
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    for error, text, args, given in (
        (ValueError, r"gcn: x must have shape \[3, 4\], got \[3, 2\]", (graph, x[:, :2], weight), {}),
        (ValueError, r"gcn: bias must have shape \[5\], got \[4\]", (graph, x, weight, x[0]), {}),
        (TypeError, "gcn: weight must have the dtype of x", (graph, x, weight.double()), {}),
        (ValueError, "gcn: act must be 'none' or 'relu', got 'elu'", (graph, x, weight), dict(act="elu")),
        (TypeError, "gcn: seed must be a Tensor", (graph, x, weight), dict(dropout=0.5)),
    ):
        with pytest.raises(error, match=text):
            gcn(*args, **given)


def test_function_with_improved_loops():
    (edge_index, weight), x = random_graph(), torch.randn(40, 6, dtype=torch.float64)
    theirs, weight = pyg.GCNConv(6, 8, improved=True).double(), weight.double()
    got = gcn(CSRGraph.from_edge_index(edge_index, 40, weight), x, theirs.lin.weight, theirs.bias, improved=True)
    assert_close([got], [theirs(x, edge_index, weight)])
