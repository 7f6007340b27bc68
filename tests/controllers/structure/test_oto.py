"""OTO against HSPG written out with loops over hand-made groups, and what compaction makes of its zeros."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsegnn
from sparsegnn import CSRGraph
from sparsegnn.controllers import OTO, RigL
from sparsegnn.nn import GATConv, GCNConv, SparseLinear

MAKE = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}


def mlp(seed=0, sparse=False):
    torch.manual_seed(seed)
    first = SparseLinear(5, 6, sparsity=0.3) if sparse else nn.Linear(5, 6)
    return nn.Sequential(first, nn.ReLU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def loss(model, step):
    g = torch.Generator().manual_seed(step)
    x = torch.randn(16, 5, generator=g, dtype=torch.float64)
    y = torch.randn(16, 2, generator=g, dtype=torch.float64)
    return (model(x) - y).square().mean()


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()


class Simulation:
    """HSPG as the paper has it, group by group: (rows of one weight, one number of one bias)."""

    def __init__(self, model, optimizer, penalty, wanted, start_at, every, stop_at):
        self.model, self.optimizer, self.penalty, self.wanted = model, optimizer, penalty, wanted
        self.start_at, self.every, self.stop_at = start_at, every, stop_at
        self.groups = [(layer, i) for layer in (model[0], model[2]) for i in range(layer.weight.shape[0])]
        self.dead, self.epsilon, self.trace = [], 0.0, []

    def get(self, group, what=lambda p: p.detach()):
        layer, i = group
        return torch.cat([what(layer.weight)[i], what(layer.bias)[i : i + 1]]).clone()

    def kill(self, group):
        layer, i = group
        self.dead.append(group)
        for p in (layer.weight, layer.bias):
            p.data[i] = 0
            for slot in self.optimizer.state[p].values():
                if torch.is_tensor(slot) and slot.shape == p.shape:
                    slot[i] = 0

    def strongest(self):
        alive = [g for g in self.groups if g not in self.dead]
        layers = {id(layer): layer for layer, _ in alive}.values()
        return [max((g for g in alive if g[0] is x), key=lambda g: self.get(g).norm()) for x in layers]

    def weakest(self, chosen):
        keep = self.strongest()
        chosen = [g for g in chosen if g not in keep and g not in self.dead]
        for g in sorted(chosen, key=lambda g: self.get(g).norm())[: self.wanted - len(self.dead)]:
            self.kill(g)

    def step(self, step):
        self.optimizer.zero_grad()
        loss(self.model, step - 1).backward()
        more, old = len(self.dead) < self.wanted and step <= self.stop_at, {}
        for g in self.groups:
            layer, i = g
            x = self.get(g)
            for p, part in ((layer.weight, x[:-1]), (layer.bias, x[-1])):
                if g in self.dead:
                    p.grad[i] = 0
                elif more:
                    p.grad[i] += self.penalty * part / x.norm()
            old[g] = x
        self.optimizer.step()
        if step == self.stop_at:
            self.weakest(self.groups)
        elif self.start_at < step < self.stop_at and (step - self.start_at) % self.every == 0:
            if len(self.dead) < self.wanted:
                self.epsilon = min(0.999, self.epsilon + 0.1)
        if more and step > self.start_at:
            self.weakest([g for g in self.groups if self.get(g) @ old[g] < self.epsilon * (old[g] @ old[g])])
        for layer, i in self.dead:
            layer.weight.data[i], layer.bias.data[i] = 0, 0
        self.trace.append(len(self.dead))


@pytest.mark.parametrize("optimizer", MAKE)
@pytest.mark.parametrize("penalty, epsilon, stop_at", [(0.3, 0.0, 60), (0.02, 0.9, 25)])
def test_is_hspg(optimizer, penalty, epsilon, stop_at):
    model = mlp()
    other = copy.deepcopy(model)
    mine = MAKE[optimizer](model.parameters())
    oto = OTO(
        model,
        mine,
        penalty=penalty,
        epsilon=epsilon,
        start_at=6,
        update_every=4,
        stop_at=stop_at,
        sparsity=0.6,
        distribution="global",
    )
    simulation = Simulation(other, MAKE[optimizer](other.parameters()), penalty, 6, 6, 4, stop_at)
    simulation.epsilon = epsilon
    for step in range(1, 66):
        train(model, mine, 1, step - 1)
        simulation.step(step)
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            mine_of, others = mine.state[a], simulation.optimizer.state[b]
            torch.testing.assert_close(mine_of, others, rtol=1e-8, atol=1e-10)
        assert int(oto.dead.sum()) == simulation.trace[-1] and oto.epsilon == pytest.approx(simulation.epsilon)
    assert simulation.trace[5] == 0 and simulation.trace[-1] == 6
    if penalty == 0.3:
        assert 0 < len(set(simulation.trace[6 : stop_at - 1]) - {0})  # some by the half-space, not all by the cut


def test_resumes_bit_for_bit_in_every_phase():
    settings = {
        "penalty": 0.1,
        "start_at": 8,
        "update_every": 4,
        "stop_at": 24,
        "sparsity": 0.6,
        "distribution": "global",
    }

    def setup():
        model = mlp(sparse=True)
        optimizer = MAKE["adam"](model.parameters())
        return model, optimizer, OTO(model, optimizer, **settings)

    for first in (3, 10, 19, 27):
        model, optimizer, oto = setup()
        train(model, optimizer, first)
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict(), oto.state_dict()), file)
        file.seek(0)
        parts = torch.load(file, weights_only=True)
        again = setup()
        for part, state in zip(again, parts, strict=True):
            part.load_state_dict(state)
        train(model, optimizer, 32 - first, first)
        train(*again[:2], 32 - first, first)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again[0].parameters(), strict=True))
        assert oto.epsilon == again[2].epsilon and torch.equal(oto.dead, again[2].dead) and oto.dead.sum() == 6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = GCNConv(5, 8), nn.BatchNorm1d(8)
        self.b = SparseLinear(8, 8, sparsity=0.4)
        self.c = GATConv(8, 3, heads=4)
        self.d = GCNConv(12, 2)

    def forward(self, x, graph):
        h = F.relu(self.norm(self.a(x, graph)))
        h = h + F.relu(self.b(h))
        return self.d(F.elu(self.c(h, graph)), graph)


@pytest.mark.parametrize("distribution, dead", [("global", None), ("uniform", (4, 2)),
                                                ({"a": 0.75, "c": 0.25}, (6, 1))])  # fmt: skip
def test_zeros_are_removed(distribution, dead):
    torch.manual_seed(0)
    model = Net().double()
    x = torch.randn(20, 5, dtype=torch.float64)
    graph = CSRGraph.from_edge_index(torch.randint(0, 20, (2, 60)), 20)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    oto = OTO(model, optimizer, distribution=distribution, penalty=0.03, start_at=3, update_every=2, stop_at=20)
    assert oto.units.count == 12 and oto.phase == "dense"  # a residual sum of width 8, and four heads

    def step():
        optimizer.zero_grad()
        (model(x, graph) - 1).square().mean().backward()
        optimizer.step()

    for _ in range(22):
        step()
    assert oto.dead.sum() == (6 if dead is None else sum(dead)) and oto.step == 22
    before = [model.train(mode)(x, graph) for mode in (True, False)]
    model.norm.load_state_dict(copy.deepcopy(model.norm.state_dict()))
    found = sparsegnn.dead_units(model)
    if dead is not None:
        assert (len(found["a"]), len(found["c"])) == (dead[0], 3 * dead[1])
    assert oto.finalize() is model and not oto.attached
    after = [model.train(mode)(x, graph) for mode in (True, False)]
    torch.testing.assert_close(after[1], before[1], rtol=1e-2, atol=1e-2)  # running statistics moved on in between
    torch.testing.assert_close(after[0], before[0])
    assert model.a.out_channels == model.b.in_features == 8 - len(found["a"])
    assert model.c.heads == 4 - len(found["c"]) // 3 and model.d.in_channels == 3 * model.c.heads
    step()  # the same optimizer goes on


def test_a_scaled_gradient_has_a_scaled_penalty():
    model = mlp()
    optimizer = MAKE["sgd"](model.parameters())
    oto = OTO(model, optimizer, penalty=1.0)
    loss(model, 0).backward()
    optimizer.grad_scale = torch.tensor(4.0)
    before = model[0].bias.grad.clone()
    oto.before_step()
    norm = torch.cat([model[0].weight, model[0].bias[:, None]], 1).norm(dim=1)
    torch.testing.assert_close(model[0].bias.grad - before, 4 * model[0].bias.detach() / norm.detach())


def test_frozen_units_and_copies():
    model = mlp()
    model[0].bias.requires_grad_(False)
    optimizer = MAKE["adam"](model.parameters())
    oto = OTO(model, optimizer, stop_at=2)
    assert oto.units.count == 4
    twin, its_optimizer, its = copy.deepcopy((model, optimizer, oto))
    train(twin, its_optimizer, 3)
    assert its.dead.sum() == 2 and oto.dead.sum() == 0 and its.attached
    assert its.finalize()[2].out_features == 2 and model[2].out_features == 4


def test_refused():
    def make(model=None, optimizer=None, **settings):
        model = mlp() if model is None else model
        return OTO(model, MAKE["adam"](model.parameters()) if optimizer is None else optimizer(model), **settings)

    for error, words, settings in [
        (ValueError, r"sparsity must be in \[0, 1\], got 1.5", {"sparsity": 1.5}),
        (ValueError, "sparsity must leave a unit of each layer, got 9 of 10 units of the model",
         {"sparsity": 0.9, "distribution": "global"}),
        (ValueError, r"penalty must be in \[0, inf\], got -1", {"penalty": -1}),
        (ValueError, r"epsilon must be in \[0, 0.999\], got 1", {"epsilon": 1}),
        (ValueError, "stop_at must be at least 5, got 4", {"start_at": 5, "stop_at": 4}),
        (ValueError, "distribution must be 'uniform', 'global' or a dict", {"distribution": "erk"}),
        (ValueError, r"distribution must name the layers \['0', '2'\], got \['0'\]", {"distribution": {"0": 0.5}}),
        (ValueError, "model must have hidden units", {"model": nn.Sequential(nn.Linear(4, 4))}),
        (ValueError, "model must have hidden units", {"optimizer": lambda m: MAKE["adam"](m[4].parameters())}),
        (TypeError, "optimizer must be one whose state is known",
         {"optimizer": lambda m: type("Odd", (torch.optim.Optimizer,), {})(m.parameters(), {})}),
    ]:  # fmt: skip
        with pytest.raises(error, match="OTO: " + words):
            make(**settings)
    model = mlp(sparse=True)
    first = make(model)
    for again in (make, lambda m: RigL(m, MAKE["adam"](m.parameters()))):
        with pytest.raises(ValueError, match="model must have no layer that another controller"):
            again(model)
    first.detach()
    second = make(model)
    for state, words in [
        ({"epsilon": 2.0}, "epsilon must be in"),
        ({"dead": {"units": torch.zeros(3, dtype=torch.bool)}}, r"state\['dead'\]\['units'\] must be \[11\]"),
    ]:
        with pytest.raises(ValueError, match="OTO: " + words):
            second.load_state_dict({**second.state_dict(), **state})
