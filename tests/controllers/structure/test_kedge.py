"""HardKuma gates against scipy's integrals and a dense matrix; how they end."""

import copy

import numpy as np
import pytest
import torch
from controllers.structure.graphs import GCN, N, batch, dense, gcn, graph, train
from scipy import integrate

from sparsegnn.controllers.structure import Kedge
from sparsegnn.controllers.structure.edges import pairs
from sparsegnn.controllers.structure.kedge import mean, open_probability, sample


@pytest.mark.parametrize("a, b", [(1.0, 1.0), (2.7, 0.5), (0.6, 3.0)])
def test_distribution(a, b):
    def density(s):
        return a * b * s ** (a - 1) * (1 - s**a) ** (b - 1)

    def z(s):
        return min(1.0, max(0.0, s * 1.2 - 0.1))

    theta = torch.tensor([[a], [b]], dtype=torch.float64).log()
    low, high = 0.1 / 1.2, 1.1 / 1.2
    wanted = integrate.quad(lambda s: z(s) * density(s), low, high)[0] + integrate.quad(density, high, 1)[0]
    assert mean(theta).item() == pytest.approx(wanted, abs=2e-5)
    assert open_probability(theta).item() == pytest.approx(integrate.quad(density, low, 1)[0], abs=1e-6)
    uniform = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    drawn = sample(theta.expand(2, 20000), uniform)
    assert drawn.mean().item() == pytest.approx(wanted, abs=1e-3) and 0 <= drawn.min() and drawn.max() <= 1
    s = np.linspace(0, 1, 9)  # the samples are the inverse of F(s) = 1 - (1 - s^a)^b
    back = sample(theta.expand(2, 9), torch.from_numpy(1 - (1 - s**a) ** b))
    np.testing.assert_allclose(back, [z(v) for v in s], atol=1e-7)


def setup(seed=0, weighted=False, **settings):
    g, model = graph(weighted=weighted), GCN()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    settings = {"penalty": 0.02, "edge_lr": 0.1, "stop_at": 6, **settings}
    return g, model, optimizer, Kedge(model, optimizer, graph=g, seed=seed, **settings)


@pytest.mark.parametrize("weighted", [False, True])
def test_trains_as_a_dense_matrix_with_these_samples(weighted):
    g, model, optimizer, method = setup(weighted=weighted)
    unit, base, rows, cols = pairs(g)[0], dense(g.weighted(None)), g.rows(), g.col.long()
    base = dense(graph(weighted=weighted))
    theta = method.gate.theta.clone().requires_grad_()
    twin, adam = GCN(), torch.optim.Adam([theta], lr=0.1)
    other = torch.optim.Adam(twin.parameters(), lr=0.01)
    for step in range(5):
        u = method._uniform.clone()
        a, b = theta.exp()
        z = ((1 - (1 - u) ** (1 / b)) ** (1 / a) * 1.2 - 0.1).clamp(0, 1)
        matrix = torch.zeros_like(base).index_put((rows, cols), torch.cat([z, z.new_ones(1)])[unit]) * base
        torch.testing.assert_close(dense(g), matrix.detach())
        x, y = batch(step)
        convs = twin.conv1, twin.conv2
        out = gcn(matrix, x, [c.lin.weight for c in convs], [c.bias for c in convs])
        p = (1 - (0.1 / 1.2) ** a) ** b
        adam.zero_grad(), other.zero_grad()
        ((out - y).square().mean() + 0.02 * p.sum()).backward()
        adam.step(), other.step()
        train(model, optimizer, g, 1, first=step)
        torch.testing.assert_close(method.gate.theta, theta.detach(), rtol=1e-8, atol=1e-8)
        assert not torch.equal(method._uniform, u)


