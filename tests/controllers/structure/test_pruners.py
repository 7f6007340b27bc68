"""GEBT, CGP and the triple pipeline: edges, features, weights and embeddings under one clock."""

import copy

import numpy as np
import pytest
import torch
from controllers.structure.graphs import GCN, N, batch, dense, gcn, graph, loss_of, train
from torch import nn

from sparsegnn import sparsify
from sparsegnn.controllers import CGP, GEBT, Triple
from sparsegnn.controllers.structure.edges import pairs
from sparsegnn.controllers.structure.triple import places
from sparsegnn.nn import GATConv, MaxK, SparseLinear

SIZES = {"conv1.lin": 42, "conv2.lin": 18}


def setup(cls, seed=0, optimizer=torch.optim.Adam, weighted=False, **settings):
    g, model = graph(weighted=weighted), sparsify(GCN(), 0.0)
    made = optimizer(model.parameters(), lr=0.02)
    return g, model, made, cls(model, made, graph=g, seed=seed, **settings)


class Twin:
    """A dense adjacency, dense weights, masks of both; what differs between methods is left to them."""

    def __init__(self, method, model, g, optimizer, gates, lr):
        self.unit, self.rows, self.cols, self.base = pairs(g)[0], g.rows(), g.col.long(), dense(g.weighted(None))
        self.model = nn.ModuleList([nn.Linear(7, 6).double(), nn.Linear(6, 3).double()])
        for lin, conv in zip(self.model, (model.conv1, model.conv2), strict=True):
            lin.weight.data, lin.bias.data = conv.lin.dense_weight().detach().clone(), conv.bias.detach().clone()
        self.masks = [torch.ones_like(lin.weight) for lin in self.model]
        self.optimizer = optimizer(self.model.parameters(), lr=0.02)
        self.theta = method.gate.theta[0].clone().requires_grad_()
        self.adam, self.gates = torch.optim.Adam([self.theta], lr=lr), gates
        self.kept = np.ones(26, dtype=bool)

    def matrix(self):
        gate = self.gates(self.theta) * torch.from_numpy(self.kept)
        gate = torch.cat([gate, gate.new_ones(1)])[self.unit]
        return torch.zeros_like(self.base).index_put((self.rows, self.cols), gate)

    def step(self, step, penalty=lambda theta: 0.0):
        self.optimizer.zero_grad(), self.adam.zero_grad()
        x, y = batch(step)
        weights, biases = [lin.weight for lin in self.model], [lin.bias for lin in self.model]
        out = gcn(self.matrix(), x, weights, biases)
        ((out - y).square().mean() + penalty(self.theta)).backward()
        self.gradients = [w.grad.clone() for w in weights]
        for w, mask in zip(weights, self.masks, strict=True):
            w.grad *= mask
        if not self.kept.all():
            self.theta.grad *= torch.from_numpy(self.kept)
        self.optimizer.step(), self.adam.step()

    def mask(self, i, keep):
        """Of a layer, with the state of Adam."""
        self.masks[i], weight = keep.clone(), self.model[i].weight
        with torch.no_grad():
            weight *= keep
            for slot in self.optimizer.state[weight].values():
                if slot.shape == weight.shape:
                    slot *= keep

    def assert_equal(self, g, model):
        torch.testing.assert_close(dense(g), self.matrix().detach(), rtol=1e-8, atol=1e-8)
        for lin, conv in zip(self.model, (model.conv1, model.conv2), strict=True):
            torch.testing.assert_close(conv.lin.dense_weight(), lin.weight, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(conv.bias, lin.bias, rtol=1e-8, atol=1e-8)


def global_masks(weights, masks, n):
    """The ``n`` largest magnitudes that exist, over all layers."""
    entries = [(-abs(float(w[p])), i, p) for i, (w, m) in enumerate(zip(weights, masks, strict=True))
               for p in np.ndindex(*w.shape) if m[p]]  # fmt: skip
    kept = [torch.zeros_like(m) for m in masks]
    for _, i, p in sorted(entries)[:n]:
        kept[i][p] = 1
    return kept


def highest(score, n):
    kept = np.zeros(len(score), dtype=bool)
    kept[np.argsort(-score, kind="stable")[:n]] = True
    return kept


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)])
def test_gebt_is_admm_on_a_dense_matrix(optimizer):
    g, model, made, method = setup(GEBT, optimizer=optimizer, sparsity=0.5, edge_sparsity=0.5, eta=0.0, start_at=2,
                                   update_every=2, stop_at=9, rho=0.5, edge_lr=0.05)  # fmt: skip
    twin = Twin(method, model, g, optimizer, lambda theta: theta, 0.05)
    z, u, masks, first = torch.ones(26, dtype=torch.float64), torch.zeros(26, dtype=torch.float64), [], None
    for step in range(1, 12):
        found = method.found_at
        train(model, made, g, 1, first=step - 1)
        twin.step(step - 1, (lambda a, u=u, z=z: 0.5 * (a + u - z).square().mean()) if not found else lambda a: 0.0)
        if found:
            twin.theta.data.copy_(torch.from_numpy(twin.kept).double())
        a = twin.theta.detach()
        if step in (2, 4, 6, 8, 9):
            z = torch.where(torch.from_numpy(highest((a + u).abs().numpy(), 13)), a + u, 0)
            u = u + a - z
            edges = highest(a.abs().numpy(), 13)
            weights = global_masks([lin.weight for lin in twin.model], twin.masks, 30)
            new = (edges, np.concatenate([w.numpy().ravel() > 0 for w in weights]))
            found = [np.mean([(p != q).mean() for p, q in zip(new, old, strict=True)]) for old in masks[-3:]]
            first = first or (found[-1] if found else None)
            masks.append(new)
            if found:
                assert method.stability.distance == pytest.approx(max(found) / (first or 1.0))
        if step == 9:
            twin.kept = edges
            for i, keep in enumerate(weights):
                twin.mask(i, keep)
            twin.theta.data.copy_(torch.from_numpy(edges).double())
            twin.adam = torch.optim.SGD([twin.theta], lr=0.0)
        twin.assert_equal(g, model)
    assert method.found_at == method.settled_at == 9 and g.val is None and g.num_edges == 2 * 13 + 2


