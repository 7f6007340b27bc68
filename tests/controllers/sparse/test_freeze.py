"""Layers frozen front to back: nothing of them moves any more, and skipping their forward changes no bit."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsegnn import CSRGraph
from sparsegnn.controllers import MEST, Freeze, FrozenForward
from sparsegnn.nn import GATConv, GCNConv, SparseLinear

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}


class GNN(nn.Module):
    def __init__(self, dropout=0.0, input_dropout=0.0, conv=GCNConv):
        super().__init__()
        kind = {"sparsity": 0.6}
        self.convs = nn.ModuleList([conv(12, 16, **kind), conv(16, 16, **kind), conv(16, 4, **kind)])
        self.dropout, self.input_dropout = dropout, input_dropout

    def forward(self, x, graph):
        x = F.dropout(x, self.input_dropout, self.training)
        for conv in self.convs[:-1]:
            x = F.dropout(F.relu(conv(x, graph)), self.dropout, self.training)
        return self.convs[-1](x, graph)


def run(make=OPTIMIZERS["momentum"], steps=20, between=lambda model: None, set_to_none=True, **settings):
    torch.manual_seed(0)
    model_settings = {k: settings.pop(k) for k in ("dropout", "input_dropout", "conv") if k in settings}
    model = GNN(**model_settings)
    graph = CSRGraph.from_edge_index(torch.randint(30, (2, 120)), 30)
    x, y = torch.randn(30, 12), torch.randint(4, (30,))
    optimizer = make(model.parameters())
    method = Freeze(model, optimizer, update_every=3, stop_at=12, freeze_at=[7, 13], **settings)
    losses, states = [], []
    for _ in range(steps):
        model.train()
        optimizer.zero_grad(set_to_none)
        loss = F.cross_entropy(model(x, graph), y)
        loss.backward()
        optimizer.step()
        model.eval()
        between(model)
        with torch.no_grad():
            losses += [loss.item(), model(x, graph).sum().item()]
        states.append({k: v.clone() for k, v in model.state_dict().items()})
    return method, losses, states


@pytest.mark.filterwarnings("ignore:FrozenForward")
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bits_are_those_without_a_cache(name, dropout):
    a, losses, states = run(OPTIMIZERS[name], dropout=dropout)
    b, other_losses, others = run(OPTIMIZERS[name], dropout=dropout, cache=False)
    assert losses == other_losses and a.frozen == b.frozen == ["convs.0", "convs.1"] and not b.caches
    assert all(torch.equal(s[k], o[k]) for s, o in zip(states, others, strict=True) for k in s)
    # frozen at step 7: the evaluation after it and the next step are made, then 12 steps and 13 evaluations follow
    assert a.caches["convs.0"].skipped == 12 + 13
    assert a.caches["convs.1"].skipped == (6 if dropout == 0 else 0) + 7


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_layers_rest(name):
    """Neither momentum nor weight decay nor mutation moves them, though gradients of zero would."""
    method, _, states = run(OPTIMIZERS[name], set_to_none=False)
    for i, at in ((0, 7), (1, 13)):
        mine = [k for k in states[0] if k.startswith(f"convs.{i}.")]
        assert len(mine) > 3 and all(torch.equal(s[k], states[at - 1][k]) for s in states[at:] for k in mine)
        assert not torch.equal(states[at - 2][f"convs.{i}.lin.values"], states[at - 1][f"convs.{i}.lin.values"])
        assert not any(p.requires_grad for p in method.units[f"convs.{i}"].parameters())
    assert not torch.equal(states[-2]["convs.2.lin.values"], states[-1]["convs.2.lin.values"])
    assert method.updates == 5  # at 3, 6, 9; freezing at 7, 13
    method.finalize()
    assert all("forward" not in vars(m) for m in method.model.modules())


def test_until_then_it_is_mest():
    torch.manual_seed(0)
    x, values = torch.randn(9, 8), []
    layers = nn.Sequential(SparseLinear(8, 8, sparsity=0.5), SparseLinear(8, 8, sparsity=0.5))
    for cls in (MEST, Freeze):
        model = copy.deepcopy(layers)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        cls(model, optimizer, update_every=2, stop_at=8)
        for _ in range(8):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        values.append((model[0].values, model[0].col, model[1].col))
        assert model[0].values.requires_grad == (cls is MEST)  # by default half of them, at stop_at
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))


def test_attention_is_frozen_with_its_weight():
    method, losses, _ = run(conv=GATConv)
    assert losses == run(conv=GATConv, cache=False)[1] and method.caches["convs.0"].skipped == 25


def test_dropout_before_a_frozen_layer_is_said_once():
    text = "layer 'convs.0' is frozen, but its inputs or weights were others in each of 3 steps"
    with pytest.warns(UserWarning, match=text) as found:
        method, losses, _ = run(input_dropout=0.5)
    assert [str(w.message).split("'")[1] for w in found] == ["convs.0", "convs.1"]
    assert method.caches["convs.0"].skipped == 13  # evaluations
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert losses == run(input_dropout=0.5, cache=False)[1]


@pytest.mark.filterwarnings("ignore:FrozenForward")
def test_weights_that_are_written_to_are_noticed():
    """By load_state_dict, an optimizer of somebody else, or in place."""

    def between(model):
        with torch.no_grad():
            model.convs[0].bias.add_(0.125)

    method, losses, _ = run(between=between)
    assert losses == run(between=between, cache=False)[1] and method.caches["convs.0"].skipped == 0


def frozen(module, *inputs):
    module.requires_grad_(False)
    return FrozenForward(module, "it"), [module(*inputs) for _ in range(2)]


def test_outputs_that_are_written_to_are_made_anew():
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    cached, (y, _) = frozen(layer, x)
    want = y.clone()
    assert layer(x) is y and cached.skipped == 2
    y.relu_()
    for _ in range(3):
        z = layer(x)
        assert torch.equal(z, want)
        z.add_(1)
    assert cached.skipped == 4


@pytest.mark.filterwarnings("ignore:FrozenForward")
def test_what_the_output_depends_on():
    x = torch.randn(5, 4)
    layer = nn.Linear(4, 3)
    cached, _ = frozen(layer, x)
    same = [x.clone(), x]
    other = [x + 1, x.double().float().requires_grad_(), -x]
    for given, skips in [(s, True) for s in same] + [(o, False) for o in other]:
        layer(x)
        before = cached.skipped
        assert torch.equal(layer(given), F.linear(given, layer.weight, layer.bias))
        assert (cached.skipped > before) is skips
    layer(x)
    x.mul_(2)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    zero = torch.zeros(5, 4)
    layer(zero)
    before = cached.skipped
    layer(-zero)  # equal, but other bits
    assert cached.skipped == before
    layer.requires_grad_(True)
    assert layer(x).requires_grad and layer(x) is not layer(x)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_features_and_graphs():
    """Features that a dropout changes in place, and a graph of other weights."""
    conv = GCNConv(6, 4, sparsity=0.5)
    x = torch.eye(6).to_sparse_csr()
    graph = CSRGraph.from_edge_index(torch.randint(6, (2, 20)), 6, torch.rand(20))
    cached, (y, again) = frozen(conv, x, graph)
    assert y is again and cached.skipped == 1
    x.values().mul_(2)
    assert not torch.equal(conv(x, graph), y) and cached.skipped == 1
    before = conv(x, graph).clone()
    graph.val.mul_(torch.arange(1, graph.val.numel() + 1))
    conv(x, graph)
    assert cached.skipped == 2
    weights = torch.rand(20, requires_grad=True)
    edges = torch.randint(6, (2, 20))
    conv(x, edges, weights).sum().backward()
    assert weights.grad is not None and before is not None


def test_a_random_module_is_called_each_time():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    for module in (Noisy(), nn.Dropout(0.5), nn.RReLU(), nn.BatchNorm1d(4)):
        cached, (a, b) = frozen(module, torch.randn(5, 4))
        assert cached.skipped == 0 and (not torch.equal(a, b) or isinstance(module, nn.BatchNorm1d))
    module.eval()
    assert module(torch.ones(5, 4)) is not None


def test_copies_are_on_their_own():
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    cached, _ = frozen(layer, x)
    other = copy.deepcopy(layer)
    assert other.forward is not cached and other.forward.module is other
    with torch.no_grad():
        other.bias.add_(1)
    assert torch.equal(layer(x) + 1, other(x)) or torch.allclose(layer(x) + 1, other(x))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("settings, error, text", [
    ({"freeze_at": [3, 4]}, ValueError, r"Freeze: freeze_at must have fewer steps than there are layers, \['0', '1"),
    ({"freeze_at": 3}, TypeError, "Freeze: freeze_at must be a list of steps, got int"),
    ({"freeze_at": [0]}, ValueError, r"Freeze: freeze_at\[0\] must be at least 1, got 0"),
    ({"freeze_at": [2.5]}, TypeError, r"Freeze: freeze_at\[0\] must be an integer, got float"),
    ({"cache": 1}, TypeError, "Freeze: cache must be True or False, got int"),
])  # fmt: skip
def test_refused(settings, error, text):
    model = nn.Sequential(SparseLinear(8, 8), SparseLinear(8, 8))
    with pytest.raises(error, match=text):
        Freeze(model, torch.optim.SGD(model.parameters(), lr=0.1), **settings)


def test_freezing_goes_front_to_back():
    model = nn.Sequential(*(SparseLinear(8, 8) for _ in range(3)))
    with pytest.raises(ValueError, match=r"Freeze: freeze_at must ascend, .* got \[4, 3\]"):
        Freeze(model, torch.optim.SGD(model.parameters(), lr=0.1), freeze_at=[4, 3])
