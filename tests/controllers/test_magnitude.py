"""Gradual magnitude pruning against a numpy replay of its counts and choices."""

import numpy as np
import pytest
import torch
from controllers.simulation import MaskedModel, masks, sparse_model, train
from torch import nn

from sparsegnn.controllers import GradualMagnitude
from sparsegnn.controllers.distributions import allocate
from sparsegnn.nn import SparseLinear

SHAPES = {"0": (16, 20), "2": (6, 16)}


def setup(seed=0, **kwargs):
    model = sparse_model(seed, sparsity=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    return model, optimizer, GradualMagnitude(model, optimizer, **kwargs)


@pytest.mark.parametrize("distribution", ["erk", "uniform", {"0": 0.7, "2": 0.2}])
def test_is_masked_dense_pruning(distribution):
    model, optimizer, _ = setup(sparsity=0.8, distribution=distribution, start_at=4, update_every=3, stop_at=18)
    twin = MaskedModel(model, lambda p: torch.optim.AdamW(p, lr=0.02))
    final = allocate(SHAPES, 0.8, distribution)

    def prune(i, linear, fraction, score):
        size, n = linear.weight.numel(), list(final.values())[i]
        keep = size - round((size - n) * (1 - (1 - fraction) ** 3))
        weight = linear.weight.detach().numpy()
        active = sorted((tuple(p) for p in np.argwhere(twin.masks[i])), key=lambda p: (-abs(weight[p]), p))
        mask = np.zeros_like(twin.masks[i])
        for p in active[:keep]:
            mask[p] = True
        with torch.no_grad():
            linear.weight *= torch.from_numpy(mask)
            for slot in twin.optimizer.state[linear.weight].values():
                if slot.shape == linear.weight.shape:
                    slot *= torch.from_numpy(mask)
        twin.masks[i] = mask

    twin.move = prune
    train(model, optimizer, 15)
    twin.train(15, lambda s: s in (4, 7, 10, 13), lambda s: (s - 4) / 14, lambda i, s, g: None)
    twin.assert_equal(model)
    train(model, optimizer, 10, first=15)
    assert {k: m.values.numel() for k, m in zip(SHAPES, (model[0], model[2]), strict=True)} == final


def test_parameters_stay_and_shrink_with_their_state():
    model, optimizer, controller = setup(sparsity=0.9, update_every=2, stop_at=8)
    values = model[0].values
    train(model, optimizer, 12)
    assert model[0].values is values is optimizer.param_groups[0]["params"][0]
    assert {s.shape for k, s in optimizer.state[values].items() if k != "step"} == {values.shape}
    assert sum(m.sum() for m in masks(model)) == sum(allocate(SHAPES, 0.9).values())
    assert controller.updates == 4


def test_a_loop_may_keep_the_loss_of_the_last_step():
    """The graph of that loss is alive when the next one is built, on fewer weights."""
    layer = SparseLinear(8, 6, sparsity=0.0)
    optimizer = torch.optim.Adam(layer.parameters())
    GradualMagnitude(layer, optimizer, sparsity=0.5, update_every=1, stop_at=3)
    for _ in range(4):
        loss = layer(torch.randn(5, 8)).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.isfinite() and layer.values.numel() == 24


def test_global_counts():
    model, optimizer, _ = setup(sparsity=0.75, distribution="global", update_every=1, stop_at=5)
    with torch.no_grad():
        model[2].values.mul_(100)
    train(model, optimizer, 6)
    assert sum(m.sum() for m in masks(model)) == round(0.25 * 416)
    assert masks(model)[1].sum() > 90  # its weights are the largest by far


def test_smaller_layers_are_left_alone():
    model = nn.Sequential(SparseLinear(20, 16, sparsity=0.95).double(), SparseLinear(16, 6, sparsity=0).double())
    before = masks(model)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    GradualMagnitude(model, optimizer, sparsity=0.5, distribution="uniform", update_every=1, stop_at=3)
    train(model, optimizer, 4)
    assert (masks(model)[0] == before).all() and masks(model)[1].sum() == 48


def test_default_stop():
    _, _, controller = setup(update_every=10, start_at=7)
    assert controller.stop_at == 207
    assert [s for s in range(210) if controller.due(s)][:2] == [7, 17] and controller.due(207)
    _, _, at_once = setup(update_every=10, start_at=5, stop_at=5)
    assert [s for s in range(210) if at_once.due(s)] == [5]


def test_refused():
    for bad, text in [
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
        ({"distribution": "even"}, "distribution must be 'erk'"),
        ({"start_at": 9, "stop_at": 8}, "stop_at must be at least 9, got 8"),
        ({"start_at": -1}, "start_at must be at least 0, got -1"),
    ]:
        with pytest.raises(ValueError, match="GradualMagnitude: " + text):
            setup(**bad)
