"""GATConv against PyG's: values and every gradient, over the constructor's options."""

import copy
import io
import itertools

import pytest
import torch
from nn import twins as layers
from nn.twins import twins
from ops.harness import pairwise

from sparsegnn import CSRGraph
from sparsegnn.data import load
from sparsegnn.nn import GATConv, SparseLinear

pytest.importorskip("torch_geometric.nn")


def random_graph(m=40, n=40, e=160, seed=0):
    """Duplicates, isolated nodes, several self-loops of one node."""
    g = torch.Generator().manual_seed(seed)
    edge_index = torch.stack([torch.randint(n - 4, (e,), generator=g), torch.randint(m - 4, (e,), generator=g)])
    return torch.cat([edge_index, torch.tensor([[1, 1, 5], [1, 1, 5]])], 1)


def run(conv, x, edge_index, attr=None, **kwargs):
    """The output, and the gradients of its product with a fixed random tensor."""
    xs = [t.detach().clone().requires_grad_() for t in (x if isinstance(x, tuple) else (x,)) if t is not None]
    given = xs[0] if isinstance(x, torch.Tensor) else (*xs, None)[:2]
    leaves = xs if attr is None else [*xs, attr.detach().clone().requires_grad_()]
    y = conv(given, edge_index, leaves[-1] if attr is not None else None, **kwargs)
    flow = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    leaves += [p for _, p in sorted(conv.named_parameters())]
    grads = torch.autograd.grad(y, leaves, flow, allow_unused=True)
    return [y.detach(), *(torch.zeros(()) if g is None else g for g in grads)]


def assert_close(got, wanted, tolerance=1e-10):
    """Gradients of scores are sums that cancel, some of them to zero."""
    layers.assert_close(got, wanted, tolerance, least=1e-2)


AXES = dict(
    out_channels=(1, 5, 8),
    heads=(1, 3, 8),
    concat=(True, False),
    negative_slope=(0.2, 0.0, 1.0, -0.5),
    add_self_loops=(True, False),
    edge_dim=(None, 1, 4),
    fill_value=("mean", "add", "max", "min", "mul", 0.7),
    bias=(True, False),
    residual=(False, True),
    bipartite=(False, True),
)


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.full)], ids=["pairs", "full"])
def test_agrees_with_pyg_over_all_options(full):
    rows = [dict(zip(AXES, r, strict=True)) for r in itertools.product(*AXES.values())] if full else pairwise(**AXES)
    for seed, row in enumerate(rows):
        given = dict(row)
        bipartite, out_channels = given.pop("bipartite"), given.pop("out_channels")
        edge_index = random_graph(25 if bipartite else 40, seed=seed)
        x = torch.randn(40, 6, dtype=torch.float64)
        x = (x, torch.randn(25, 7, dtype=torch.float64)) if bipartite else x
        attr = torch.randn(edge_index.size(1), given["edge_dim"], dtype=torch.float64) if given["edge_dim"] else None
        ours, theirs = twins("GATConv", (6, 7) if bipartite else 6, out_channels, **given)
        assert_close(run(ours, x, edge_index, attr), run(theirs, x, edge_index, attr))


def test_other_bipartite_inputs():
    x, edge_index = torch.randn(40, 6, dtype=torch.float64), random_graph()
    y = torch.randn(40, 6, dtype=torch.float64)
    for sizes, value, size in [(6, (x, y), None), (6, (x, None), None), ((6, 6), x, None), ((6, 6), (x, None), None)]:
        ours, theirs = twins("GATConv", sizes, 4, heads=2)
        assert_close(run(ours, value, edge_index, size=size), run(theirs, value, edge_index, size=size))
    ours, theirs = twins("GATConv", (6, 6), 4, add_self_loops=False)
    edge_index = random_graph(25)
    assert_close(run(ours, (x, None), edge_index, size=(40, 25)), run(theirs, (x, None), edge_index, size=(40, 25)))


def test_tensor_fill_value_and_flat_edge_attr():
    edge_index, x = random_graph(), torch.randn(40, 6, dtype=torch.float64)
    ours, theirs = twins("GATConv", 6, 4, edge_dim=3, fill_value=torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64))
    attr = torch.randn(edge_index.size(1), 3, dtype=torch.float64)
    assert_close(run(ours, x, edge_index, attr), run(theirs, x, edge_index, attr))
    ours, theirs = twins("GATConv", 6, 4, edge_dim=1)
    assert_close(run(ours, x, edge_index, attr[:, 0]), run(theirs, x, edge_index, attr[:, 0]))