def test_gebt_stops_when_the_masks_have_settled():
    g, model, _, method = setup(GEBT, sparsity=0.5, start_at=3, stop_at=50, edge_lr=0.0)
    optimizer = method.optimizer
    optimizer.param_groups[0]["lr"] = 0.0  # nothing changes
    train(model, optimizer, g, 5)
    assert method.found_at == 0 and g.num_edges == 54 and method.phase == "dense" and method.settled_at == 50
    train(model, optimizer, g, 2, first=5)
    assert method.found_at == method.settled_at == 6 and g.num_edges == 28 and method.phase == "sparse"
    assert sum(m.values.numel() for m in model.modules() if isinstance(m, SparseLinear)) == 30
    assert not method.due(50) and method.updates == 4


def cubic(step, stop):
    return 1 - (1 - min(step / stop, 1)) ** 3


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)])
@pytest.mark.parametrize("features", [0.0, 0.5])
def test_cgp_is_three_masks_on_dense_tensors(optimizer, features):
    clock = dict(update_every=3, stop_at=9, drop_fraction=0.4)
    g, model, made, method = setup(CGP, optimizer=optimizer, sparsity=0.6, edge_sparsity=0.5, feature_sparsity=features,
                                   edge_lr=0.05, feature_lr=0.2, **clock)  # fmt: skip
    twin = Twin(method, model, g, optimizer, torch.sigmoid, 0.05)
    phi, channels = torch.ones(7, dtype=torch.float64).requires_grad_(), torch.ones(7, dtype=torch.float64)
    adam = torch.optim.Adam([phi], lr=0.2)
    for step in range(1, 13):
        train(model, made, g, 1, first=step - 1)
        first = twin.model[0].weight
        before = first.detach().clone()
        twin.step(step - 1)
        gate = phi.detach().sigmoid()
        phi.grad = (first.grad * before).sum(0) * (1 - gate) * channels  # dW x dsigmoid / sigmoid
        adam.step()
        scale = phi.detach().sigmoid() / gate if features else torch.ones(7, dtype=torch.float64)
        first.data *= scale
        if step in (3, 6, 9):
            share = cubic(step, 9)
            score = np.where(twin.kept, twin.theta.detach().numpy(), -np.inf)
            twin.kept = highest(score, round(26 * (1 - 0.5 * share)))
            if features:
                read = twin.masks[0].any(0).double()
                score = (phi.detach().sigmoid() + read).masked_fill(channels == 0, -1)
                channels = torch.from_numpy(highest(score.numpy(), round(7 * (1 - 0.5 * share)))).double()
                twin.mask(0, twin.masks[0] * channels)
            keep = round(60 * (1 - 0.6 * share))
            masks = global_masks([lin.weight for lin in twin.model], twin.masks, keep)
            zeta = 0.4 / 2 * (1 + np.cos(np.pi * step / 9))
            for i, mask in enumerate(masks):
                twin.mask(i, mask)
                count = int(mask.sum())
                n = int(zeta * count) if count < mask.numel() else 0
                weight = twin.model[i].weight.detach()
                stay = global_masks([weight], [mask], count - n)[0]
                score = twin.gradients[i].abs() * (1 if i or not features else channels)
                free = [(-float(score[p]), p) for p in np.ndindex(*mask.shape) if not stay[p] and
                        (i or channels[p[1]] or not features)]  # fmt: skip
                new = stay.clone()
                for _, p in sorted(free)[:n]:
                    new[p] = 1
                twin.mask(i, mask * new)
                twin.masks[i] = new
        twin.assert_equal(g, model)
    assert g.num_edges == 2 * 13 + 2 and g.val.requires_grad
    kept = sum(m.values.numel() for m in model.modules() if isinstance(m, SparseLinear))
    assert kept == 24 and method.updates == 3
    if features:
        assert int((model.conv1.lin.dense_weight() != 0).any(0).sum()) <= int(channels.sum()) == 4


