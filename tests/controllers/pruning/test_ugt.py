"""Untrained tickets against numpy: scores by AdamW of one's own, random weights that stay bit for bit."""

import numpy as np
import pytest
import torch
from controllers.pruning.latent import NAMES, Adam, Twin, highest
from controllers.simulation import sparse_model, train
from torch import optim

from sparsegnn.controllers import UGT
from sparsegnn.controllers.distributions import allocate

SHAPES = {"0": (16, 20), "2": (6, 16)}


@pytest.mark.parametrize("distribution", ["global", "erk"])
@pytest.mark.parametrize("train_rest", [False, True])
def test_is_the_rule(distribution, train_rest):
    model = sparse_model(sparsity=0.0)
    mine = optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    method = UGT(model, mine, sparsity=0.8, distribution=distribution, lr=0.05, weight_decay=0.02, stop_at=12,
                 train_rest=train_rest)  # fmt: skip
    twin = Twin(model, lambda p: optim.AdamW(p[1::2], lr=0.02, weight_decay=0.1))
    scores = [method.scores[name].numpy().reshape(SHAPES[name]).copy() for name in NAMES]
    random = [w.detach().clone() for w in twin.weights]
    for s, w in zip(scores, random, strict=True):
        bound = np.sqrt(6 / w.shape[1])
        assert w.abs().max() <= bound and abs(s).max() <= bound and 0.4 < s.std() / bound < 0.75
    adam, final = Adam(scores, 0.02), allocate(SHAPES, 0.8, "erk")
    for step in range(1, 15):
        if not train_rest:
            for b in twin.biases:
                b.requires_grad_(False)
        gradients, before = twin.step(step, lambda i, g, w: None)
        if step <= 12:
            adam.step(scores, [g * w for g, w in zip(gradients, before, strict=True)], 0.05)
            share = min(1, step / 6)
            if distribution == "global":
                twin.factors = highest(scores, 416 - round((416 - 83) * share))
            else:
                sizes = zip(scores, final.values(), strict=True)
                twin.factors = [highest([s], s.size - round((s.size - n) * share))[0] for s, n in sizes]
            twin.factors = [f.astype(float) for f in twin.factors]
        train(model, mine, 1, first=step)
        twin.assert_equal(model)
    assert method.settled_at == 6 and model[0].values.numel() + model[2].values.numel() in (83, sum(final.values()))
    for layer, w, f in zip((model[0], model[2]), random, twin.factors, strict=True):
        assert torch.equal(layer.dense_weight().detach(), w * torch.from_numpy(f)) and not mine.state[layer.values]


def test_weights_of_the_model_are_kept_if_asked():
    model = sparse_model(sparsity=0.0)
    before = model[0].values.detach().clone()
    UGT(model, optim.SGD(model.parameters(), lr=0.1), redraw=False)
    assert torch.equal(model[0].values, before)


@pytest.mark.parametrize("settings, error, words", [
    ({"sparsity": 1.0}, ValueError, r"sparsity must be in \[0, 1\), got 1.0"),
    ({"distribution": "even"}, ValueError, "distribution must be 'erk'"),
    ({"lr": -0.1}, ValueError, r"lr must be in \[0, 1e\+31\], got -0.1"),
    ({"gain": -1}, ValueError, r"gain must be in \[0, 1e\+31\], got -1"),
    ({"redraw": 1}, TypeError, "redraw must be True or False, got int"),
    ({"stop_at": 0}, ValueError, "stop_at must be above start_at, 0, got 0"),
])  # fmt: skip
def test_refused(settings, error, words):
    model = sparse_model(sparsity=0.0)
    with pytest.raises(error, match="UGT: " + words):
        UGT(model, optim.SGD(model.parameters(), lr=0.1), **settings)
