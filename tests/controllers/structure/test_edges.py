"""Graphs that change in place, the caches that must notice it, and the units that edges are removed in."""

import copy

import pytest
import torch
from controllers.structure.graphs import N, batch, dense, graph
from nn.twins import Initial

from sparsegnn import CSRGraph
from sparsegnn.controllers.structure.edges import Edges, pairs
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
    TAGConv,
)


def half(g, seed=1):
    return torch.randperm(g.num_edges, generator=torch.Generator().manual_seed(seed))[: g.num_edges // 2].sort().values


@pytest.mark.parametrize("weighted", [False, True])
def test_subset_is_the_matrix_without_the_others(weighted):
    g = graph(weighted=weighted)
    slots = half(g)
    wanted = torch.zeros(N, N, dtype=torch.float64)
    for s in slots.tolist():
        row, val = int((g.crow <= s).sum()) - 1, 1.0 if g.val is None else g.val[s].double()
        wanted[row, g.col[s]] += val
    assert torch.equal(dense(g.subset(slots)), wanted)
    new = torch.rand(g.given, dtype=torch.float64)  # in the order of the list that g was made from
    assert torch.equal(g.subset(slots).weighted(new).val, g.weighted(new).val[slots])
    assert g.subset(slots[:0]).num_edges == 0


LAYERS = {
    "gcn": lambda: GCNConv(5, 4),
    "gcn-wide": lambda: GCNConv(5, 9),
    "gcn-cached": lambda: GCNConv(5, 4, cached=True),
    "gcn-cached-wide": lambda: GCNConv(5, 9, cached=True),
    "gcn-improved": lambda: GCNConv(5, 4, improved=True, cached=True),
    "gcn-plain": lambda: GCNConv(5, 4, normalize=False, cached=True),
    "sage": lambda: SAGEConv(5, 4),
    "gin": lambda: GINConv(torch.nn.Linear(5, 4)),
    "sgc-cached": lambda: SGConv(5, 4, K=2, cached=True),
    "sgc-cached-wide": lambda: SGConv(5, 9, K=2, cached=True),
    "tag": lambda: TAGConv(5, 4, K=2),
    "graph-conv": lambda: GraphConv(5, 9),
    "appnp-cached": lambda: APPNP(2, 0.1, cached=True),
    "gcn2-cached": lambda: Initial(GCN2Conv(5, 0.1, cached=True)),
    "gat": lambda: GATConv(5, 4),
    "gat-edges": lambda: GATConv(5, 4, edge_dim=2),
    "gatv2": lambda: GATv2Conv(5, 4, add_self_loops=False),
}


@pytest.mark.parametrize("change", ["topology", "weights", "both"])
@pytest.mark.parametrize("kind", LAYERS)
def test_nothing_derived_before_is_used_after(kind, change):
    """The same call on a graph that was changed and on one that is made as that is now."""
    torch.manual_seed(0)
    conv, x = LAYERS[kind]().double().eval(), torch.randn(N, 5, dtype=torch.float64)
    g = graph(weighted=not kind.startswith("gat"))
    attr = (torch.randn(g.num_edges, 2, dtype=torch.float64),) if kind == "gat-edges" else ()
    if change != "topology" and g.val is None:
        pytest.skip("attention does not use weights")

    def run(graph):
        leaf = x.clone().requires_grad_()
        y = conv(leaf, graph, *attr)
        return y.detach(), torch.autograd.grad(y.square().sum(), leaf)[0]

    for _ in range(3):
        run(g), conv(x, g, *attr)  # kept aggregates of a constant x too
    before = CSRGraph(g.crow, g.col, g.val, g.num_cols, g.perm, num_given=g.num_given)
    if change != "weights":
        g.assign_(g.subset(half(g)))
    if change != "topology":
        g.val = g.val.clone()
        g.write_(torch.rand_like(g.val) + 0.1)
    fresh = CSRGraph(g.crow, g.col, g.val, g.num_cols, g.perm, num_given=g.num_given)
    got, now = run(g), conv(x, g, *attr)
    inner = getattr(conv, "conv", conv)
    if hasattr(inner, "_cached_graph"):
        inner._cached_graph = None
        inner._kept.clear()
    for a, b in zip((*got, now), (*run(fresh), conv(x, fresh, *attr)), strict=True):
        torch.testing.assert_close(a, b)
    assert dense(before).sum() != dense(g).sum()


@pytest.mark.parametrize("how", ["weighted", "copied"])
def test_what_a_cached_layer_made_of_a_graph_goes_with_it(how):
    g, x = graph(), batch()[0]
    conv = GCNConv(7, 4, cached=True).double()
    weight = (torch.rand(g.given, dtype=torch.float64) + 0.5,) if how == "weighted" else ()
    conv(x, g, *weight)
    conv = copy.deepcopy(conv) if how == "copied" else conv
    g.assign_(g.subset(half(g)))
    plain = GCNConv(7, 4).double()
    plain.load_state_dict(conv.state_dict())
    for _ in range(3):
        torch.testing.assert_close(conv(x, g, *weight), plain(x, g, *weight))


def test_copies_stay_what_they_were():
    g = graph(weighted=True)
    copies = [g.weighted(None), g.weighted(torch.rand(g.given)), copy.deepcopy(g), g.looped()[0]]
    before = [dense(c) for c in copies]
    g.assign_(g.subset(half(g)))
    g.val = g.val.clone()
    g.write_(torch.zeros_like(g.val))
    assert all(torch.equal(dense(c), a) for c, a in zip(copies, before, strict=True))
    for c in copies:
        ccol, row, perm = c.transpose()
        assert torch.equal(dense(CSRGraph(ccol, row, None, N)), dense(c.weighted(None)).t())


def test_a_compiled_model_follows():
    model, g, (x, _) = GCNConv(7, 4).double(), graph(), batch()
    model(x, g).sum().backward()
    g.looped()  # which a compiled region can not make, and trainable weights need
    run = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(x, g), model(x, g))
    g.assign_(g.subset(half(g)))
    torch.testing.assert_close(run(x, g), model(x, g))
    g.val = torch.rand(g.num_edges, dtype=torch.float64).requires_grad_()
    got = run(x, g)
    torch.testing.assert_close(got, model(x, g))
    got.sum().backward()
    assert g.val.grad.abs().sum() > 0


