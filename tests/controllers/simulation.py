"""Sparse training as everyone else does it: dense weights times masks, in numpy where it decides something."""

import numpy as np
import torch
from torch import nn

from sparsegnn import pattern
from sparsegnn.nn import SparseLinear


def sparse_model(seed=0, widths=(20, 16, 6), sparsity=0.8, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = []
    for k, m in zip(widths, widths[1:], strict=False):
        layers += [SparseLinear(k, m, sparsity=sparsity, dtype=dtype), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def masks(model):
    return [
        pattern.to_mask(*m.pattern(), m.in_features).numpy() for m in model.modules() if isinstance(m, SparseLinear)
    ]


def batch(step, model, rows=32):
    g = torch.Generator().manual_seed(1000 + step)
    first = model[0]
    x = torch.randn(rows, first.in_features, generator=g, dtype=torch.float64)
    return x, torch.randn(rows, model[-1].out_features, generator=g, dtype=torch.float64)


def train(model, optimizer, steps, first=0):
    """A loop that knows nothing of sparsity."""
    for step in range(first, first + steps):
        x, y = batch(step, model)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


class MaskedModel:
    """The dense twin of a sparse model: weights, masks, and the update rule written out with sorts over tuples."""

    def __init__(self, model, make_optimizer):
        self.model = nn.Sequential(*(m.to_dense() if isinstance(m, SparseLinear) else m for m in model))
        self.linears = [m for m in self.model if isinstance(m, nn.Linear)]
        self.masks = masks(model)
        self.optimizer = make_optimizer(self.model.parameters())

    def train(self, steps, due=lambda step: False, fraction=None, grow=None):
        for step in range(steps):
            x, y = batch(step, self.model)
            self.optimizer.zero_grad()
            (self.model(x) - y).square().mean().backward()
            dense_gradients = [m.weight.grad.clone().numpy() for m in self.linears]
            for m, mask in zip(self.linears, self.masks, strict=True):
                m.weight.grad *= torch.from_numpy(mask)
            self.optimizer.step()
            if due(step + 1):
                for i, m in enumerate(self.linears):
                    self.move(i, m, fraction(step + 1), grow(i, step + 1, dense_gradients[i]))

    def move(self, i, linear, fraction, score):
        weight, mask = linear.weight.detach().numpy(), self.masks[i]
        active = [tuple(p) for p in np.argwhere(mask)]
        n = int(fraction * len(active))
        kept = set(sorted(active, key=lambda p: (-abs(weight[p]), p))[: len(active) - n])
        free = [p for p in np.ndindex(*mask.shape) if p not in kept]
        grown = set(sorted(free, key=lambda p: (-score[p], p))[:n])
        new = np.zeros_like(mask)
        for p in kept | grown:
            new[p] = True
        alive = torch.from_numpy(new & mask)  # neither dropped nor new
        with torch.no_grad():
            linear.weight *= alive
            for slot in self.optimizer.state[linear.weight].values():
                if torch.is_tensor(slot) and slot.shape == linear.weight.shape:
                    slot *= alive
        self.masks[i] = new

    def assert_equal(self, model):
        for want, got in zip(self.masks, masks(model), strict=True):
            assert np.array_equal(want, got)
        for a, b in zip(self.linears, (m for m in model if isinstance(m, SparseLinear)), strict=True):
            torch.testing.assert_close(b.dense_weight().detach(), a.weight.detach(), rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(b.bias.detach(), a.bias.detach(), rtol=1e-9, atol=1e-11)
