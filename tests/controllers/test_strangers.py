"""What happens behind the back of a controller is told: other optimizers, replaced averages, values alone."""

import copy
import warnings

import pytest
import torch
from torch import nn

from sparsegnn import SET, GradualMagnitude, RigL, StaticSparse
from sparsegnn.nn import SparseLinear

X = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1),
    "Adam": lambda p: torch.optim.Adam(p, 0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=1),
}


def model():
    return nn.Sequential(SparseLinear(12, 8, sparsity=0.5), nn.ReLU(), SparseLinear(8, 4, sparsity=0.5))


def train(net, optimizer, steps=4):
    def closure():
        optimizer.zero_grad()
        loss = net(X).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("other", OPTIMIZERS)
@pytest.mark.parametrize("method", [RigL, SET])
def test_another_optimizer_is_told_of_once(method, other, both):
    net = model()
    first = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    controller = method(net, first, update_every=2, stop_at=100)
    train(net, first)
    second = OPTIMIZERS[other](list(net[2].parameters()))
    with pytest.warns(
        UserWarning, match=rf"{method.__name__}: the layers \['2'\] are stepped by another optimizer too"
    ):
        train(net, second)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, second)
        if both:
            train(net, first)
    assert controller.step == 8 if both else 4


class Around(torch.optim.Optimizer):
    """As SAM and Lookahead are."""

    def __init__(self, params, inner):
        super().__init__(params, {})
        self.inner = inner
        self.param_groups = inner.param_groups

    def step(self, closure=None):
        return self.inner.step(closure)


@pytest.mark.parametrize("case", ["its own", "around", "another model", "another layer", "detached", "over", "static"])
def test_others_are_not(case):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    kind = StaticSparse if case == "static" else SET
    stop = 3 if case == "over" else 100
    controller = kind(net[0] if case == "another layer" else net, optimizer, update_every=2, stop_at=stop)
    trained = model() if case == "another model" else net
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, optimizer)
        if case == "detached":
            controller.detach()
        new = {"its own": lambda p: optimizer, "around": lambda p: Around(p, optimizer)}
        part = net[2] if case == "another layer" else trained
        train(trained, new.get(case, torch.optim.Adam)(list(part.parameters())))


@pytest.mark.parametrize("method", [RigL, SET, GradualMagnitude])
@pytest.mark.parametrize("told", ["tensors", "views"])
def test_an_average_that_is_replaced_is_told_of(method, told):
    """The commonest hand-written average makes a new tensor at each update."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    controller = method(net, optimizer, update_every=2, stop_at=100)
    shadow = {n: p.detach().clone() for n, p in net.named_parameters()}
    held = list(shadow.values())  # some keep the first ones elsewhere
    controller.move_along((p, shadow[n] if told == "tensors" else shadow[n].data) for n, p in net.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, optimizer)
    del held
    shadow = {n: 0.9 * t + 0.1 * t for n, t in shadow.items()}
    with pytest.warns(
        UserWarning, match=r"averages of the layers \['0', '2'\] that move_along\(\) was given are held by"
    ):
        train(net, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, optimizer)


@pytest.mark.parametrize("method", [RigL, SET])
def test_values_that_come_without_positions(method):
    """``{name: p.clone() for name, p in model.named_parameters()}``, the best so far."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    controller = method(net, optimizer, update_every=2, stop_at=100)
    best = {n: p.detach().clone() for n, p in net.named_parameters()}
    whole = copy.deepcopy(net.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.load_state_dict(best, strict=False)  # nothing has moved
    train(net, optimizer)
    assert controller.updates == 2
    with pytest.warns(UserWarning, match=r"checkpoint '0.values' comes without crow and col"):
        net.load_state_dict(best, strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.load_state_dict(whole)
        other = SparseLinear.from_dense(nn.Linear(12, 8), sparsity=0.5)
        other.load_state_dict({"values": torch.zeros(48)}, strict=False)
