"""MEST, elastic mutation and its soft memory bound, against the rule over sets of positions."""

import numpy as np
import pytest
import torch
from controllers.simulation import MaskedModel, batch, masks, sparse_model, train

from sparsegnn import pattern
from sparsegnn.controllers import MEST
from sparsegnn.controllers.schedules import Halving
from sparsegnn.nn import SparseLinear

OPTIMIZERS = {
    # foreach and Nesterov: torch adds the momentum to the gradients in place
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
}


class Twin(MaskedModel):
    """``draws`` are the random scores of the method under test, ``lam`` what gradients count."""

    def train(self, steps, due, fraction, draws, lam=0.0, own=None):
        self.lam, self.own = lam, own
        for step in range(steps):
            x, y = batch(step, self.model)
            self.optimizer.zero_grad()
            (self.model(x) - y).square().mean().backward()
            for m, mask in zip(self.linears, self.masks, strict=True):
                m.weight.grad *= torch.from_numpy(mask)
            self.gradients = [m.weight.grad.abs().numpy().copy() for m in self.linears]
            self.optimizer.step()
            if due(step + 1):
                for i, m in enumerate(self.linears):
                    self.move(i, m, fraction(step + 1), draws.get((i, step + 1)))

    def move(self, i, linear, fraction, score):
        weight, mask = np.abs(linear.weight.detach().numpy()) + self.lam * self.gradients[i], self.masks[i]
        active = sorted((tuple(p) for p in np.argwhere(mask)), key=lambda p: (-weight[p], p))
        keep, total = len(active) - int(fraction * len(active)), len(active)
        if self.own:
            keep, total = self.own[i], self.own[i] + int(fraction * self.own[i])
        new = np.zeros_like(mask)
        for p in active[:keep]:
            new[p] = True
        free = sorted((p for p in np.ndindex(*mask.shape) if not new[p]), key=lambda p: (-score[p], p))
        for p in free[: max(0, total - min(keep, len(active)))]:
            new[p] = True
        alive = torch.from_numpy(new & mask)
        with torch.no_grad():
            linear.weight *= alive
            for slot in self.optimizer.state[linear.weight].values():
                if torch.is_tensor(slot) and slot.shape == linear.weight.shape:
                    slot *= alive
        self.masks[i] = new


def recorded(method):
    """The random scores that a method draws from now on, by layer and step."""
    names, scores, draw = list(method.layers), {}, method.random_scores

    def record(name, layer):
        scores[names.index(name), method.step] = draw(name, layer).double().numpy()
        return draw(name, layer)

    method.random_scores = record
    return scores


@pytest.mark.parametrize("lam", [0.0, 3.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_elastic_mutation(name, lam):
    model = sparse_model()
    twin = Twin(model, OPTIMIZERS[name])
    optimizer = OPTIMIZERS[name](model.parameters())
    method = MEST(model, optimizer, update_every=4, stop_at=24, lam=lam)
    draws = recorded(method)
    probes = 0
    for step in range(28):
        train(model, optimizer, 1, first=step)
        probes += any(layer.probe is not None for layer in method.layers.values())
    fraction = lambda s: 0.5 if s < 18 else 0.25  # noqa: E731
    twin.train(28, lambda s: s % 4 == 0 and s < 24, fraction, draws, lam)
    twin.assert_equal(model)
    assert method.updates == 5 and probes == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_soft_bound(name):
    model = sparse_model()
    twin = Twin(model, OPTIMIZERS[name])
    optimizer = OPTIMIZERS[name](model.parameters())
    own, values = [int(m.sum()) for m in masks(model)], model[0].values
    method = MEST(model, optimizer, update_every=4, stop_at=24, soft=True, lam=0.5)
    draws, counts = recorded(method), []
    for step in range(28):
        train(model, optimizer, 1, first=step)
        counts.append(int(masks(model)[0].sum()))
    soft = [own[0] + int(f * own[0]) for f in (0.5, 0.25)]
    assert counts == [own[0]] * 3 + [soft[0]] * 16 + [soft[1]] * 4 + [own[0]] * 5
    fraction = lambda s: 0.5 if s < 18 else 0.25 if s < 24 else 0.0  # noqa: E731
    twin.train(28, lambda s: s % 4 == 0 and s <= 24, fraction, draws, 0.5, own)
    twin.assert_equal(model)
    assert model[0].values is values and method.updates == 6


@pytest.mark.parametrize("kind", ["fan_in", "grouped:8", "block:16x16"])
def test_soft_bound_of_patterns(kind):
    layer = SparseLinear(96, 64, sparsity=0.75, pattern=kind)
    optimizer, sizes = torch.optim.Adam(layer.parameters(), lr=0.01), []
    MEST(layer, optimizer, update_every=2, stop_at=8, soft=True)
    for _ in range(9):
        optimizer.zero_grad()
        layer(torch.randn(20, 96)).square().sum().backward()
        optimizer.step()
        sizes.append(layer.values.numel() / 6144)
    pattern.check_pattern(*layer.pattern(), *layer.grid)
    want = [0.25] + [0.375] * 4 + [5 / 16] * 2 + [0.25] * 2
    assert sizes == pytest.approx(want, abs=0.03) and sizes[-1] == 0.25
    if kind == "fan_in":
        assert layer.crow.diff().unique().numel() == 1


def test_halving():
    assert [Halving(0.4, 6, 8)(s) for s in (0, 5, 6, 7, 8, 99)] == [0.4, 0.4, 0.2, 0.2, 0.0, 0.0]


@pytest.mark.parametrize("kind, settings, error, text", [
    ("unstructured", {"lam": -1}, ValueError, r"MEST: lam must be in \[0, 1e\+30\], got -1"),
    ("unstructured", {"soft": 1}, TypeError, "MEST: soft must be True or False, got int"),
    ("2:4", {"soft": True}, ValueError, "MEST: model must have no layer of pattern '2:4', whose sparsity is fixed"),
])  # fmt: skip
def test_refused(kind, settings, error, text):
    layer = SparseLinear(8, 8, sparsity=0.5, pattern=kind)
    with pytest.raises(error, match=text):
        MEST(layer, torch.optim.SGD(layer.parameters(), lr=0.1), **settings)
