"""N:M by decaying masks against numpy: which weights are out, by how much, and what the latent ones become."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from controllers.pruning.latent import Twin
from controllers.simulation import sparse_model, train
from torch import nn, optim

from sparsegnn import pattern
from sparsegnn.controllers import NMDecay
from sparsegnn.nn import SparseLinear

OPTIMIZERS = [partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2), partial(optim.AdamW, lr=0.02)]


def largest(weight, n, m):
    whole = weight.shape[1] // m * m
    mask = np.ones(weight.shape, dtype=bool)
    for r in range(weight.shape[0]):
        for c in range(0, whole, m):
            order = sorted(range(m), key=lambda j: (-abs(weight[r, c + j]), j))
            mask[r, [c + j for j in order[n:]]] = False
    return mask


def beta_of(kind, rate):
    if kind == "linear":
        return lambda t: max(1 - rate * t, 0)
    return lambda t: np.exp(-rate * t)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["sgd", "adamw"])
@pytest.mark.parametrize("settings, beta, stages", [
    ({"start_at": 3, "stop_at": 9}, beta_of("linear", 1 / 6), [(2, 4)]),
    ({"stop_at": 9, "rate": 0.2, "sr_ste": 0.3}, beta_of("linear", 0.2), [(2, 4)]),
    ({"stop_at": 8, "decay": "exponential", "n": 1}, beta_of("exponential", np.log(1000) / 8), [(1, 4)]),
    ({"start_at": 1, "stop_at": 9, "decay": "structure", "n": 1}, lambda t: 0.0, [(3, 4), (2, 4), (1, 4)]),
    ({"stop_at": 9, "decay": "geometric", "n": 1, "m": 2, "stages": 2}, lambda t: 0.0, [(2, 4), (1, 2)]),
    ({"stop_at": 6, "n": 3, "m": 8, "remainder": "keep"}, beta_of("linear", 1 / 6), [(3, 8)]),
], ids=["linear", "sr-ste", "exponential", "structure", "geometric", "remainder"])  # fmt: skip
def test_is_the_rule(settings, beta, stages, optimizer):
    model = sparse_model(sparsity=0.0)
    twin, mine = Twin(model, optimizer), optimizer(model.parameters())
    method = NMDecay(model, mine, **settings)
    start, stop, sr = settings.get("start_at", 0), settings["stop_at"], settings.get("sr_ste", 0)
    last = (settings.get("n", 2), settings.get("m", 4))

    def mask(step):
        stage = stages[min(int((step - start) / (stop - start) * len(stages)), len(stages) - 1)]
        return [np.where(largest(w.detach().numpy(), *stage), 1, beta(step - start)) for w in twin.weights]

    twin.factors = mask(0) if start == 0 else twin.factors
    for step in range(1, 13):
        hard = step > stop
        twin.step(step, lambda i, g, w: g * twin.factors[i] if hard else g + sr * w * (twin.factors[i] < 1))  # noqa: B023
        if start <= step < stop:
            twin.factors = mask(step)
        elif step == stop:
            for i in range(2):
                twin.cut(i, largest(twin.weights[i].detach().numpy(), *last))
        train(model, mine, 1, first=step)
        twin.assert_equal(model)
        assert method.phase == ("dense" if step < stop else "sparse")
    counts = [int(largest(w.detach().numpy(), *last).sum()) for w in twin.weights]
    assert [m.values.numel() for m in model if isinstance(m, SparseLinear)] == counts
    assert mine.state[model[0].values]["exp_avg" if "exp_avg" in mine.state[model[0].values] else "momentum_buffer"] \
        .shape == model[0].values.shape  # fmt: skip


def test_layers_of_2_4_have_that_pattern_and_are_loaded_again():
    model = sparse_model(sparsity=0.0)
    optimizer = optim.Adam(model.parameters(), lr=0.02)
    method = NMDecay(model, optimizer, stop_at=4)
    train(model, optimizer, 5)
    for layer in (model[0], model[2]):
        assert layer.structure == "2:4" and pattern.two_of_four(*layer.pattern(), layer.in_features)
    fresh = sparse_model(1, sparsity=0.0)
    other = optim.Adam(fresh.parameters(), lr=0.02)
    again = NMDecay(fresh, other, stop_at=4)
    again.load_state_dict(method.state_dict())
    fresh.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 2, first=5)
    train(fresh, other, 2, first=5)
    assert fresh[0].structure == "2:4" and torch.equal(fresh[0].values, model[0].values)


def test_restructure():
    layer = SparseLinear(8, 4, sparsity=0.5, pattern="fan_in")
    for wrong, words in [
        ("grouped:4", "pattern must have the blocks of 'fan_in'"), ("2:4", "two of every four"),
        ("3:4", "pattern must be one of"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            layer.restructure_(wrong)
    layer.restructure_("unstructured")
    assert layer.structure == "unstructured"


@pytest.mark.parametrize("settings, words", [
    ({"n": 4}, "n must be below m, 4, got 4"),
    ({"n": 0}, "n must be at least 1, got 0"),
    ({"decay": "cosine"}, "decay must be 'linear' or 'exponential' or 'structure' or 'geometric', got 'cosine'"),
    ({"decay": "structure", "n": 3, "m": 8}, "m must be n times a power of 2 for structure decay, got 3:8"),
    ({"m": 8}, "layer '0' must have a multiple of 8 inputs for 2:8, got 20"),
    ({"decay": "geometric", "stages": 2}, "layer '0' must have a multiple of 8 inputs for 2:4, got 20"),
    ({"m": 32, "remainder": "keep"}, "layer '0' must have a multiple of 32 inputs"),
    ({"rate": -1.0}, r"rate must be in \[0, 1e\+31\], got -1.0"),
    ({"start_at": 5, "stop_at": 5}, "stop_at must be above start_at, 5, got 5"),
])  # fmt: skip
def test_refused(settings, words):
    model = sparse_model(sparsity=0.0)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="NMDecay: " + words):
        NMDecay(model, optimizer, **settings)
    blocks = nn.Sequential(SparseLinear(16, 16, sparsity=0.0, pattern="grouped:4"))
    with pytest.raises(ValueError, match="NMDecay: model must have layers of pattern 'unstructured' or 'fan_in' or"):
        NMDecay(blocks, optim.SGD(blocks.parameters(), lr=0.1))
