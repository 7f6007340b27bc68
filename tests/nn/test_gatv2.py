"""GATv2Conv against PyG's: values and every gradient, over the constructor's options."""

import copy
import itertools

import pytest
import torch
from nn.test_gat import AXES, assert_close, random_graph, run
from nn.twins import twins
from ops.harness import pairwise

from sparsegnn import CSRGraph
from sparsegnn.data import load
from sparsegnn.nn import GATv2Conv, SparseLinear

pytest.importorskip("torch_geometric.nn")
AXES = AXES | dict(share_weights=(False, True))


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.full)], ids=["pairs", "full"])
def test_agrees_with_pyg_over_all_options(full):
    rows = [dict(zip(AXES, r, strict=True)) for r in itertools.product(*AXES.values())] if full else pairwise(**AXES)
    for seed, row in enumerate(rows):
        given = dict(row)
        bipartite, out_channels = given.pop("bipartite"), given.pop("out_channels")
        width = 6 if given["share_weights"] else 7  # of the targets
        edge_index = random_graph(25 if bipartite else 40, seed=seed)
        x = torch.randn(40, 6, dtype=torch.float64)
        x = (x, torch.randn(25, width, dtype=torch.float64)) if bipartite else x
        attr = torch.randn(edge_index.size(1), given["edge_dim"], dtype=torch.float64) if given["edge_dim"] else None
        ours, theirs = twins("GATv2Conv", (6, width) if bipartite else 6, out_channels, **given)
        assert_close(run(ours, x, edge_index, attr), run(theirs, x, edge_index, attr))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_pyg_on_cora(graph_data_dir, dtype):
    data = load(str(graph_data_dir / "cora.npz"))
    edge_index, x = data.edge_index, data.x.to(dtype)
    for given in (dict(heads=8), dict(heads=8, concat=False, residual=True, share_weights=True)):
        ours, theirs = twins("GATv2Conv", x.size(1), 8, dtype=dtype, **given)
        assert_close(run(ours, x, edge_index), run(theirs, x, edge_index), 1e-10 if dtype == torch.float64 else 2e-5)


def test_lazy_input_size():
    edge_index, x = random_graph(), torch.randn(40, 6)
    conv = GATv2Conv(-1, 4, heads=2)
    assert conv(x, edge_index).isfinite().all()
    assert conv.lin_l.weight.shape == conv.lin_r.weight.shape == (8, 6)


def test_new_parameters_are_finite():
    conv = GATv2Conv(6, 4, heads=2, edge_dim=3, residual=True)
    for _ in range(2):
        assert all(p.isfinite().all() and p.abs().max() <= 1 for p in conv.parameters())
        assert conv.lin_l.bias.any() and conv.att.any() and not conv.bias.any()
        conv.reset_parameters()


def test_attention_dropout_follows_manual_seed():
    edge_index, x = random_graph(), torch.randn(40, 6)
    conv = GATv2Conv(6, 4, heads=2, dropout=0.5, edge_dim=2)
    attr = torch.randn(edge_index.size(1), 2)

    def at(seed):
        torch.manual_seed(seed)
        return run(conv, x, edge_index, attr)

    assert all(torch.equal(a, b) for a, b in zip(at(1), at(1), strict=True))
    assert not torch.equal(at(1)[0], at(2)[0])
    conv.eval()
    assert torch.equal(at(1)[0], at(2)[0])


def test_sparse_layer_equals_the_dense_one_with_zeros():
    edge_index, x = random_graph(), torch.randn(40, 16)
    sparse, dense = GATv2Conv(16, 8, heads=2, sparsity=0.7), GATv2Conv(16, 8, heads=2)
    assert isinstance(sparse.lin_l, SparseLinear) and isinstance(sparse.lin_r, SparseLinear)
    state = {k: v for k, v in sparse.state_dict().items() if not k.startswith(("lin_l.", "lin_r."))}
    for name in ("lin_l", "lin_r"):
        linear = getattr(sparse, name).to_dense()
        state |= {f"{name}.weight": linear.weight, f"{name}.bias": linear.bias}
    dense.load_state_dict(state)
    torch.testing.assert_close(sparse(x, edge_index), dense(x, edge_index))
    assert torch.equal(copy.deepcopy(sparse)(x, edge_index), sparse(x, edge_index))


def test_autocast():
    graph, x = CSRGraph.from_edge_index(random_graph(), 40), torch.randn(40, 6)
    conv = GATv2Conv(6, 4, heads=2, edge_dim=3)
    attr = torch.randn(graph.num_edges, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x, graph, attr)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), conv(x, graph, attr), atol=0.05, rtol=0.05)
    y.sum().backward()
    assert conv.lin_l.weight.grad.dtype == conv.att.grad.dtype == torch.float32


def test_compiles_without_graph_breaks():
    graph, x = CSRGraph.from_edge_index(random_graph(), 40), torch.randn(40, 6)
    conv = GATv2Conv(6, 4, heads=2)
    wanted = run(conv, x, graph)  # also makes what the graph keeps
    torch._dynamo.reset()
    got = run(torch.compile(conv, fullgraph=True), x, graph)
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GATv2Conv(6, 4, heads=0), "GATv2Conv: heads must be an int of at least 1, got 0"),
        (lambda: GATv2Conv(6, 4)(torch.randn(40, 5), random_graph()), r"x must have shape \[N, 6\], got \[40, 5\]"),
        (lambda: GATv2Conv(6, 4)((torch.randn(40, 6), None), random_graph()), "x must hold the features"),
        (lambda: GATv2Conv(6, 4, edge_dim=2)(torch.randn(40, 6), random_graph(), torch.randn(3, 2)), "edge_attr must"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
