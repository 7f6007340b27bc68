"""``sparsity=`` makes the layers that sparse when a method is attached, for all methods that drop and grow."""

import pytest
import torch
from controllers.simulation import batch, sparse_model, train
from torch import nn

from sparsegnn import pattern as patterns
from sparsegnn.controllers import DSTEE, ITOP, MEST, SET, Freeze, RigL, SRigL, StaticSparse
from sparsegnn.controllers.distributions import allocate
from sparsegnn.nn import SparseLinear

METHODS = (StaticSparse, SET, RigL, ITOP, DSTEE, MEST, Freeze)
KINDS = ("unstructured", "fan_in", "grouped:8", "block:16x16")
CASES = [(m, k) for m in METHODS for k in KINDS] + [(SRigL, "fan_in")]


@pytest.mark.parametrize("method, kind", CASES)
def test_placed_and_trained(method, kind):
    """Exact counts, values and moments kept where a weight stays, the Parameters the same; then the pattern is kept."""
    torch.manual_seed(0)
    model = nn.Sequential(*(SparseLinear(k, m, sparsity=0.0, pattern=kind) for k, m in ((96, 64), (64, 32))))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(20, 96)
    model(x).square().mean().backward()
    optimizer.step()
    before = [m.dense_weight().detach().clone() for m in model]
    moments = [optimizer.state[m.values]["exp_avg"] for m in model]
    if kind == "unstructured":
        moments = [moment.clone().view(m.out_features, -1) for moment, m in zip(moments, model, strict=True)]
    parameters = list(model.parameters())
    controller = method(model, optimizer, sparsity=0.75, distribution="uniform", update_every=2, stop_at=7, seed=3)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    for m, dense, moment in zip(model, before, moments, strict=True):
        assert m.values.numel() == dense.numel() // 4
        weight, mask = m.dense_weight().detach(), m.to_dense().weight != 0
        assert torch.equal(weight, dense.where(mask, 0)) and mask.sum() == m.values.numel()
        if kind == "unstructured":
            assert torch.equal(optimizer.state[m.values]["exp_avg"], moment[mask])
    first = [m.col.clone() for m in model]
    for _ in range(9):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    for m, col in zip(model, first, strict=True):
        assert m.values.numel() <= m.in_features * m.out_features // 4
        patterns.check_pattern(*m.pattern(), *m.grid)
        patterns.check_regular(*m.pattern(), m.in_features, kind, "test")
        assert torch.equal(m.col, col) == (method is StaticSparse) or kind == "block:16x16"
    assert controller.updates == {StaticSparse: 0, Freeze: 4}.get(method, 3)


@pytest.mark.parametrize("distribution", ["erk", "uniform", "global", {"0": 0.7, "2": 0.2}])
def test_counts(distribution):
    model = sparse_model(sparsity=0.0)
    weights = {"0": model[0].values, "2": model[2].values}
    want = allocate({"0": (16, 20), "2": (6, 16)}, 0.8, distribution, weights)
    SET(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=0.8, distribution=distribution)
    assert {"0": model[0].values.numel(), "2": model[2].values.numel()} == want


def test_a_model_of_that_sparsity_stays_as_it_is():
    torch.manual_seed(0)
    layer = SparseLinear(20, 16, sparsity=0.8)
    values, col = layer.values.detach().clone(), layer.col.clone()
    SET(layer, torch.optim.SGD(layer.parameters(), lr=0.1), sparsity=0.8, distribution="uniform").detach()
    assert torch.equal(values, layer.values) and torch.equal(col, layer.col)
    SET(layer, torch.optim.SGD(layer.parameters(), lr=0.1), sparsity=0.5, distribution="uniform")
    assert layer.values.numel() == 160 and layer.values.count_nonzero() == 64  # what is new is zero


def test_depends_on_the_seed_alone():
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(found))
        layer = SparseLinear(20, 16, sparsity=0.0)
        SET(layer, torch.optim.SGD(layer.parameters(), lr=0.1), sparsity=0.8, seed=seed)
        found.append(layer.col)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


@pytest.mark.parametrize("settings, error, text", [
    ({"sparsity": 1.0}, ValueError, r"RigL: sparsity must be in \[0, 1\), got 1.0"),
    ({"sparsity": "0.9"}, TypeError, "RigL: sparsity must be a number"),
    ({"sparsity": 0.5, "distribution": "even"}, ValueError, "RigL: distribution must be 'erk'"),
    ({"sparsity": 0.5, "distribution": {"0": 0.5}}, ValueError, "RigL: distribution must name layer '2'"),
    ({"distribution": {"0": 0.5, "2": 0.5}}, ValueError, "RigL: distribution must come with a sparsity, got none"),
    ({"sparsity": 0.5, "drop_fraction": 2.0}, ValueError, "RigL: drop_fraction must be in"),
    ({"sparsity": 0.5, "stop_at": 1, "start_at": 2}, ValueError, "RigL: stop_at must be at least 2, got 1"),
])  # fmt: skip
def test_refused_before_anything_is_written(settings, error, text):
    model = sparse_model(sparsity=0.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(error, match=text):
        RigL(model, optimizer, **settings)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    RigL(model, optimizer, sparsity=0.5)  # the layers are nobody's
    train(model, optimizer, 1)


@pytest.mark.parametrize("method, settings", [
    (ITOP, {"last_fraction": 0.9}), (DSTEE, {"c": -1}), (MEST, {"lam": -1}), (SRigL, {}), (SRigL, {"gamma_sal": 2}),
    (Freeze, {"freeze_at": [9, 8]}), (MEST, {"soft": None}),
])  # fmt: skip
def test_own_settings_are_checked_before_weights_move(method, settings):
    layer = SparseLinear(8, 8, sparsity=0.0)
    before = layer.values.detach().clone()
    with pytest.raises((TypeError, ValueError), match=f"{method.__name__}: "):
        method(layer, torch.optim.SGD(layer.parameters(), lr=0.1), sparsity=0.5, **settings)
    assert torch.equal(before, layer.values)


def test_layers_that_cannot_be_so_sparse():
    layer = SparseLinear(8, 8, sparsity=0.5, pattern="2:4")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="sparsity must be 0.5 for pattern '2:4'"):
        RigL(layer, optimizer, sparsity=0.75)
    RigL(layer, optimizer, sparsity=0.5).detach()
    layer = SparseLinear(8, 8, sparsity=0.5)
    with pytest.raises(
        ValueError, match=r"SET: distribution must not be 'global' for layers that lack weights, got \['"
    ):
        SET(layer, torch.optim.SGD(layer.parameters(), lr=0.1), sparsity=0.75, distribution="global")


def test_the_loss_of_the_last_step_may_be_alive():
    """Its graph knows the values with their old size."""
    model = sparse_model(sparsity=0.0)
    optimizer = torch.optim.Adam(model.parameters())
    x, y = batch(0, model)
    loss = (model(x) - y).square().mean()
    loss.backward()
    SET(model, optimizer, sparsity=0.8, update_every=1)
    train(model, optimizer, 3)
    assert loss.isfinite()