def test_lazy_input_size():
    edge_index, x = random_graph(), torch.randn(40, 6)
    conv = GATConv(-1, 4, heads=2)
    conv(x, edge_index)
    assert conv.lin.weight.shape == (8, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_pyg_on_cora(graph_data_dir, dtype):
    data = load(str(graph_data_dir / "cora.npz"))
    edge_index, x = data.edge_index, data.x.to(dtype)
    for given in (dict(heads=8), dict(heads=8, concat=False, residual=True, add_self_loops=False)):
        ours, theirs = twins("GATConv", x.size(1), 8, dtype=dtype, **given)
        assert_close(run(ours, x, edge_index), run(theirs, x, edge_index), 1e-10 if dtype == torch.float64 else 2e-5)


def test_every_graph_format_gives_the_same():
    torch_sparse = pytest.importorskip("torch_sparse")
    edge_index, x, conv = random_graph(), torch.randn(40, 6), GATConv(6, 4, heads=2)
    edge_index = edge_index.unique(dim=1)
    wanted = conv(x, edge_index)
    ones = torch.ones(edge_index.size(1))
    adj = torch.sparse_coo_tensor(edge_index.flip(0), ones, (40, 40)).coalesce()
    sparse = torch_sparse.SparseTensor(row=edge_index[1], col=edge_index[0], sparse_sizes=(40, 40))
    for form in (CSRGraph.from_edge_index(edge_index, 40), sparse, adj, adj.to_sparse_csr()):
        torch.testing.assert_close(conv(x, form), wanted)


def test_edge_attr_follows_the_order_of_the_edges():
    edge_index, x = random_graph(), torch.randn(40, 6)
    attr, conv = torch.randn(edge_index.size(1), 3), GATConv(6, 4, edge_dim=3)
    order = torch.randperm(edge_index.size(1))
    wanted = conv(x, edge_index, attr)
    torch.testing.assert_close(conv(x, edge_index[:, order], attr[order]), wanted)
    torch.testing.assert_close(conv(x, CSRGraph.from_edge_index(edge_index, 40), attr), wanted)


def test_attention_dropout_follows_manual_seed():
    edge_index, x = random_graph(), torch.randn(40, 6)
    conv = GATConv(6, 4, heads=2, dropout=0.5, bias=False)

    def at(seed):
        torch.manual_seed(seed)
        return run(conv, x, edge_index)

    assert all(torch.equal(a, b) for a, b in zip(at(1), at(1), strict=True))
    assert not torch.equal(at(1)[0], at(2)[0])
    conv.eval()
    assert torch.equal(at(1)[0], at(2)[0])
    graph = CSRGraph.from_edge_index(edge_index, 40)
    with torch.no_grad():
        mean = torch.stack([conv.train()(x, graph) for _ in range(500)]).mean(0)
        torch.testing.assert_close(mean, conv.eval()(x, graph), atol=0.25, rtol=0)


def test_training_a_sparse_layer():
    torch.manual_seed(0)
    graph, x = CSRGraph.from_edge_index(random_graph(), 40), torch.randn(40, 16)
    conv = GATConv(16, 8, heads=4, dropout=0.1, residual=True, sparsity=0.5)
    assert isinstance(conv.lin, SparseLinear) and isinstance(conv.res, SparseLinear)
    optimizer, target, losses = torch.optim.Adam(conv.parameters(), 0.02), torch.randn(40, 32), []
    for _ in range(60):
        loss = (conv(x, graph) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_sparse_layer_equals_the_dense_one_with_zeros():
    edge_index, x = random_graph(), torch.randn(40, 16)
    sparse, dense = GATConv(16, 8, heads=2, sparsity=0.7), GATConv(16, 8, heads=2)
    state = {k: v for k, v in sparse.state_dict().items() if not k.startswith("lin.")}
    dense.load_state_dict(state | {"lin.weight": sparse.lin.to_dense().weight})
    torch.testing.assert_close(sparse(x, edge_index), dense(x, edge_index))


def test_copies_and_checkpoints():
    edge_index, x = random_graph(), torch.randn(40, 6)
    conv = GATConv(6, 4, heads=2, sparsity=0.5)
    file = io.BytesIO()
    torch.save(conv.state_dict(), file)
    file.seek(0)
    loaded = GATConv(6, 4, heads=2, sparsity=0.5)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(conv), loaded):
        assert torch.equal(other(x, edge_index), conv(x, edge_index))


def test_autocast():
    graph, x = CSRGraph.from_edge_index(random_graph(), 40), torch.randn(40, 6)
    conv = GATConv(6, 4, heads=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x, graph)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), conv(x, graph), atol=0.05, rtol=0.05)
    y.sum().backward()
    assert conv.lin.weight.grad.dtype == torch.float32


def test_compiles_without_graph_breaks():
    graph, x = CSRGraph.from_edge_index(random_graph(), 40), torch.randn(40, 6)
    conv = GATConv(6, 4, heads=2)
    wanted = run(conv, x, graph)  # also makes what the graph keeps
    torch._dynamo.reset()
    got = run(torch.compile(conv, fullgraph=True), x, graph)
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GATConv(6, 4, heads=0), "heads must be an int of at least 1, got 0"),
        (lambda: GATConv(6, 4, dropout=1.5), r"dropout must be in \[0, 1\], got 1.5"),
        (lambda: GATConv(6, 4, fill_value="median"), "fill_value must be a number or one of"),
        (lambda: GATConv(6, 4, sparsity=1.0), "sparsity"),
        (lambda: GATConv(6, 4)(torch.randn(40, 5), random_graph()), r"x must have shape \[N, 6\], got \[40, 5\]"),
        (lambda: GATConv(6, 4)(torch.randn(20, 6), random_graph()), "edge_index"),
        (lambda: GATConv(6, 4, edge_dim=2)(torch.randn(40, 6), random_graph(), torch.randn(3, 2)), "edge_attr must"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
