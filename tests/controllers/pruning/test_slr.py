"""SLR and ADMM against a replay in numpy, with the penalty in the loss; and the change of a loss that is not seen."""

import numpy as np
import pytest
import torch
from controllers.simulation import batch, masks, sparse_model, train
from torch import nn

from sparsegnn.controllers import ADMM, SLR
from sparsegnn.controllers.distributions import allocate
from sparsegnn.controllers.pruning.loss_change import LossChange
from sparsegnn.nn import SparseLinear

SHAPES = {"0": (16, 20), "2": (6, 16)}
CLOCK = {"start_at": 3, "update_every": 2, "stop_at": 17}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=1e-3),
    "ascent": lambda p: torch.optim.SGD(p, lr=0.02, maximize=True),  # the loss rises
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=1e-3),
    "adam-anew": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=1e-3),  # in each phase
}


class Replay:
    """Train and prune as in the paper: a dense model, the penalty in the loss, arrays, sorts over positions."""

    def __init__(self, model, make_optimizer, counts, method, rho, s0=0.0, M=200, r=0.1, reset_state=False):
        self.model = nn.Sequential(*(m.to_dense() if isinstance(m, SparseLinear) else m for m in model))
        self.linears = {name: m for name, m in self.model.named_children() if isinstance(m, nn.Linear)}
        self.optimizer = make_optimizer(self.model.parameters())
        self.counts, self.method, self.rho, self.s, self.M, self.r, self.k = counts, method, rho, s0, M, r, 1
        self.masks = {name: np.ones(m.weight.shape) for name, m in self.linears.items()}
        self.Z, self.accepted, self.reset = None, [], reset_state

    def W(self):
        return {name: m.weight.detach().numpy().copy() for name, m in self.linears.items()}

    def kept(self, name, score):
        order = sorted(np.ndindex(*score.shape), key=lambda p: (-abs(score[p]), p))[: self.counts[name]]
        mask = np.zeros(score.shape)
        for p in order:
            mask[p] = 1
        return mask

    def project(self, W):
        V = {n: W[n] + self.L[n] / self.rho for n in W}
        return {n: V[n] * self.kept(n, V[n]) for n in V}

    def lagrangian(self, loss, W, Z):
        U = {n: self.L[n] / self.rho for n in W}
        return loss + sum(self.rho / 2 * (((W[n] - Z[n] + U[n]) ** 2).sum() - (U[n] ** 2).sum()) for n in W)

    def move(self, W, Z, since):
        p = 1 - 1 / self.k**self.r
        alpha = 1 - 1 / (self.M * self.k**p)
        n1 = sum(np.linalg.norm(self.W_prev[n] - self.Z_prev[n]) for n in W)
        n2 = sum(np.linalg.norm(W[n] - Z[n]) for n in W)
        self.s, self.k = alpha * self.s * n1 / n2, self.k + 1
        self.L = {n: self.L[n] + self.s * (W[n] - Z[n]) for n in W}
        self.W_prev, self.Z_prev, self.loss = W, since, 0.0

    def revise(self):
        W = self.W()
        if self.method is ADMM:
            self.Z = self.project(W)
            self.L = {n: self.L[n] + self.rho * (W[n] - self.Z[n]) for n in W}
            return
        fallen = self.lagrangian(self.loss, W, self.Z_prev) < self.lagrangian(0.0, self.W_prev, self.Z_prev)
        self.accepted.append(fallen)
        if fallen or self.k == 1:
            self.move(W, self.Z_prev, self.Z)
        self.Z = self.project(W)
        if self.lagrangian(0.0, W, self.Z) < self.lagrangian(0.0, W, self.Z_prev):
            self.move(W, self.Z, self.Z)

    def train(self, steps, start_at, update_every, stop_at):
        for step in range(steps):
            x, y = batch(step, self.model)
            loss = (self.model(x) - y).square().mean()
            if self.reset and step in (start_at, stop_at):
                for m in self.linears.values():
                    del self.optimizer.state[m.weight]
            if start_at <= step < stop_at:
                point = [p.detach().numpy().copy() for p in self.model.parameters()]
                slope = [g.numpy() for g in torch.autograd.grad(loss, list(self.model.parameters()), retain_graph=True)]
                if step == start_at:
                    self.L, self.loss = {n: np.zeros(w.shape) for n, w in self.W().items()}, 0.0
                    self.Z = self.project(self.W())
                    self.W_prev, self.Z_prev = self.W(), self.Z
                else:
                    for a, b, f, g in zip(self.point, point, self.slope, slope, strict=True):
                        self.loss += ((b - a) * (f + g)).sum() / 2
                self.point, self.slope = point, slope
                if step > start_at and (step - start_at) % update_every == 0:
                    self.revise()
                for n, m in self.linears.items():
                    far = m.weight - torch.from_numpy(self.Z[n]) + torch.from_numpy(self.L[n]) / self.rho
                    loss = loss + self.rho / 2 * far.square().sum()
            self.optimizer.zero_grad()
            loss.backward()
            for n, m in self.linears.items():
                m.weight.grad *= torch.from_numpy(self.masks[n])
            self.optimizer.step()
            if step + 1 == stop_at:
                self.masks = {n: self.kept(n, w) for n, w in self.W().items()}
                for n, m in self.linears.items():
                    mask = torch.from_numpy(self.masks[n])
                    state = [t for t in self.optimizer.state[m.weight].values() if t.shape == m.weight.shape]
                    for tensor in (m.weight.data, *state):
                        tensor *= mask


