"""GraNet: the counts of its cubic, then RigL at that count, against both written out in numpy."""

import math

import numpy as np
import pytest
import torch
from controllers.simulation import MaskedModel, masks, sparse_model, train
from torch import nn

from sparsegnn import pattern
from sparsegnn.controllers import GraNet
from sparsegnn.controllers.distributions import allocate
from sparsegnn.nn import SparseLinear

SHAPES = {"0": (16, 20), "2": (6, 16)}
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
}


class Twin(MaskedModel):
    """Prunes each mask to a count, then moves weights as RigL does."""

    def counts(self, share):
        return [n - round((n - m) * share) for n, m in zip(self.first, self.final, strict=True)]

    def move(self, i, linear, step, score):
        time = (step - 4) / (20 - 4)
        n = self.counts(1 - (1 - time) ** 3)[i]
        weight = np.abs(linear.weight.detach().numpy())
        active = sorted((tuple(p) for p in np.argwhere(self.masks[i])), key=lambda p: (-weight[p], p))
        for p in active[n:]:
            self.masks[i][p] = False
        alive = torch.from_numpy(self.masks[i])
        with torch.no_grad():
            linear.weight *= alive
            for slot in self.optimizer.state[linear.weight].values():
                if torch.is_tensor(slot) and slot.shape == linear.weight.shape:
                    slot *= alive
        if step < 20:
            super().move(i, linear, 0.25 * (1 + math.cos(math.pi * step / 20)), score)


@pytest.mark.parametrize("initial", [None, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_is_its_rule(name, initial):
    model = sparse_model(sparsity=0.0)
    optimizer = OPTIMIZERS[name](model.parameters())
    values = model[0].values
    method = GraNet(model, optimizer, sparsity=0.8, initial_sparsity=initial, start_at=4, update_every=4, stop_at=20)
    twin = Twin(model, OPTIMIZERS[name])
    twin.first = list(allocate(SHAPES, 0.5).values()) if initial else [320, 96]
    twin.final = list(allocate(SHAPES, 0.8).values())
    assert [m.sum() for m in twin.masks] == twin.first
    train(model, optimizer, 25)
    twin.train(25, lambda s: s in (4, 8, 12, 16, 20), lambda s: s, lambda i, s, g: np.abs(g))
    twin.assert_equal(model)
    assert [m.sum() for m in masks(model)] == twin.final
    assert model[0].values is values and method.updates == 5 and method.grown["0"] > 0


def test_global_counts():
    model = sparse_model(sparsity=0.0)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    GraNet(model, optimizer, sparsity=0.75, distribution="global", update_every=1, stop_at=5)
    with torch.no_grad():
        model[2].values.mul_(100)
    total = []
    for step in range(6):
        train(model, optimizer, 1, first=step)
        total.append(int(sum(m.sum() for m in masks(model))))
    assert total == [416 - round(312 * (1 - (1 - s / 5) ** 3)) for s in range(1, 6)] + [104]
    assert masks(model)[1].sum() > 80  # its weights are the largest by far


@pytest.mark.parametrize("kind", ["fan_in", "grouped:8", "block:16x16"])
def test_patterns(kind):
    layer = SparseLinear(96, 64, sparsity=0.0, pattern=kind)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    method = GraNet(layer, optimizer, sparsity=0.75, update_every=2, stop_at=8)
    for _ in range(9):
        optimizer.zero_grad()
        layer(torch.randn(20, 96)).square().sum().backward()
        optimizer.step()
    pattern.check_pattern(*layer.pattern(), *layer.grid)
    assert layer.sparsity == pytest.approx(0.75) and method.grown[""] > 0
    if kind == "fan_in":
        assert layer.crow.diff().unique().numel() == 1


@pytest.mark.parametrize("settings, error, text", [
    ({"initial_sparsity": 0.95}, ValueError, "GraNet: initial_sparsity must be at most the final one, 0.9, got 0.95"),
    ({"initial_sparsity": "half"}, TypeError, "GraNet: initial_sparsity: sparsity must be a number"),
    ({"sparsity": 1}, ValueError, r"GraNet: sparsity must be in \[0, 1\), got 1"),
    ({"stop_at": 3, "start_at": 4}, ValueError, "GraNet: stop_at must be at least 4, got 3"),
    ({"drop_fraction": 2}, ValueError, r"GraNet: drop_fraction must be in \[0, 1\], got 2"),
])  # fmt: skip
def test_refused(settings, error, text):
    model = nn.Sequential(SparseLinear(8, 8, sparsity=0.0), SparseLinear(8, 4, sparsity=0.0))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(error, match=text):
        GraNet(model, torch.optim.SGD(model.parameters(), lr=0.1), **settings)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
