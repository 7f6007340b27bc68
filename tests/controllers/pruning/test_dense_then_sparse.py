"""One-shot, AC/DC and the threshold ramp against masked dense training, masks chosen by sorts in numpy."""

import numpy as np
import pytest
import torch
from controllers.simulation import MaskedModel, masks, sparse_model, train

from sparsegnn.controllers import ACDC, OneShot, ThresholdRamp
from sparsegnn.controllers.distributions import allocate
from sparsegnn.nn import SparseLinear

SHAPES = {"0": (16, 20), "2": (6, 16)}
OPTIMIZERS = {
    "adam": lambda p: torch.optim.AdamW(p, lr=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
}


def setup(cls, optimizer, **settings):
    model = sparse_model(sparsity=0.0)
    twin = Twin(model, OPTIMIZERS[optimizer])
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    return model, optimizer, cls(model, optimizer, **settings), twin


class Twin(MaskedModel):
    """Masks of the weights that ``rule(step)`` leaves: {index: (score, count)}; None for all."""

    reset = False

    def follow(self, steps, first, rule):
        self.train(steps, lambda s: rule(s + first) is not None, lambda s: 0.0, lambda i, s, g: rule(s + first)[i])

    def move(self, i, linear, fraction, score):
        weight, mask = linear.weight.detach().numpy(), self.masks[i]
        if score == "all":
            new = np.ones_like(mask)
        else:
            new, active = np.zeros_like(mask), [tuple(p) for p in np.argwhere(mask)]
            for p in sorted(active, key=lambda p: (-abs(weight[p]), p))[: score(i, weight, mask)]:
                new[p] = True
        with torch.no_grad():
            linear.weight *= torch.from_numpy(new)
            for slot in self.optimizer.state[linear.weight].values():
                if slot.shape == linear.weight.shape:
                    slot *= torch.from_numpy(new & (not self.reset))
        self.masks[i] = new


def counts(distribution):
    final = list(allocate(SHAPES, 0.8, distribution).values())
    return [lambda i, weight, mask: final[i]] * 2


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("distribution", ["erk", {"0": 0.9, "2": 0.3}])
def test_one_shot(optimizer, distribution):
    model, optimizer, _, twin = setup(OneShot, optimizer, sparsity=0.8, distribution=distribution, start_at=4)
    train(model, optimizer, 9)
    twin.follow(9, 0, lambda step: counts(distribution) if step == 4 else None)
    twin.assert_equal(model)
    assert [m.sum() for m in masks(model)] == list(allocate(SHAPES, 0.8, distribution).values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("reset", [False, True])
def test_alternating_phases(optimizer, reset):
    clock = {"start_at": 2, "update_every": 3, "stop_at": 15}  # dense from 5 to 8 and from 11 to the end
    model, optimizer, controller, twin = setup(ACDC, optimizer, sparsity=0.8, reset_state=reset, **clock)
    twin.reset = reset
    rules = {2: counts("erk"), 5: ["all"] * 2, 8: counts("erk"), 11: ["all"] * 2, 15: counts("erk")}
    assert [s for s in range(40) if controller.due(s)] == list(rules)
    for steps, first in ((4, 0), (3, 4), (4, 7), (8, 11)):
        train(model, optimizer, steps, first)
    twin.follow(19, 0, rules.get)
    twin.assert_equal(model)


def test_the_phases_of_the_paper():
    """ResNet-50 in 100 epochs: compressed at 10, 20 ... 70 and 85, dense again at 15, 25 ... 75."""
    _, _, controller, _ = setup(ACDC, "adam", start_at=10, update_every=5, stop_at=85)
    assert [s for s in range(101) if controller.due(s)] == [*range(10, 80, 5), 85]


def test_global_compression():
    model, optimizer, _, twin = setup(ACDC, "adam", distribution="global", start_at=1, update_every=2, stop_at=5)
    train(model, optimizer, 5)
    dense = [m.weight.detach() for m in twin.linears]
    twin.follow(
        5, 0, {1: [lambda i, w, m: kept(dense)[i]] * 2, 3: ["all"] * 2, 5: [lambda i, w, m: kept(dense)[i]] * 2}.get
    )
    twin.assert_equal(model)
    assert sum(m.sum() for m in masks(model)) == 42


def kept(weights):
    """Counts of the 10 % that are largest over both layers."""
    least = np.sort(np.concatenate([w.abs().numpy().ravel() for w in weights]))[-42]
    return [int((w.abs().numpy() >= least).sum()) for w in weights]


@pytest.mark.parametrize("q", [None, 0.15, {"0": 0.1, "2": 0.3}])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_threshold_ramp(optimizer, q):
    t_s, t_r, t_e, freq = 3, 7, 17, 2
    clock = {"start_at": t_s, "ramp_at": t_r, "stop_at": t_e, "update_every": freq}
    model, optimizer, controller, twin = setup(ThresholdRamp, optimizer, sparsity=0.8, q=q, **clock)
    final, heights = list(allocate(SHAPES, 0.8).values()), {}

    def above(step):
        def count(i, weight, mask):
            if i not in heights:
                own = np.sort(abs(weight).ravel())[-final[i]]
                heights[i] = own if q is None else q if isinstance(q, float) else q[list(SHAPES)[i]]
            theta = 2 * heights[i] * freq / (2 * (t_r - t_s) + 3 * (t_e - t_r))
            early, late = theta * (step - t_s + 1), theta * (t_r - t_s + 1) + 1.5 * theta * (step - t_r + 1)
            return max(final[i], int((abs(weight[mask]) >= (early if step < t_r else late) / freq).sum()))

        return [count] * 2

    left = []
    for step in range(20):
        train(model, optimizer, 1, step)
        left.append([m.sum() for m in masks(model)])
    twin.follow(20, 0, lambda s: above(s) if s in (3, 5, 7, 9, 11, 13, 15, 17) else None)
    twin.assert_equal(model)
    assert left == sorted(left, reverse=True) and len({tuple(n) for n in left}) > 4
    assert left[-1][0] >= final[0] and left[-1][1] >= final[1] and sum(left[-1]) < 300
    assert {n: controller.threshold(n, t_e) / controller.q[n] for n in SHAPES} == pytest.approx(
        {"0": 43 / 38, "2": 43 / 38}
    )


@pytest.mark.parametrize("structure", ["fan_in", "grouped:4", "block:16x16"])
def test_patterns_are_kept(structure):
    for cls in (ThresholdRamp, ACDC):
        layer = SparseLinear(32, 48, sparsity=0.0, pattern=structure)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        cls(layer, optimizer, sparsity=0.5, distribution="uniform", start_at=1, update_every=1, stop_at=4)
        for _ in range(5):
            optimizer.zero_grad()
            layer(torch.randn(5, 32)).square().mean().backward()
            optimizer.step()
        again = SparseLinear.from_dense(layer.to_dense(), pattern=structure)
        assert 768 <= again.values.numel() == layer.values.numel() <= (1024 if cls is ThresholdRamp else 768)
