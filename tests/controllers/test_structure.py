"""Sparse training keeps the structure of a layer: blocks move as a whole, fan-in stays constant."""

import pytest
import torch

from sparsegnn import pattern as patterns
from sparsegnn.controllers import SET, GradualMagnitude, RigL, StaticSparse
from sparsegnn.nn import SparseLinear

KINDS = ("fan_in", "grouped:8", "block:16x16")


def train(layer, controller_of, steps=8):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    controller = controller_of(layer, optimizer)
    x, y = torch.randn(200, 96), torch.randn(200, 64)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(layer(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return controller, optimizer, losses


@pytest.mark.parametrize("method", (StaticSparse, SET, RigL))
@pytest.mark.parametrize("kind", KINDS)
def test_structure_survives_training(kind, method):
    layer = SparseLinear(96, 64, sparsity=0.75, pattern=kind)
    count, before = layer.values.numel(), layer.col.clone()
    storage = layer.values.data_ptr()
    controller, optimizer, losses = train(layer, lambda m, o: method(m, o, update_every=2, stop_at=7))
    patterns.check_pattern(*layer.pattern(), *layer.grid)
    assert layer.values.numel() == count and layer.values.data_ptr() == storage
    assert losses[-1] < losses[0]
    if method is StaticSparse:
        assert torch.equal(layer.col, before)
    else:
        assert controller.updates == 3
        if kind != "block:16x16":  # of six blocks the dropped one may return each time
            assert not torch.equal(layer.col, before) and 0 < controller.grown[""].item() < 3 * count
    if kind == "fan_in":
        assert layer.crow.diff().unique().numel() == 1
    dense, x = layer.to_dense(), torch.randn(5, 96)
    torch.testing.assert_close(layer(x), dense(x))


@pytest.mark.parametrize("kind", KINDS)
def test_state_follows_the_blocks(kind):
    layer = SparseLinear(96, 64, sparsity=0.75, pattern=kind)

    class Probe(SET):
        def carried(self, parameter):
            self.calls = getattr(self, "calls", 0) + 1
            self.optimizer.state[parameter]["exp_avg"].copy_(parameter)  # so that it must go where the values go
            return super().carried(parameter)

        def update(self):
            self.calls = 0
            super().update()
            if self.calls:  # of few blocks none may be due
                assert torch.equal(self.optimizer.state[layer.values]["exp_avg"], layer.values)

    controller, _, _ = train(layer, lambda m, o: Probe(m, o, update_every=2, stop_at=5), steps=5)
    assert controller.updates == 2 and controller.grown[""] > 0


def test_rigl_grows_the_block_with_the_largest_gradient():
    layer = SparseLinear(32, 32, bias=False, sparsity=0.5, pattern="block:16x16")
    layer.set_pattern_(
        torch.tensor([0, 1, 2]).int(),
        torch.tensor([0, 1]).int(),
        torch.cat([torch.full((256,), 0.01), torch.ones(256)]),
    )
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    RigL(layer, optimizer, update_every=1, stop_at=2, drop_fraction=lambda step: 0.5)
    x, flow = torch.zeros(4, 32), torch.zeros(4, 32)
    x[:, 16:], flow[:, :16] = 1, 1  # gradient only at outputs 0..15 by inputs 16..31
    (layer(x) * flow).sum().backward()
    optimizer.step()
    assert layer.col.tolist() == [1, 1] and layer.values[:256].eq(0).all() and layer.values[256:].eq(1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradual_magnitude(kind):
    layer = SparseLinear(96, 64, sparsity=0.0, pattern=kind)
    weight = layer.dense_weight().detach().clone()
    train(layer, lambda m, o: GradualMagnitude(m, o, sparsity=0.75, update_every=2, stop_at=6))
    assert layer.sparsity == pytest.approx(0.75)
    assert layer.structure == kind and weight.shape == layer.dense_weight().shape
    patterns.check_pattern(*layer.pattern(), *layer.grid)
    if kind == "fan_in":
        assert layer.crow.diff().unique().numel() == 1
