"""Training with masks over latent weights as everyone else does it: functional layers, rules in numpy, no hooks."""

import numpy as np
import torch
from controllers.simulation import batch
from torch import nn
from torch.nn import functional as F

from sparsegnn.nn import SparseLinear

NAMES = ("0", "2")


class Twin:
    """Latent weights of the two layers; ``factors`` is what they are multiplied by in the forward pass."""

    def __init__(self, model, make_optimizer):
        layers = [m for m in model if isinstance(m, SparseLinear)]
        self.weights = [nn.Parameter(m.dense_weight().detach().clone()) for m in layers]
        self.biases = [nn.Parameter(m.bias.detach().clone()) for m in layers]
        self.factors = [np.ones(w.shape) for w in self.weights]
        pairs = zip(self.weights, self.biases, strict=True)
        self.optimizer = make_optimizer([p for pair in pairs for p in pair])
        self.model = model

    def effective(self, i):
        return self.weights[i].detach() * torch.from_numpy(self.factors[i])

    def step(self, step, weight_gradient):
        """One step; returns the gradients of the effective weights and the latent weights that they were made with."""
        x, y = batch(step, self.model)
        used = [self.effective(i).requires_grad_() for i in range(2)]
        self.optimizer.zero_grad()
        h = torch.tanh(F.linear(x, used[0], self.biases[0]))
        (F.linear(h, used[1], self.biases[1]) - y).square().mean().backward()
        before = [w.detach().clone().numpy() for w in self.weights]
        gradients = [w.grad.numpy() for w in used]
        for i, w in enumerate(self.weights):
            given = weight_gradient(i, gradients[i], before[i])
            w.grad = None if given is None else torch.from_numpy(given)
        self.optimizer.step()
        return gradients, before

    def cut(self, i, mask):
        """Nothing is left of the weights that are out, and of what the optimizer knows of them."""
        self.factors[i] = mask.astype(float)
        with torch.no_grad():
            self.weights[i] *= torch.from_numpy(self.factors[i])
            for slot in self.optimizer.state[self.weights[i]].values():
                if slot.shape == self.weights[i].shape:
                    slot *= torch.from_numpy(self.factors[i])

    def assert_equal(self, model, **tolerance):
        tolerance = {"rtol": 1e-9, "atol": 1e-11, **tolerance}
        for i, layer in enumerate(m for m in model if isinstance(m, SparseLinear)):
            torch.testing.assert_close(layer.dense_weight().detach(), self.effective(i), **tolerance)
            torch.testing.assert_close(layer.bias.detach(), self.biases[i].detach(), **tolerance)


class Adam:
    """Kingma and Ba, with decoupled weight decay, on numpy arrays."""

    def __init__(self, arrays, decay=0.0):
        self.m, self.v = ([np.zeros_like(a) for a in arrays] for _ in range(2))
        self.t, self.decay = 0, decay

    def step(self, arrays, gradients, lr):
        self.t += 1
        for a, g, m, v in zip(arrays, gradients, self.m, self.v, strict=True):
            a *= 1 - lr * self.decay
            m[:] = 0.9 * m + 0.1 * g
            v[:] = 0.999 * v + 0.001 * g * g
            a -= lr * (m / (1 - 0.9**self.t)) / (np.sqrt(v / (1 - 0.999**self.t)) + 1e-8)


def highest(arrays, n):
    """Masks of the n highest numbers of all arrays together, at least one of each; ties to the earlier."""
    best = {(i, int(a.argmax())) for i, a in enumerate(arrays)}
    every = [(i, j) for i, a in enumerate(arrays) for j in range(a.size)]
    every.sort(key=lambda p: (p not in best, -arrays[p[0]].flat[p[1]], p))
    found = [np.zeros(a.shape, dtype=bool) for a in arrays]
    for i, j in every[: max(n, len(arrays))]:
        found[i].flat[j] = True
    return found
