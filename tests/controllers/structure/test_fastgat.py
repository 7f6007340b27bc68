"""Effective resistance against its formula by numpy, and the sparsifier that samples by it."""

import sys

import numpy as np
import pytest
import torch
from controllers.structure.graphs import GCN, N, dense, graph, train

from sparsegnn import CSRGraph
from sparsegnn.controllers.structure import FastGAT, effective_resistance, resistance
from sparsegnn.controllers.structure.edges import Edges
from sparsegnn.controllers.structure.fastgat import sample
from sparsegnn.nn import GATConv


def by_pinv(g):
    """[E]: (e_u - e_v)^T L^+ (e_u - e_v)."""
    a = dense(g).numpy().copy()
    np.fill_diagonal(a, 0)
    inverse = np.linalg.pinv(np.diag(a.sum(1)) - a)
    rows, cols = g.rows().numpy(), g.col.long().numpy()
    return inverse[rows, rows] + inverse[cols, cols] - 2 * inverse[rows, cols]


def components(g):
    from scipy.sparse.csgraph import connected_components

    return connected_components(dense(g).numpy(), directed=False)[0]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("e", [8, 15, 26])  # 8: several components, nodes without edges
def test_resistance_is_the_formula(e, weighted):
    g = graph(weighted=weighted, e=e)
    got = effective_resistance(g)
    np.testing.assert_allclose(got.numpy(), by_pinv(g), rtol=1e-9, atol=1e-12)
    weight = 1 if g.val is None else g.val.double()
    assert (got * weight).sum().item() / 2 == pytest.approx(N - components(g))
    assert got.dtype == torch.float64 and (got[g.rows() == g.col] == 0).all()


def test_parallel_edges_are_conductances_that_add():
    g = CSRGraph.from_edge_index(torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]]), 2)
    assert effective_resistance(g).tolist() == pytest.approx([0.5] * 4)


def test_projections_come_close():
    g = graph(weighted=True)
    exact, got = by_pinv(g), effective_resistance(g, exact=False, projections=400).numpy()
    edge = (g.rows() != g.col).numpy()
    assert np.abs(got[edge] / exact[edge] - 1).max() < 5 * np.sqrt(2 / 400)
    other = effective_resistance(g, exact=False, projections=10, seed=1)
    assert not torch.equal(other, effective_resistance(g, exact=False, projections=10))


def test_without_scipy_large_graphs_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    monkeypatch.setattr(resistance, "EXACT", 10)
    with pytest.raises(ValueError, match="more than 4000 nodes must have scipy's solver: pip install scipy"):
        effective_resistance(graph())


@pytest.mark.parametrize("n, draws", [(13, 0), (25, 0), (None, 60)])
def test_sample_is_drawing_with_replacement(n, draws):
    """Over many samples: how often each edge is there, and the mean of its weight, as numpy's loop has them."""
    g = graph(weighted=True)
    units, r = Edges("x", g, torch.Generator().manual_seed(0)), effective_resistance(g)
    weight, leverage = units.weights(torch.float64).numpy(), np.zeros(26)
    leverage[units.pair[units.pair >= 0]] = r[units.pair >= 0]
    p = weight * leverage / (weight * leverage).sum()
    rng, rounds = np.random.default_rng(0), 150
    wanted, got = np.zeros((2, 26)), np.zeros((2, 26))
    for i in range(rounds):
        count = np.zeros(26)
        if n is None:
            count = np.bincount(rng.choice(26, draws, p=p), minlength=26)
        else:
            order = rng.choice(26, 1500, p=p)
            seen, first = np.unique(order, return_index=True)
            if len(seen) >= n:
                count = np.bincount(order[: np.sort(first)[n - 1] + 1], minlength=26)
        wanted += (count > 0, count / max(count.sum(), 1) / p)
        kept, factor = sample(units, r, torch.Generator().manual_seed(i), n, draws)
        assert n is None or len(kept) == n
        got[0, kept] += 1
        got[1, kept] += factor.numpy()
    error = np.abs(wanted - got) / rounds
    assert error[0].max() < 0.2 and error[1].mean() < 0.25 and error[1].max() < 1
    if n is None:  # the expectation of the Laplacian is that of the graph
        assert abs((got[1] / rounds - 1) * p).sum() < 0.08


@pytest.mark.parametrize("settings", [{"edge_sparsity": 0.5}, {"edge_sparsity": 0.9}, {"epsilon": 1.5}])
@pytest.mark.parametrize("weighted", [False, True])
def test_exact_counts_and_weights(settings, weighted):
    g, model = graph(), GCN()
    full = dense(g)
    optimizer = torch.optim.Adam(model.parameters())
    method = FastGAT(model, optimizer, graph=g, weighted=weighted, **settings)
    now = dense(g)
    assert torch.equal(now, now.t()) and torch.equal(now.diagonal(), full.diagonal())
    count = int((now.triu(1) != 0).sum())
    if "epsilon" in settings:
        draws = int(np.ceil(0.16 * N * np.log(N) / 1.5**2))
        assert 1 <= count <= draws and (not weighted or now.triu(1).sum() > 0)
    else:
        assert count == round(26 * (1 - settings["edge_sparsity"]))
    assert (g.val is None) != weighted and (weighted or set(now.unique().tolist()) <= {0.0, 1.0})
    train(model, optimizer, g, 2)
    assert method.settled_at == 0 and method.updates == 0 and method.finalize() is model
    assert torch.equal(dense(g), now)


def test_seeds_resume_and_gat():
    kept = []
    for seed in (0, 0, 1):
        g, model = graph(), GATConv(7, 3)
        optimizer = torch.optim.Adam(model.parameters())
        kept.append((FastGAT(model, optimizer, graph=g, seed=seed, weighted=True), g))
    (a, ga), (_, gb), (c, gc) = kept
    assert torch.equal(dense(ga), dense(gb)) and not torch.equal(dense(ga), dense(gc))
    c.load_state_dict(a.state_dict())
    assert torch.equal(gc.val, ga.val) and torch.equal(gc.col, ga.col)


@pytest.mark.parametrize("of, settings, words", [
    (lambda: graph(directed=True), {}, "effective_resistance: graph must be symmetric, got one that is not"),
    (lambda: graph().weighted(torch.zeros(54)), {}, "graph must have positive weights, got 0"),
    (graph, {"edge_sparsity": 1.0}, "FastGAT: edge_sparsity must be below 1, got 1.0"),
    (graph, {"edge_sparsity": -0.1}, r"FastGAT: edge_sparsity must be in \[0, 1\], got -0.1"),
    (graph, {"epsilon": 0}, "FastGAT: epsilon must be above 0, got 0"),
    (graph, {"projections": 0}, "effective_resistance: projections must be at least 1, got 0"),
])  # fmt: skip
def test_refused(of, settings, words):
    g, model = of(), GCN()
    before = dense(g)
    with pytest.raises(ValueError, match=words):
        FastGAT(model, torch.optim.SGD(model.parameters(), lr=0.1), graph=g, **settings)
    assert torch.equal(dense(g), before)