def test_ends_with_the_edges_that_are_more_open_than_closed():
    g, model, optimizer, method = setup(penalty=0.5, edge_lr=0.5)
    full = dense(graph())
    train(model, optimizer, g, 5)
    with torch.no_grad():
        method.gate.theta[:, ::2] = torch.tensor([[2.0], [-2.0]])  # open
        method.gate.theta[:, 1::2] = torch.tensor([[-2.0], [2.0]])
        method.gate.lr = 0.0
    train(model, optimizer, g, 1, first=5)
    now, wanted = dense(g), torch.zeros_like(full)
    unit, whole = pairs(graph())[0], graph()
    for u, r, c in zip(unit.tolist(), whole.rows().tolist(), whole.col.tolist(), strict=True):
        wanted[r, c] = float(u % 2 == 0 or u < 0)
    assert torch.equal(now, wanted) and g.val is None and method.updates == 1 and method.settled_at == 6
    train(model, optimizer, g, 2, first=6)
    assert torch.equal(dense(g), wanted) and method.step == 8


@pytest.mark.parametrize("steps", [3, 8])
def test_exact_count_and_finalize(steps):
    g, model, optimizer, method = setup(edge_sparsity=0.5)
    train(model, optimizer, g, steps)
    assert (g.num_edges == 2 * 26 + 2) == (steps < 6)
    before = model(batch()[0], g).detach()
    if steps < 6:
        with pytest.raises(RuntimeError, match="finalize\\(\\) must come after step 6, .* got step 3"):
            method.finalize()
        assert method.attached
    else:
        assert method.finalize() is model
        assert g.num_edges == 2 * 13 + 2 and g.val is None and not method.attached
    assert torch.equal(before, model(batch()[0], g).detach())


@pytest.mark.parametrize("stop", [2, 5, 7])
def test_resumes_bit_for_bit(stop):
    g, model, optimizer, method = setup(edge_sparsity=0.3)
    train(model, optimizer, g, stop)
    state = [copy.deepcopy(x.state_dict()) for x in (model, optimizer, method)]
    train(model, optimizer, g, 9 - stop, first=stop)
    for order in ((0, 1, 2), (2, 1, 0)):
        g2, *parts = setup(edge_sparsity=0.3, seed=7)
        train(parts[0], parts[1], g2, 1)
        for i in order:
            parts[i].load_state_dict(copy.deepcopy(state[i]))
        train(parts[0], parts[1], g2, 9 - stop, first=stop)
        assert torch.equal(dense(g2), dense(g)) and torch.equal(parts[2].gate.theta, method.gate.theta)
        assert all(torch.equal(a, b) for a, b in zip(parts[0].parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("settings, words", [
    ({"penalty": -1.0}, r"penalty must be in \[0, 1e\+30\], got -1.0"),
    ({"stop_at": 0}, "stop_at must be at least 1, got 0"),
    ({"edge_sparsity": 1}, "edge_sparsity must be below 1, got 1"),
    ({"edge_lr": float("nan")}, r"edge_lr must be in \[0, 1e\+30\], got nan"),
])  # fmt: skip
def test_refused(settings, words):
    with pytest.raises(ValueError, match="Kedge: " + words):
        setup(**settings)


@pytest.mark.parametrize("spoil, words", [
    (lambda s: s["edges"].update(alive=torch.arange(27)), r"must be int64 numbers that ascend within \[0, 26\)"),
    (lambda s: s["edges"].update(alive=torch.tensor([3, 2])), "the graph must be the one that the checkpoint's method"),
    (lambda s: s["gates"].update(theta=torch.zeros(1, 26)), r"state\['gates'\]\['theta'\] must be \[2, 26\]"),
    (lambda s: s.update(open=3), r"state\['open'\] must be in \[0, 1\], got 3"),
])  # fmt: skip
def test_a_spoiled_checkpoint_is_refused_and_changes_nothing(spoil, words):
    g, _, _, method = setup()
    state, before = method.state_dict(), dense(g)
    spoil(state)
    with pytest.raises(ValueError, match="Kedge: " + words if words.startswith("state") else words):
        method.load_state_dict(state)
    assert torch.equal(dense(g), before) and dense(g).shape == (N, N)
