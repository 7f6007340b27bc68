"""SRigL against its rule written out over rows of dense matrices in numpy."""

import math

import numpy as np
import pytest
import torch
from controllers.simulation import MaskedModel, masks, train
from torch import nn

from sparsegnn.controllers import SET, GradualMagnitude, RigL, SRigL
from sparsegnn.controllers.initialisers import magnitude_positions
from sparsegnn.nn import SparseLinear

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
}


def fan_in_model(seed=0, widths=(20, 16, 6)):
    torch.manual_seed(seed)
    kind = {"sparsity": 0.7, "pattern": "fan_in", "dtype": torch.float64}
    a, b = (SparseLinear(k, m, **kind) for k, m in zip(widths, widths[1:], strict=False))
    with torch.no_grad():
        a.values.view(16, -1)[:5] *= 1e-3  # outputs that lose their weights first
    return nn.Sequential(a, nn.Tanh(), b)


class Twin(MaskedModel):
    def __init__(self, model, make, gamma):
        super().__init__(model, make)
        self.gamma, self.budget = gamma, [m.sum() for m in self.masks]

    def move(self, i, linear, fraction, score):
        weight, mask = np.abs(linear.weight.detach().numpy()), self.masks[i]
        active = [tuple(p) for p in np.argwhere(mask)]
        n = int(fraction * len(active))
        if n == 0:
            return
        kept = set(sorted(active, key=lambda p: (-weight[p], p))[: len(active) - n])
        free = [p for p in np.ndindex(*mask.shape) if not mask[p]]
        salient = kept | set(sorted(free, key=lambda p: (-score[p], p))[:n])
        fan_in = mask.sum(1).max()
        count = np.array([sum(p[0] == r for p in salient) for r in range(len(mask))])
        alive = (count >= self.gamma * fan_in) | (count == count.max())
        fan_in = min(mask.shape[1], self.budget[i] // alive.sum())
        new = np.zeros_like(mask)
        for r in np.flatnonzero(alive):
            mine = sorted((p for p in kept if p[0] == r), key=lambda p: (-weight[p], p))[:fan_in]
            rest = sorted((p for p in np.ndindex(*mask.shape) if p[0] == r and p not in mine),
                          key=lambda p: (p in kept, -score[p], p))  # fmt: skip
            for p in mine + rest[: fan_in - len(mine)]:
                new[p] = True
        stays = torch.from_numpy(new & mask)
        with torch.no_grad():
            linear.weight *= stays
            for slot in self.optimizer.state[linear.weight].values():
                if torch.is_tensor(slot) and slot.shape == linear.weight.shape:
                    slot *= stays
        self.masks[i] = new


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_is_its_rule(name, gamma):
    model = fan_in_model()
    twin = Twin(model, OPTIMIZERS[name], gamma)
    optimizer = OPTIMIZERS[name](model.parameters())
    values = model[0].values
    method = SRigL(model, optimizer, update_every=4, stop_at=30, drop_fraction=0.4, gamma_sal=gamma)
    for start in range(0, 36, 4):
        train(model, optimizer, 4, first=start)
        for layer, budget in zip((model[0], model[2]), twin.budget, strict=True):
            fan_in = set(layer.crow.diff().tolist()) - {0}
            assert len(fan_in) == 1
            active = layer.values.numel() // next(iter(fan_in))
            full = next(iter(fan_in)) == layer.in_features
            assert budget - active < layer.values.numel() <= budget or full
    twin.train(36, lambda s: s % 4 == 0 and s < 30, lambda s: 0.2 * (1 + math.cos(math.pi * s / 30)),
               lambda i, s, g: np.abs(g))  # fmt: skip
    twin.assert_equal(model)
    assert model[0].values is values and method.updates == 7
    assert (method.ablated["0"] > 0) == (gamma > 0)
    dense, x = model[0].to_dense(), torch.randn(5, 20, dtype=torch.float64)
    torch.testing.assert_close(model[0](x), dense(x))


def test_an_ablated_output_returns():
    """Its bias is left, and once its gradients are the largest it has the fan-in of the others."""
    layer = SparseLinear(8, 4, sparsity=0.5, pattern="fan_in")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    method = SRigL(layer, optimizer, update_every=1, stop_at=9, drop_fraction=lambda s: 0.25, gamma_sal=0.5)
    with torch.no_grad():
        layer.values.fill_(1.0).view(4, 4)[0] = 0.01
    for weight, ablated in (([0.0, 1.0, 1.0, 1.0], 1), ([9.0, 0.1, 0.1, 0.1], 0)):
        optimizer.zero_grad()
        (layer(torch.ones(2, 8)) * torch.tensor(weight)).sum().backward()
        optimizer.step()
        assert method.ablated == {"": ablated}
        assert layer.values.numel() == (15 if ablated else 16)
        assert torch.equal(layer.crow.diff() == 0, torch.tensor([bool(ablated), False, False, False]))


def test_other_methods_refuse_ablated_outputs():
    layer = SparseLinear(8, 4, sparsity=0.5, pattern="fan_in")
    layer.set_pattern_(torch.tensor([0, 4, 8, 8, 8]).int(), torch.arange(4).repeat(2).int(), torch.ones(8))
    assert layer.to_dense().weight.sum() == 8
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    text = r"every output must have inputs \(pattern 'fan_in'\), got 2 that were ablated: use SRigL"
    for method in (RigL, SET, GradualMagnitude):
        with pytest.raises(ValueError, match=f"{method.__name__}: layer '': {text}"):
            method(layer, optimizer)
    with pytest.raises(ValueError, match="SparseLinear: " + text):
        layer.rewire_(torch.rand(8), torch.rand(4, 8), 4)
    with pytest.raises(ValueError, match=text):
        magnitude_positions(layer, 4)
    SRigL(layer, optimizer).detach()
    with pytest.raises(ValueError, match="every output as many inputs, or none"):
        layer.set_pattern_(torch.tensor([0, 4, 7, 7, 8]).int(), torch.tensor([0, 1, 2, 3, 0, 1, 2, 0]).int(),
                           torch.ones(8))  # fmt: skip


def test_a_model_with_ablated_outputs_is_saved_and_loaded():
    model = fan_in_model()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    SRigL(model, optimizer, update_every=2, stop_at=12, gamma_sal=0.6)
    train(model, optimizer, 12)
    other = fan_in_model(seed=1)
    other.load_state_dict(model.state_dict())
    assert all(np.array_equal(a, b) for a, b in zip(masks(model), masks(other), strict=True))


@pytest.mark.parametrize("pattern, settings, error, text", [
    ("fan_in", {"gamma_sal": 1.5}, ValueError, r"SRigL: gamma_sal must be in \[0, 1\], got 1.5"),
    ("fan_in", {"gamma_sal": None}, TypeError, "SRigL: gamma_sal must be a number, got NoneType"),
    ("unstructured", {}, ValueError, "SRigL: model must have layers of pattern 'fan_in' alone, got {'': 'unst"),
])  # fmt: skip
def test_refused(pattern, settings, error, text):
    layer = SparseLinear(8, 8, pattern=pattern)
    with pytest.raises(error, match=text):
        SRigL(layer, torch.optim.SGD(layer.parameters(), lr=0.1), **settings)