RUNS = {
    GEBT: dict(sparsity=0.5, eta=0.0, start_at=2, update_every=2, stop_at=7, edge_lr=0.05),
    CGP: dict(sparsity=0.6, update_every=2, stop_at=7, edge_lr=0.05),
    Triple: dict(sparsity=0.6, update_every=2, start_at=2, stop_at=7),
}


@pytest.mark.parametrize("stop", [1, 4, 8])
@pytest.mark.parametrize("cls", RUNS)
def test_resumes_bit_for_bit(cls, stop):
    g, model, optimizer, method = setup(cls, **RUNS[cls])
    train(model, optimizer, g, stop)
    state = [copy.deepcopy(x.state_dict()) for x in (model, optimizer, method)]
    train(model, optimizer, g, 11 - stop, first=stop)
    for order in ((0, 1, 2), (2, 0, 1)):
        g2, *parts = setup(cls, seed=5, **RUNS[cls])
        for i in order:
            parts[i].load_state_dict(copy.deepcopy(state[i]))
        train(parts[0], parts[1], g2, 11 - stop, first=stop)
        assert torch.equal(dense(g2), dense(g)) and parts[2].updates == method.updates
        ours, theirs = parts[0].state_dict(), model.state_dict()
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize("cls", RUNS)
def test_finalize_keeps_the_function(cls):
    g, model, optimizer, method = setup(cls, **RUNS[cls])
    train(model, optimizer, g, 9)
    x, _ = batch()
    wanted, state = model(x, g).detach(), len(optimizer.state)
    assert method.finalize() is model and not method.attached and (g.val is None or not g.val.requires_grad)
    torch.testing.assert_close(model(x, g), wanted)
    train(model, optimizer, g, 1)
    assert len(optimizer.state) == state and g.num_edges == 28


