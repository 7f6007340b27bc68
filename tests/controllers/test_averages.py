"""Averages of models whose weights move: those of dense weights with masks, or refused; copies of another kind stay."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from controllers.simulation import batch, masks, sparse_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, update_bn

from sparsegnn import SET, GradualMagnitude, RigL
from sparsegnn.nn import SparseLinear

DECAY = 0.9
METHODS = (SET, RigL, GradualMagnitude)
STEPS = 13


class Mean:
    """Of equal weights."""

    def __init__(self):
        self.n = 0

    def __call__(self, old, new):
        return old + (new - old) / self.n


def ema(old, new):
    return DECAY * old + (1 - DECAY) * new


def of(update, freeze=False):
    """Averages by hand: ``update(copy, model)``."""

    class ByHand:
        def __init__(self, model, controller):
            self.module, self.model = copy.deepcopy(model), model
            if freeze:
                self.module.requires_grad_(False)

        def step(self):
            with torch.no_grad():
                update(self.module, self.model)

    return ByHand


def torchs(**kwargs):
    class Torchs:
        def __init__(self, model, controller):
            self.average, self.model = AveragedModel(model, **kwargs), model
            self.module = self.average.module

        def step(self):
            self.average.update_parameters(self.model)

    return Torchs


def lerp(copy, model):
    for p, q in zip(copy.parameters(), model.parameters(), strict=True):
        p.lerp_(q, 1 - DECAY)


def data(copy, model):
    for p, q in zip(copy.parameters(), model.parameters(), strict=True):
        p.data.mul_(DECAY).add_(q.data, alpha=1 - DECAY)


def foreach(copy, model):
    torch._foreach_lerp_(list(copy.parameters()), list(model.parameters()), 1 - DECAY)


def with_buffers(copy, model):
    lerp(copy, model)
    for p, q in zip(copy.buffers(), model.buffers(), strict=True):
        p.copy_(q)


def floats(copy, model):
    for p, q in zip(copy.state_dict().values(), model.state_dict().values(), strict=True):
        if p.is_floating_point():
            p.lerp_(q, 1 - DECAY)


def everything(copy, model):
    """timm's ModelEmaV2: integers too."""
    for p, q in zip(copy.state_dict().values(), model.state_dict().values(), strict=True):
        p.copy_(DECAY * p + (1 - DECAY) * q)


class Loose:
    """Tensors without a layer: torch_ema, diffusers."""

    def __init__(self, model, controller):
        self.model, self.averages = model, [p.detach().clone() for p in model.parameters()]
        controller.move_along(zip(model.parameters(), self.averages, strict=True))

    def step(self):
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.model.parameters()], 1 - DECAY)

    @property
    def module(self):
        module = copy.deepcopy(self.model)
        for p, average in zip(module.parameters(), self.averages, strict=True):
            p.data = average
        return module


class Told:
    def __init__(self, model, controller):
        self.module, self.model = copy.deepcopy(model), model
        controller.move_along(nn.ModuleDict({"ema": self.module}))

    def step(self):
        data(self.module, self.model)


AVERAGES = {
    "AveragedModel": (torchs(), Mean),
    "AveragedModel, buffers": (torchs(use_buffers=True), Mean),
    "AveragedModel, avg_fn": (torchs(avg_fn=lambda old, new, n: old + (new - old) / (n + 1)), Mean),
    "AveragedModel, ema": (torchs(multi_avg_fn=get_ema_multi_avg_fn(DECAY)), lambda: None),
    "AveragedModel, ema of buffers": (torchs(multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True), lambda: None),
    "AveragedModel, ema_fn of buffers": (torchs(avg_fn=get_ema_avg_fn(DECAY), use_buffers=True), lambda: None),
    "lerp": (of(lerp), lambda: ema),
    "lerp, frozen": (of(lerp, freeze=True), lambda: ema),
    "data": (of(data), lambda: ema),
    "data, frozen": (of(data, freeze=True), lambda: ema),
    "foreach": (of(foreach), lambda: ema),
    "buffers copied": (of(with_buffers), lambda: ema),
    "floats of state_dict": (of(floats), lambda: ema),
    "loose": (Loose, lambda: ema),
    "told": (Told, lambda: ema),
}


