"""ProbMask against numpy: soft masks by the logistic trick, a projection found by sorting, an exact last mask."""

from functools import partial

import numpy as np
import pytest
import torch
from controllers.pruning.latent import NAMES, Adam, Twin
from controllers.simulation import sparse_model, train
from torch import optim

from sparsegnn.controllers import ProbMask
from sparsegnn.controllers.pruning.probmask import project_

OPTIMIZERS = [partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2), partial(optim.Adam, lr=0.02)]


def project(p, budget):
    """clip(p - v, 0, 1) of that sum: the v is that of a piecewise linear function, between its corners."""
    if np.clip(p, 0, 1).sum() <= budget:
        return np.clip(p, 0, 1)
    corners = np.unique(np.concatenate([p, p - 1, [0.0]]))
    sums = np.array([np.clip(p - v, 0, 1).sum() for v in corners])
    at = np.flatnonzero(sums > budget)[-1]
    share = (sums[at] - budget) / (sums[at] - sums[at + 1])
    return np.clip(p - (corners[at] + share * (corners[at + 1] - corners[at])), 0, 1)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "adam"])
def test_is_the_rule(optimizer, monkeypatch):
    monkeypatch.setattr("sparsegnn.controllers.pruning.probmask.BISECTIONS", 60)
    model = sparse_model(sparsity=0.0)
    twin, mine = Twin(model, optimizer), optimizer(model.parameters())
    method = ProbMask(model, mine, sparsity=0.8, lr=0.1, start_at=2, sparse_at=9, stop_at=14)
    p = [np.ones(w.shape) for w in twin.weights]
    adam, soft = Adam(p), set()

    def temperature(step):
        return 1 / ((1 - 0.03) * (1 - step / 14) + 0.03)

    for step in range(1, 17):
        gradients, before = twin.step(step, lambda i, g, w: g * twin.factors[i])
        if 2 < step <= 14:
            slopes = [temperature(step - 1) * m * (1 - m) * (1 / (a + 1e-20) + 1 / (1 - a + 1e-20))
                      for a, m in zip(p, twin.factors, strict=True)]  # fmt: skip
            every = [g * w * s for g, w, s in zip(gradients, before, slopes, strict=True)]
            adam.step(p, every, 0.05 * (1 + np.cos(np.pi * (step - 1) / 14)))
            share = 1 - (1 - min((step - 2) / 7, 1)) ** 3
            flat = project(np.concatenate([a.ravel() for a in p]), 416 - round((416 - 83) * share))
            p[0][:], p[1][:] = flat[:320].reshape(16, 20), flat[320:].reshape(6, 16)
        if 2 <= step < 14:
            for i, name in enumerate(NAMES):
                shape = {"generator": method.generator(name, "cpu", step), "dtype": torch.float64}
                u = torch.rand(p[i].size, **shape).numpy().reshape(p[i].shape)
                z = np.log(p[i] + 1e-20) - np.log(1 - p[i] + 1e-20) + np.log(u / (1 - u))
                with np.errstate(over="ignore"):
                    twin.factors[i] = 1 / (1 + np.exp(-temperature(step) * z))
            soft.update(np.round(twin.factors[1], 2).ravel())
        if step == 14:
            size = np.concatenate([abs(w.detach().numpy()).ravel() for w in twin.weights])
            flat = np.concatenate([a.ravel() for a in p])
            kept = np.zeros(416, dtype=bool)
            kept[sorted(range(416), key=lambda j: (-flat[j], -size[j], j))[:83]] = True
            twin.cut(0, kept[:320].reshape(16, 20))
            twin.cut(1, kept[320:].reshape(6, 16))
        train(model, mine, 1, first=step)
        twin.assert_equal(model, rtol=1e-6, atol=1e-8)
    assert len(soft) > 20 and model[0].values.numel() + model[2].values.numel() == 83


@pytest.mark.parametrize("budget", [1, 7, 30, 59.5, 100])
def test_projection(budget):
    rng = np.random.default_rng(0)
    p = rng.normal(0.5, 0.6, size=100)
    parts = [torch.tensor(p[:30]), torch.tensor(p[30:])]
    project_(parts, budget)
    assert np.allclose(np.concatenate([t.numpy() for t in parts]), project(p, budget), atol=1e-5)
    assert sum(t.sum().item() for t in parts) <= budget


def test_defaults_are_shares_of_the_run():
    model = sparse_model(sparsity=0.0)
    method = ProbMask(model, optim.SGD(model.parameters(), lr=0.1), stop_at=100)
    assert (method.start_at, method.sparse_at, method.stop_at, method.settled_at) == (16, 60, 100, 100)


@pytest.mark.parametrize("settings, words", [
    ({"stop_at": 10, "sparse_at": 11}, "sparse_at must be at most stop_at, 10, got 11"),
    ({"stop_at": 10, "start_at": 5, "sparse_at": 5}, "sparse_at must be at least 6, got 5"),
    ({"stop_at": 10, "start_at": 10}, "stop_at must be above start_at, 10, got 10"),
    ({"sparsity": -0.1}, r"sparsity must be in \[0, 1\), got -0.1"),
    ({"distribution": {"0": 0.5}}, "distribution must name layer '2'"),
])  # fmt: skip
def test_refused(settings, words):
    model = sparse_model(sparsity=0.0)
    with pytest.raises(ValueError, match="ProbMask: " + words):
        ProbMask(model, optim.SGD(model.parameters(), lr=0.1), **settings)