def close(a, b):
    np.testing.assert_allclose(a.detach().numpy(), b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", [SLR, ADMM])
def test_is_the_paper(method, optimizer):
    settings = {"rho": 0.05} if method is ADMM else {"rho": 0.05, "s0": 0.02, "M": 50, "r": 0.3}
    settings["reset_state"] = optimizer == "adam-anew"
    make = OPTIMIZERS[optimizer]
    model = sparse_model(sparsity=0.0)
    twin = Replay(model, make, allocate(SHAPES, 0.8), method, **settings)
    optimizer = make(model.parameters())
    controller = method(model, optimizer, sparsity=0.8, **CLOCK, **settings)
    seen = {}

    def look(*_):
        if controller.targets:
            seen.update(Z=controller.targets, L={n: t.clone() for n, t in controller.multipliers.items()})

    optimizer.register_step_post_hook(look)
    train(model, optimizer, 24)
    twin.train(24, **CLOCK)
    for name, shape in SHAPES.items():
        close(seen["Z"][name].view(shape), twin.Z[name])
        close(seen["L"][name].view(shape), twin.L[name])
    if method is SLR:
        assert (controller.k, controller.s) == (twin.k, pytest.approx(twin.s, rel=1e-9))
    for mask, layer, linear, want in zip(
        masks(model), (model[0], model[2]), twin.linears.values(), twin.masks.values(), strict=True
    ):
        assert np.array_equal(mask, want)
        close(layer.dense_weight(), linear.weight.detach().numpy())
        close(layer.bias, linear.bias.detach().numpy())


@pytest.mark.parametrize("optimizer", ["sgd", "ascent"])
def test_the_accepted_moves(optimizer):
    """The replays above see both answers of the test."""
    model = sparse_model(sparsity=0.0)
    twin = Replay(model, OPTIMIZERS[optimizer], allocate(SHAPES, 0.8), SLR, 0.05, 0.02, 50, 0.3)
    twin.train(17, **CLOCK)
    assert twin.accepted == [optimizer == "sgd"] * 6


def test_the_loss_that_is_not_seen():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    optimizer, x, y = torch.optim.Adam(model.parameters(), lr=0.01), torch.randn(40, 8).double(), torch.randn(40, 3)
    change, losses = LossChange(optimizer), []
    for step in range(40):
        optimizer.zero_grad()
        loss = 4 * (model(x) - y).square().mean()
        loss.backward()
        change.add(scale=4.0)
        losses.append(loss.item() / 4)
        if step == 10:
            change.reset()
        optimizer.step()
    assert float(change.total) == pytest.approx(losses[-1] - losses[10], rel=2e-3)
    assert losses[10] - losses[-1] > 0.05


def test_the_loss_of_a_quadratic_is_exact():
    """Even one that rises, where following the gradient alone would say that it falls."""
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([w, nn.Parameter(torch.ones(3))], lr=0.7)
    change, curve = LossChange(optimizer), torch.tensor([1.0, 3.0], dtype=torch.float64)
    for _ in range(2):
        optimizer.zero_grad()
        (curve * w.square()).sum().backward()
        change.add()
        optimizer.step()
    assert float(change.total) == pytest.approx((1 * 0.16 + 3 * 40.96) - 13)


@pytest.mark.parametrize("structure", ["fan_in", "grouped:4", "block:16x16"])
def test_targets_have_the_pattern_of_the_layer(structure):
    layer = SparseLinear(32, 48, sparsity=0.0, pattern=structure)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    controller = ADMM(layer, optimizer, sparsity=0.5, distribution="uniform", update_every=1, stop_at=4)
    target = SparseLinear(32, 48, sparsity=0.0, pattern=structure)
    for _ in range(4):
        if controller.targets:
            target.set_pattern_(*layer.pattern(), controller.targets[""].clone())
        optimizer.zero_grad()
        layer(torch.randn(5, 32)).square().sum().backward()
        optimizer.step()
    again = SparseLinear.from_dense(target.to_dense(), pattern=structure)  # the nonzeros, in whole groups
    assert again.values.numel() == layer.values.numel() == 768


def test_layers_that_stay_dense_are_not_pulled():
    model = sparse_model(sparsity=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = SLR(model, optimizer, distribution={"0": 0.9, "2": 0.0}, update_every=1, stop_at=6)
    train(model, optimizer, 4)
    assert list(controller.targets) == ["0"]
    train(model, optimizer, 3, first=4)
    assert [m.sum() for m in masks(model)] == [32, 96] and not controller.targets and not controller.loss_change.weights


@pytest.mark.parametrize("method", [SLR, ADMM])
def test_layers_that_rest_for_a_while(method):
    model = sparse_model(sparsity=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = method(model, optimizer, sparsity=0.8, update_every=1, start_at=1, stop_at=9)
    train(model, optimizer, 3)
    before, model[0].values.requires_grad = model[0].values.detach().clone(), False
    train(model, optimizer, 3, first=3)
    assert torch.equal(model[0].values, before) and controller.rounds == 4
    model[0].values.requires_grad = True
    train(model, optimizer, 4, first=6)
    assert sum(m.sum() for m in masks(model)) == sum(allocate(SHAPES, 0.8).values())


def test_the_penalty_is_scaled_with_the_gradients_of_a_fused_optimizer():
    """Which a GradScaler leaves scaled; a step that it skips changes nothing."""
    runs = []
    for scale in (1.0, 1024.0):
        model = sparse_model(sparsity=0.0).float()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
        controller = SLR(model, optimizer, sparsity=0.8, rho=0.05, update_every=2, start_at=1, stop_at=8)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        for step in range(7):
            x, y = (t.float() for t in batch(step, model))
            for bad in [True, False] if scale > 1 and step in (3, 5) else [False]:
                optimizer.zero_grad()
                loss = (model(x) - y).square().mean()
                scaler.scale(loss * (float("inf") if bad else 1.0)).backward()
                before = controller.state_dict()
                scaler.step(optimizer)
                scaler.update(scale)
                if bad:
                    after = controller.state_dict()
                    assert after["rounds"] == before["rounds"] and after["loss_change"]["total"] == before[
                        "loss_change"]["total"]  # fmt: skip
        runs.append((model[0].values.detach(), controller.targets["0"], controller.k, controller.s))
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