def setup(cls, **kwargs):
    model = sparse_model(sparsity=0.0 if cls is GradualMagnitude else 0.8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    return model, optimizer, cls(model, optimizer, **{"update_every": 3, "stop_at": 11, **kwargs})


def step(model, optimizer, i):
    x, y = batch(i, model)
    optimizer.zero_grad()
    (model(x) - y).square().mean().backward()
    optimizer.step()


def weights(model):
    return [m.to_dense().weight.detach().numpy() for m in model if isinstance(m, SparseLinear)]


class Oracle:
    """Dense averages: a weight that came begins with the value of the model, one that went is zero."""

    def __init__(self, model, rule):
        self.masks, self.means, self.rule = masks(model), [w.copy() for w in weights(model)], rule
        self.first = rule is None  # AveragedModel's EMA copies the first time
        self.rule = rule or ema

    def follow(self, model):
        for i, (mask, weight) in enumerate(zip(masks(model), weights(model), strict=True)):
            mean = np.where(mask & self.masks[i], self.means[i], np.where(mask, weight, 0))
            self.masks[i], self.means[i] = mask, mean

    def update(self, model):
        new, first, self.first = weights(model), self.first, False
        if isinstance(self.rule, Mean):
            self.rule.n += 1
        self.means = [w.copy() if first else self.rule(a, w) for a, w in zip(self.means, new, strict=True)]

    def assert_equal(self, module):
        for got, want in zip(weights(module), self.means, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
        first, x = module[0], torch.randn(4, 20, dtype=torch.float64, requires_grad=True)
        y = first(x)
        np.testing.assert_allclose((y - first.bias).detach().numpy(), x.detach().numpy() @ self.means[0].T, atol=1e-12)
        (dx,) = torch.autograd.grad(y.sum(), x)
        np.testing.assert_allclose(dx.numpy(), np.tile(self.means[0].sum(0), (4, 1)), atol=1e-12)


@pytest.mark.parametrize("name,cls", [*itertools.product(AVERAGES, (SET, GradualMagnitude)), ("AveragedModel", RigL)])
@pytest.mark.filterwarnings("ignore:.*a copy of this layer changes without a gradient")
def test_averages_are_those_of_dense_weights(name, cls):
    make, rule = AVERAGES[name]
    model, optimizer, controller = setup(cls)
    average, oracle = make(model, controller), Oracle(model, rule())
    for i in range(STEPS):
        step(model, optimizer, i)
        oracle.follow(model)
        average.step()
        oracle.update(model)
    assert controller.updates >= 3 and model[0].probe is None
    oracle.assert_equal(average.module)


@pytest.mark.parametrize("cls", METHODS)
def test_an_average_may_begin_late(cls):
    model, optimizer, controller = setup(cls)
    average = AveragedModel(model, use_buffers=True)
    for i in range(7):
        step(model, optimizer, i)
    assert controller.updates >= 2
    oracle = Oracle(model, Mean())
    for i in range(7, STEPS):
        step(model, optimizer, i)
        oracle.follow(model)
        average.update_parameters(model)
        oracle.update(model)
    update_bn([batch(0, model)[0]], average)
    oracle.assert_equal(average.module)
    before = copy.deepcopy(average.state_dict())
    del model, optimizer, controller  # who had the right positions
    assert all(torch.equal(before[k], t) for k, t in average.state_dict().items())


@pytest.mark.parametrize("update", [lerp, data, foreach, with_buffers])
@pytest.mark.parametrize("use", [nn.Module.state_dict, nn.Module.eval, lambda m: m(batch(0, m)[0])])
def test_a_copy_that_is_averaged_too_late_is_refused(update, use):
    model, optimizer, _ = setup(SET)
    module = copy.deepcopy(model)
    for i in range(4):
        step(model, optimizer, i)
    use(module)  # as long as it is what it was
    with torch.no_grad():
        update(module, model)
    with pytest.raises(RuntimeError, match="values of this copy were overwritten after .*move_along"):
        use(module)
    assert torch.equal(copy.deepcopy(module)[0].values, module[0].values)
    copy.deepcopy(module)(batch(0, model)[0])
    module.load_state_dict(model.state_dict())
    use(module)


def test_a_copy_that_is_overwritten_with_all_of_the_model_is_one():
    model, optimizer, _ = setup(SET)
    module = copy.deepcopy(model)
    for i in range(STEPS):
        step(model, optimizer, i)
        if i in (3, 9):
            for mine, theirs in ((module.parameters(), model.parameters()), (module.buffers(), model.buffers())):
                for p, q in zip(mine, theirs, strict=True):
                    p.data.copy_(q)
            Oracle(model, Mean()).assert_equal(module)


@pytest.mark.parametrize("cls", METHODS)
def test_copies_that_are_no_averages_stay(cls):
    model, optimizer, _ = setup(cls)
    best = copy.deepcopy(model)
    want = copy.deepcopy(best.state_dict())
    member = copy.deepcopy(model)
    for layer in (member[0], member[2]):
        layer.reset_parameters()
    own = copy.deepcopy(member.state_dict())
    tuned, tuner = (lambda m: (m, torch.optim.SGD(m.parameters(), lr=0.1)))(copy.deepcopy(model))
    step(tuned, tuner, 0)
    learned = copy.deepcopy(tuned.state_dict())
    for i in range(STEPS):
        step(model, optimizer, i)
    for copied, state in ((best, want), (member, own), (tuned, learned)):
        assert all(torch.equal(t, copied.state_dict()[k]) for k, t in state.items())
        step(copied, torch.optim.SGD(copied.parameters(), lr=0.1), 0)
        copied(batch(0, model)[0])
    model.load_state_dict(want)
    assert all(torch.equal(t, model.state_dict()[k]) for k, t in want.items())


@pytest.mark.parametrize("freeze", [False, True])
def test_averaged_integers_are_refused_at_the_next_use(freeze):
    model, optimizer, _ = setup(SET)
    average = of(everything, freeze)(model, None)
    average.step()
    with pytest.raises(RuntimeError, match="overwritten .averaged integers.*floating-point tensors alone"):
        average.step()


def test_an_unexpected_average_is_announced_once():
    model, optimizer, _ = setup(SET)
    module = copy.deepcopy(model).requires_grad_(False)
    with pytest.warns(UserWarning, match="taken for an average") as seen:
        for i in range(STEPS):
            step(model, optimizer, i)
            with torch.no_grad():
                lerp(module, model)
    assert len([w for w in seen if "average" in str(w.message)]) == 2  # a layer


@pytest.mark.parametrize("cls,at", [(SET, 2), (GradualMagnitude, 5)])
@pytest.mark.parametrize("resume", ["copies", "copies of averages first", "pickles", "states"])
def test_averages_go_on_after_a_restart(cls, at, resume):
    model, optimizer, controller = setup(cls)
    average, oracle = AveragedModel(model), Oracle(model, Mean())
    for i in range(STEPS):
        if i == at and resume == "copies":
            model, optimizer, controller, average = copy.deepcopy((model, optimizer, controller, average))
        elif i == at and resume == "copies of averages first":
            average, model, optimizer, controller = copy.deepcopy((average, model, optimizer, controller))
        elif i == at and resume == "pickles":
            parts = pickle.dumps((average, model, optimizer, controller))
            average, model, optimizer, controller = pickle.loads(parts)
        elif i == at:
            parts = (model, optimizer, controller, average)
            states = copy.deepcopy([part.state_dict() for part in parts])
            model, optimizer, controller = setup(cls)
            average = AveragedModel(model)
            for part, state in zip((model, optimizer, controller, average), states, strict=True):
                part.load_state_dict(state)
        step(model, optimizer, i)
        oracle.follow(model)
        average.update_parameters(model)
        oracle.update(model)
    oracle.assert_equal(average.module)


def test_a_copy_of_an_average_alone():
    model, optimizer, _ = setup(SET)
    average = AveragedModel(model)
    for i in range(4):
        step(model, optimizer, i)
        average.update_parameters(model)
    best, saved = copy.deepcopy(average), pickle.loads(pickle.dumps(average))
    before = copy.deepcopy(best.state_dict())
    average = copy.deepcopy(average)  # who goes on, as an average
    oracle = Oracle(model, Mean())
    oracle.means, oracle.rule.n = [w.copy() for w in weights(average.module)], 4
    with pytest.warns(UserWarning, match="taken for an average"):
        for i in range(4, STEPS):
            average.update_parameters(model) if i == 4 else None
            oracle.update(model) if i == 4 else None
            step(model, optimizer, i)
            oracle.follow(model)
            average.update_parameters(model)
            oracle.update(model)
    oracle.assert_equal(average.module)
    for other in (best, saved):
        assert all(torch.equal(before[k], t) for k, t in other.state_dict().items())


def test_an_average_at_other_positions_is_refused():
    model, optimizer, _ = setup(SET)
    average = AveragedModel(model)
    average.load_state_dict(AveragedModel(sparse_model(seed=5)).state_dict())
    with pytest.raises(RuntimeError, match="an average of this layer must be at its positions"):
        for i in range(3):
            step(model, optimizer, i)


def test_what_cannot_move_along_is_refused():
    model, optimizer, controller = setup(SET)
    other, tensors = copy.deepcopy(model), [p.clone() for p in model.parameters()]
    for i in range(3):
        step(model, optimizer, i)
    for bad, message in (
        (model, "got the model itself"),
        (nn.Linear(3, 3), "must have one layer for '0', got 0"),
        (other, "must be at the positions of the model, got layer '0' at others"),
        (zip(model.parameters(), tensors[::-1], strict=True), r"must have a tensor \[64\] for layer '0'"),
        (zip(other.parameters(), tensors, strict=True), "must have pairs with the values"),
    ):
        with pytest.raises(ValueError, match=f"SET: copies .*{message}|SET: copies {message}"):
            controller.move_along(bad)


def test_layers_are_not_kept_alive_by_their_copies():
    model, optimizer, _ = setup(SET)
    for i in range(STEPS):
        step(copy.deepcopy(model), optimizer, i)
        step(model, optimizer, i)
    assert not model[0]._copies
