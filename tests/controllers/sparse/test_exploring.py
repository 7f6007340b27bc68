"""ITOP and DST-EE against dense training with masks, with counters of their own in numpy."""

import math

import numpy as np
import pytest
import torch
from controllers.simulation import MaskedModel, batch, masks, sparse_model, train

from sparsegnn.controllers import DSTEE, ITOP, MEST, RigL
from sparsegnn.nn import SparseLinear

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
}


class CountingTwin(MaskedModel):
    """Counts the rounds of every position, and remembers the union of all masks."""

    def __init__(self, *args):
        super().__init__(*args)
        self.rounds = [m.astype(int) for m in self.masks]

    def move(self, i, linear, fraction, score):
        super().move(i, linear, fraction, score)
        self.rounds[i] += self.masks[i]

    @property
    def explored(self):
        return sum((n > 0).sum() for n in self.rounds) / sum(n.size for n in self.rounds)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_itop(name):
    model = sparse_model()
    twin = CountingTwin(model, OPTIMIZERS[name])
    optimizer = OPTIMIZERS[name](model.parameters())
    itop = ITOP(model, optimizer, update_every=6, stop_at=40)
    assert itop.explored == twin.explored == pytest.approx(0.2, abs=0.01)
    train(model, optimizer, 40)
    fraction = lambda s: 0.005 + 0.495 / 2 * (1 + math.cos(math.pi * s / 40))  # noqa: E731
    twin.train(40, lambda s: s % 6 == 0, fraction, lambda i, s, g: np.abs(g))
    twin.assert_equal(model)
    assert itop.updates == 6 and itop.explored == twin.explored > 0.35
    assert itop.state_dict()["explored"] == twin.explored
    for rounds, n, mask in zip(twin.rounds, itop.rounds.values(), masks(model), strict=True):
        assert np.array_equal(rounds, n.numpy() + mask)  # the last round has not ended


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_dst_ee(name):
    model = sparse_model()
    twin = CountingTwin(model, OPTIMIZERS[name])
    optimizer = OPTIMIZERS[name](model.parameters())
    DSTEE(model, optimizer, update_every=5, stop_at=38, drop_fraction=0.4, c=0.02, eps=0.5, decay=0.5, decay_every=10)
    train(model, optimizer, 40)

    def grow(i, step, g):
        return np.abs(g) + 0.02 * 0.5 ** (step // 10) * math.log(step) / (twin.rounds[i] + 0.5)

    twin.train(40, lambda s: s % 5 == 0 and s < 38, lambda s: 0.2 * (1 + math.cos(math.pi * s / 38)), grow)
    twin.assert_equal(model)


def test_without_a_bonus_it_is_rigl():
    a, b = sparse_model(), sparse_model()
    for model, method in ((a, lambda m, o: DSTEE(m, o, update_every=4, stop_at=20, drop_fraction=0.3, c=0)),
                          (b, lambda m, o: RigL(m, o, update_every=4, stop_at=20))):  # fmt: skip
        optimizer = OPTIMIZERS["adam"](model.parameters())
        method(model, optimizer)
        train(model, optimizer, 20)
    assert all((x == y).all() for x, y in zip(masks(a), masks(b), strict=True))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method, settings", [(DSTEE, {"c": 0.02}), (MEST, {"lam": 20.0})])
def test_gradients_are_those_that_the_optimizer_sees(method, settings, fused):
    """A GradScaler does not change how much a gradient counts beside exploration, or a magnitude."""
    found = []
    for scaled in (False, True):
        model = sparse_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02, fused=fused)
        method(model, optimizer, update_every=3, stop_at=20, drop_fraction=0.5, **settings)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, enabled=scaled)
        for step in range(20):
            x, y = batch(step, model)
            optimizer.zero_grad()
            scaler.scale((model(x) - y).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append(masks(model))
    assert all((x == y).all() for x, y in zip(*found, strict=True))


def test_blocks_are_explored_as_a_whole():
    layer = SparseLinear(48, 32, sparsity=0.75, pattern="grouped:8")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    method = DSTEE(layer, optimizer, update_every=1, stop_at=9, drop_fraction=lambda s: 0.5, c=1e9)
    for _ in range(6):
        layer(torch.randn(4, 48)).sum().backward()
        optimizer.step()
    # the bonus, which begins at step 2, is all that counts: five times half of 48 new ones among 192
    assert method.rounds[""].shape == (4, 48) and method.explored >= (48 + 5 * 24) / 192


def test_counters_stop_at_255():
    layer = SparseLinear(6, 4, sparsity=0.5)
    method = ITOP(layer, torch.optim.SGD(layer.parameters(), lr=0.1), drop_fraction=0.0, last_fraction=0.0)
    for _ in range(300):
        method.update()
    assert method.rounds[""].flatten().sort().values.tolist() == [0] * 12 + [255] * 12


@pytest.mark.parametrize("method, settings, error, text", [
    (ITOP, {"last_fraction": 0.6}, ValueError, r"ITOP: last_fraction must be in \[0, 0.5\], got 0.6"),
    (DSTEE, {"c": -1}, ValueError, r"DSTEE: c must be in \[0, 1e\+30\], got -1"),
    (DSTEE, {"c": "1"}, TypeError, "DSTEE: c must be a number, got str"),
    (DSTEE, {"eps": 0}, ValueError, "DSTEE: eps must be in .*, got 0"),
    (DSTEE, {"decay": 1.5}, ValueError, "DSTEE: decay must be in .* 1], got 1.5"),
    (DSTEE, {"decay_every": 0}, ValueError, "DSTEE: decay_every must be at least 1, got 0"),
])  # fmt: skip
def test_refused(method, settings, error, text):
    layer = SparseLinear(8, 8)
    with pytest.raises(error, match=text):
        method(layer, torch.optim.SGD(layer.parameters(), lr=0.1), **settings)
