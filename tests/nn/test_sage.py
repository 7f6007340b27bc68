"""SAGEConv against PyG's: values and every gradient, over the constructor's options."""

import copy

import pytest
import torch
from nn.twins import assert_close
from ops.harness import pairwise

from sparsegnn import CSRGraph, nn
from sparsegnn.nn import SAGEConv, SparseLinear

pyg = pytest.importorskip("torch_geometric.nn")

AXES = dict(
    aggr=("mean", "add", "sum", "max", "min"),
    normalize=(False, True),
    root_weight=(True, False),
    project=(False, True),
    bias=(True, False),
)


def twins(*sizes, **options):
    theirs, ours = pyg.SAGEConv(*sizes, **options).double(), SAGEConv(*sizes, **options).double()
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    return ours, theirs


def run(conv, x, edge_index, **more):
    leaves = [t.detach().clone().requires_grad_() for t in (x if isinstance(x, tuple) else (x,)) if t is not None]
    given = leaves[0] if not isinstance(x, tuple) else (*leaves, None)[:2]
    y = conv(given, edge_index, **more)
    flow = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = [*leaves, *(p for _, p in sorted(conv.named_parameters()))]
    return [y.detach(), *(g for g in torch.autograd.grad(y, wanted, flow, allow_unused=True) if g is not None)]


def edges(rows=30, cols=30, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(cols, (120,), generator=g), torch.randint(rows - 2, (120,), generator=g)])


@pytest.mark.parametrize("sizes", [(6, 11), (11, 6)], ids=["aggregate_first", "transform_first"])
def test_agrees_with_pyg_over_all_options(sizes):
    for seed, given in enumerate(pairwise(**AXES)):
        x = torch.randn(30, sizes[0], dtype=torch.float64)
        ours, theirs = twins(*sizes, **given)
        assert_close(run(ours, x, edges(seed=seed)), run(theirs, x, edges(seed=seed)))


def test_graph_as_edge_index_and_weights_do_not_count():
    ours, x = SAGEConv(6, 4), torch.randn(30, 6)
    graph = CSRGraph.from_edge_index(edges(), 30, torch.rand(120))
    assert torch.equal(ours(x, graph), ours(x, edges()))


@pytest.mark.parametrize("given", [dict(), dict(aggr="max"), dict(project=True)])
def test_bipartite_as_pyg(given):
    ours, theirs = twins((6, 9), 4, **given)
    x = torch.randn(40, 6, dtype=torch.float64), torch.randn(25, 9, dtype=torch.float64)
    assert_close(run(ours, x, edges(25, 40)), run(theirs, x, edges(25, 40)))
    ours, theirs = twins((6, 6), 4, root_weight=False, **given)
    alone = x[0], None
    assert_close(run(ours, alone, edges(25, 40), size=(40, 25)), run(theirs, alone, edges(25, 40), size=(40, 25)))


def test_lazy_and_sparse():
    x = torch.randn(30, 6)
    lazy = SAGEConv(-1, 4)
    assert lazy(x, edges()).shape == (30, 4) and lazy.lin_l.weight.shape == (4, 6) and lazy.lin_r.weight.shape == (4, 6)
    sparse = SAGEConv(6, 40, sparsity=0.8)
    assert isinstance(sparse.lin_l, SparseLinear) and isinstance(sparse.lin_r, SparseLinear)
    dense = SAGEConv(6, 40)
    dense.lin_l, dense.lin_r = sparse.lin_l.to_dense(), sparse.lin_r.to_dense()
    torch.testing.assert_close(sparse(x, edges()), dense(x, edges()))
    again = copy.deepcopy(sparse)
    again.load_state_dict(sparse.state_dict())
    assert torch.equal(again(x, edges()), sparse(x, edges()))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda x: SAGEConv(6, 4, aggr="lstm"),
            "SAGEConv: aggr must be one of add, sum, mean, max, min, or .* got 'lstm'",
        ),
        (lambda x: SAGEConv(-1, 4, project=True), "SAGEConv: in_channels must be given with project, got -1"),
        (lambda x: SAGEConv(7, 4)(x, edges()), r"SAGEConv: x must have shape \[N, 7\], got \[30, 6\]"),
        (lambda x: SAGEConv(6, 4)((x, None), edges()), "SAGEConv: size must be given where x has no targets"),
        (
            lambda x: SAGEConv(6, 4)(x, CSRGraph.from_edge_index(edges(), 31)),
            r"SAGEConv: x must have one row per node of the graph \(31, 31\)",
        ),
    ],
)
def test_bad_arguments(make, message):
    assert nn.SAGEConv is SAGEConv
    with pytest.raises(ValueError, match=message):
        make(torch.randn(30, 6))