def test_channels_that_no_weight_reads_go_first_and_one_weight_stays():
    g, model, optimizer, method = setup(CGP, sparsity=0.0, feature_sparsity=0.9, update_every=1, stop_at=2)
    layer = model.conv1.lin
    mask = torch.zeros(6, 7)
    mask[:, 2] = 1  # the only channel that is read has the lowest gate
    values = layer.dense_weight().detach()[mask > 0]
    layer.set_pattern_(torch.arange(0, 7).int(), torch.full((6,), 2).int(), values)
    method.channels.gate.theta[0, 2] = -9
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, g, 3)
    assert method.channels.alive.nonzero().view(-1).tolist() == [2] and set(layer.col.tolist()) == {2}


def test_cgp_with_a_fused_scaler_that_skips():
    g, model, _, _ = setup(CGP, **RUNS[CGP])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, fused=True)
    other = graph()
    method = CGP(*retaken(model), optimizer, graph=other, **RUNS[CGP])
    scaler, before = torch.amp.GradScaler("cpu", init_scale=4.0), dense(other)
    scaler.scale(loss_of(model, other) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert method.step == 0 and torch.equal(dense(other), before) and method.channels._gradient is None


def retaken(model):
    from sparsegnn.controllers import attachment

    for layer in model.modules():
        attachment._owners.pop(layer, None)
    return (model,)


# --- triple ----------------------------------------------------------------------------------------------------------


class WithActivation(GCN):
    def __init__(self):
        super().__init__()
        del self.act
        self.activation = torch.nn.functional.relu

    def forward(self, x, graph):
        return self.conv2(self.activation(self.conv1(x, graph)), graph)


@pytest.mark.parametrize("kind", [GCN, WithActivation])
def test_triple(kind):
    g, model = graph(), sparsify(kind(), 0.0)
    keys = list(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    method = Triple(model, optimizer, graph=g, sparsity=0.5, edge_sparsity=0.25, start_at=1, update_every=2, stop_at=6)
    now = getattr(model, "activation", None) or model.act
    assert isinstance(now, MaxK) and now.k == 3 and list(model.state_dict()) == keys
    assert int((dense(g).triu(1) != 0).sum()) == 20
    seen = []
    now.register_forward_hook(lambda m, args, out: seen.append((out != 0).sum(1)))
    train(model, optimizer, g, 7)
    assert all((s == 3).all() for s in seen)
    assert method.densities() == {"edges": 20 / 26, "weights": 0.5, "embeddings": 0.5}


def conv_of_gat():
    model = GCN()
    model.extra = GATConv(3, 3)
    return model


@pytest.mark.parametrize("cls, model, settings, words", [
    (GEBT, GCN, {"eta": -1}, r"GEBT: eta must be in \[0, 1e\+30\], got -1"),
    (GEBT, GCN, {"sparsity": 1.0}, r"GEBT: sparsity must be in \[0, 1\), got 1.0"),
    (GEBT, GCN, {"start_at": 9, "stop_at": 8}, "GEBT: stop_at must be at least 9, got 8"),
    (GEBT, conv_of_gat, {}, r"GEBT: model must have layers that use the values of edges \(GCNConv\), got \['extra'\]"),
    (CGP, GCN, {"feature_sparsity": 1.0}, "CGP: feature_sparsity must be below 1, got 1.0"),
    (CGP, GCN, {"drop_fraction": 1.5}, r"CGP: drop_fraction must be in \[0, 1\], got 1.5"),
    (CGP, GCN, {"distribution": "even"}, "CGP: distribution must be 'erk'"),
    (Triple, GCN, {"k": 7}, r"Triple: k must be at most the width of the layers before the last, \[6\], got 7"),
    (Triple, GCN, {"k": 0}, "Triple: k must be at least 1, got 0"),
])  # fmt: skip
def test_refused(cls, model, settings, words):
    g, model = graph(), sparsify(model(), 0.0)
    with pytest.raises(ValueError, match=words):
        cls(model, torch.optim.SGD(model.parameters(), lr=0.1), graph=g, **settings)
    assert g.num_edges == 2 * 26 + 2 and g.val is None and isinstance(model.act, nn.ReLU)


def test_triple_needs_an_activation_to_replace():
    model = GCN()
    model.act = nn.Tanh()
    with pytest.raises(ValueError, match="Triple: model must have an attribute 'activation', or modules nn.ReLU, for"):
        places("Triple", model)
    assert N == 14 and SIZES