def test_assign_refuses_another_shape():
    with pytest.raises(ValueError, match=r"other must have the shape \(14, 14\) on cpu"):
        graph().assign_(CSRGraph.from_edge_index(torch.tensor([[0], [1]]), 3))


# --- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights, undirected", [(None, True), ("symmetric", True), ("other", False)])
def test_pairs(weights, undirected):
    g = graph(weighted=weights == "symmetric")
    if weights == "other":
        g = g.weighted(torch.rand(g.given))
    unit, found = pairs(g)
    ends = [(int(r), int(c)) for r, c in zip(g.rows(), g.col, strict=True)]
    names = {}
    for u, (r, c) in zip(unit.tolist(), ends, strict=True):
        assert (u < 0) == (r == c)
        names.setdefault(u, set()).add((min(r, c), max(r, c)) if undirected else (r, c))
    del names[-1]
    assert found == undirected and all(len(v) == 1 for v in names.values())
    assert sorted(names) == list(range(len(names))) and len(names) == (26 if undirected else 52)


def test_parallel_edges_and_directed_graphs():
    index = torch.tensor([[0, 1, 0, 1, 2, 1], [1, 0, 1, 0, 1, 2]])  # twice 0 - 1, once 1 - 2
    unit, undirected = pairs(CSRGraph.from_edge_index(index, 3))
    assert undirected and unit.bincount().tolist() == [2, 2, 2]
    unit, undirected = pairs(graph(directed=True))
    assert not undirected and unit.max() == 25
    unit, undirected = pairs(CSRGraph.from_edge_index(torch.tensor([[0, 1, 4], [0, 1, 1]]), (2, 5)))
    assert not undirected and unit.tolist() == [0, 1, 2]  # of a bipartite graph none is a self-loop


@pytest.mark.parametrize("weighted", [False, True])
def test_units_stay_or_go_with_both_directions(weighted):
    g = graph(weighted=weighted)
    full = dense(g)
    units = Edges("x", g, torch.Generator().manual_seed(0))
    score = torch.rand(26)
    units.keep(units.best(score, 13))
    now = dense(g)
    assert torch.equal(now, now.t()) and torch.equal(now.diagonal(), full.diagonal())
    assert int((now.triu(1) != 0).sum()) == 13 and torch.equal(now, torch.where(now != 0, full, 0))
    assert units.alive.tolist() == score.topk(13).indices.sort().values.tolist()
    values = torch.rand(13, dtype=torch.float64).requires_grad_()
    spread = units.spread(values)
    flow = torch.rand(g.num_edges, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(spread, values, flow)
    torch.testing.assert_close(units.gather(flow), wanted)
    assert units.count(0.5) == 13 and units.count(0.999) == 1
    units.restore(torch.arange(26))
    assert torch.equal(dense(g), full)


def test_ties_are_broken_by_the_seed_and_stay_so():
    first, other = (Edges("x", graph(), torch.Generator().manual_seed(s)) for s in (0, 1))
    score = torch.zeros(26)
    kept = first.best(score, 13)
    assert not torch.equal(kept, torch.arange(13)) and not torch.equal(kept, other.best(score, 13))
    alive = first.alive[kept]
    first.keep(first.best(score, 20))
    assert torch.equal(first.alive[first.best(score[:20], 13)], alive)
