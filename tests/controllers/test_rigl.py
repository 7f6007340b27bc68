"""RigL and SET against dense training with masks: equal positions, weights and state after every update."""

import numpy as np
import pytest
import torch
from controllers.simulation import MaskedModel, masks, sparse_model, train

from sparsegnn import pattern
from sparsegnn.controllers import SET, RigL
from sparsegnn.controllers.schedules import Constant, Cosine
from sparsegnn.nn import SparseLinear

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.02, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.02, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rigl_is_masked_dense_rigl(name):
    model = sparse_model()
    twin = MaskedModel(model, OPTIMIZERS[name])
    optimizer = OPTIMIZERS[name](model.parameters())
    before = masks(model)
    RigL(model, optimizer, update_every=5, stop_at=32, drop_fraction=0.4)
    train(model, optimizer, 40)
    fraction = Cosine(0.4, 32)
    twin.train(40, lambda s: s % 5 == 0 and s < 32, fraction, lambda i, s, g: np.abs(g))
    twin.assert_equal(model)
    assert all((a != b).any() and a.sum() == b.sum() for a, b in zip(before, masks(model), strict=True))


def test_set_is_masked_dense_set():
    model = sparse_model()
    twin = MaskedModel(model, OPTIMIZERS["adam"])
    optimizer = OPTIMIZERS["adam"](model.parameters())
    controller = SET(model, optimizer, update_every=4, stop_at=30, drop_fraction=Constant(0.25), seed=3)
    names, scores = list(controller.layers), {}
    random_scores = controller.random_scores

    def record(name, layer):
        scores[names.index(name), controller.step] = s = random_scores(name, layer)
        return s

    controller.random_scores = record
    train(model, optimizer, 36)
    due = lambda s: s % 4 == 0 and s < 30  # noqa: E731
    twin.train(36, due, Constant(0.25), lambda i, s, g: scores[i, s].double().numpy())
    twin.assert_equal(model)
    assert all(layer.probe is None for layer in controller.layers.values())


def test_random_growth_is_uniform_over_free_positions():
    counts = np.zeros((16, 20))
    for seed in range(100):
        model = sparse_model()
        before = masks(model)[0]
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        SET(model, optimizer, drop_fraction=Constant(0.5), seed=seed).update()
        counts += masks(model)[0] & ~before
    free = counts[~before]
    assert (counts[before] == 0).all()
    # 32 of 288 candidates (256 free, 32 just dropped) each time: mean 11.1, standard deviation 3.1
    assert abs(free.mean() - 100 * 32 / 288) < 0.5 and free.min() > 0 and free.max() < 26


def test_growth_ignores_nothing_but_kept_positions():
    """A just-dropped weight with the largest gradient comes back, with its value and its momentum."""
    model = sparse_model(widths=(6, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    class Back(RigL):
        def grow_scores(self, name, layer):
            return pattern.to_mask(*layer.pattern(), layer.in_features).double()

    Back(model, optimizer, update_every=1, stop_at=4, drop_fraction=Constant(0.5))
    other = sparse_model(widths=(6, 4))
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 6)
    train(other, other_optimizer, 6)
    assert torch.equal(model[0].values, other[0].values) and torch.equal(model[0].col, other[0].col)
    assert torch.equal(
        optimizer.state[model[0].values]["momentum_buffer"],
        other_optimizer.state[other[0].values]["momentum_buffer"],
    )


def test_updates_are_due_before_the_stop_alone():
    layer = SparseLinear(8, 8, sparsity=0.5)
    controller = SET(layer, torch.optim.SGD(layer.parameters(), 0.1), update_every=2, stop_at=6)
    assert [step for step in range(10) if controller.due(step)] == [2, 4]


def test_probe_exists_on_update_steps_only():
    model = sparse_model()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    controller = RigL(model, optimizer, update_every=3, stop_at=9)
    seen = []
    for step in range(12):
        seen.append(model[0].probe is not None)
        train(model, optimizer, 1, first=step)
    assert [i + 1 for i, s in enumerate(seen) if s] == [3, 6]
    assert controller.updates == 2


def test_dense_gradient_covers_all_micro_batches():
    model = sparse_model(widths=(6, 4))
    optimizer, gradients = torch.optim.SGD(model.parameters(), lr=0.1), []

    class Watch(RigL):
        def grow_scores(self, name, layer):
            gradients.append(self.dense_gradient(layer).clone())
            return super().grow_scores(name, layer)

    Watch(model, optimizer, update_every=1, stop_at=2, drop_fraction=Constant(0.5))
    dense = model[0].to_dense()
    for seed in (1, 2):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        model(x).square().sum().backward()
        dense(x).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(gradients[0], dense.weight.grad)


def test_a_layer_without_part_in_the_step_is_left_alone():
    model = sparse_model()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    RigL(model, optimizer, update_every=1, stop_at=3)
    before = masks(model)
    model[0](torch.randn(4, 20, dtype=torch.float64)).sum().backward()
    optimizer.step()
    after = masks(model)
    assert (before[0] != after[0]).any() and (before[1] == after[1]).all()


def test_every_update_draws_anew():
    model = sparse_model()
    controller = SET(model, OPTIMIZERS["sgd"](model.parameters()), update_every=1)
    (name, layer), *_ = controller.layers.items()
    draws = []
    for controller.step in (1, 2, 3, 2):
        draws.append(controller.random_scores(name, layer))
    assert torch.equal(draws[1], draws[3])
    assert all((a != b).float().mean() > 0.9 for a, b in zip(draws[:2], draws[1:3], strict=True))


@pytest.mark.parametrize("kind", ["unstructured", "grouped:8"])
def test_sparse_features_are_trained_as_dense_ones(kind):
    """Positions, values and state, though dense gradients are made of the nonzeros of the features alone."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 48, generator=g, dtype=torch.float64) * (torch.rand(60, 48, generator=g) < 0.1)
    x[:, 7] = 0  # a feature that no node has
    y, found = torch.randint(4, (60,), generator=g), []
    for features in (x, x.to_sparse_csr()):
        torch.manual_seed(1)
        first, last = SparseLinear(48, 32, sparsity=0.8, pattern=kind).double(), torch.nn.Linear(32, 4).double()
        model = torch.nn.Sequential(first, torch.nn.Tanh(), last)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        controller = RigL(model, optimizer, update_every=3, stop_at=20, drop_fraction=0.4)
        for _ in range(24):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(features), y).backward()
            optimizer.step()
        assert controller.updates == 6
        state = optimizer.state[first.values]
        found.append((*first.pattern(), first.values.detach(), state["exp_avg"], state["exp_avg_sq"]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_probe_takes_no_memory():
    """Zeros that are one number: the dense gradient beside it is all that an update needs."""
    layer = SparseLinear(512, 256, sparsity=0.9)
    RigL(layer, torch.optim.SGD(layer.parameters(), 0.1), update_every=1, stop_at=6)
    assert layer.probe.shape == (256, 512) and layer.probe.untyped_storage().nbytes() == 4
    layer(torch.randn(8, 512)).sum().backward()
    assert layer.probe.grad.is_contiguous() and layer.probe.grad.shape == (256, 512)
