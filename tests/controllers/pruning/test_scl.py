"""Sparse connectivity learning against numpy: normalised score gradients, a penalty, a step through which they pass."""

from functools import partial

import numpy as np
import pytest
from controllers.pruning.latent import Twin, highest
from controllers.simulation import sparse_model, train
from torch import optim

from sparsegnn.controllers import SCL

OPTIMIZERS = [partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2), partial(optim.Adam, lr=0.02)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "adam"])
@pytest.mark.parametrize("sparsity", [0.99, 0.5])
def test_is_the_rule(optimizer, sparsity):
    model = sparse_model(sparsity=0.0)
    twin, mine = Twin(model, optimizer), optimizer(model.parameters())
    method = SCL(model, mine, penalty=0.8, lr=0.15, sparsity=sparsity, start_at=2, stop_at=12)
    scores, seen = [np.ones(w.shape) for w in twin.weights], set()
    for step in range(1, 15):
        gradients, before = twin.step(step, lambda i, g, w: g * twin.factors[i])
        if 2 < step <= 12:
            for s, g, w in zip(scores, gradients, before, strict=True):
                size = np.sqrt(((g * w) ** 2).mean(1, keepdims=True))
                s -= 0.15 * (g * w / np.where(size > 0, size, 1) + 0.8)  # an output that nothing reads has none
            least = highest(scores, round((1 - sparsity) * 416))
            twin.factors = [((s > 0) | m).astype(float) for s, m in zip(scores, least, strict=True)]
        if step == 12:
            for i in range(2):
                twin.cut(i, twin.factors[i] > 0)
        train(model, mine, 1, first=step)
        twin.assert_equal(model)
        seen.add(sum(int(f.sum()) for f in twin.factors))
    assert len(seen) > 3 and (min(seen) == 208 if sparsity == 0.5 else 4 < min(seen) < 100)
    assert model[0].values.numel() + model[2].values.numel() == min(seen) and method.phase == "sparse"


@pytest.mark.parametrize("settings, words", [
    ({"penalty": -1}, r"penalty must be in \[0, 1e\+31\], got -1"),
    ({"penalty": float("nan")}, r"penalty must be in \[0, 1e\+31\], got nan"),
    ({"sparsity": 1}, r"sparsity must be in \[0, 1\), got 1"),
])  # fmt: skip
def test_refused(settings, words):
    model = sparse_model(sparsity=0.0)
    with pytest.raises(ValueError, match="SCL: " + words):
        SCL(model, optim.SGD(model.parameters(), lr=0.1), **settings)
