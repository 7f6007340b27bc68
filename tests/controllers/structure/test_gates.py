"""Trainable edges: gradients against a dense matrix in autograd, Adam against torch's, and loops of all kinds."""

import copy

import pytest
import torch
from controllers.structure.graphs import GCN, batch, dense, gcn, graph, loss_of, train

from sparsegnn.controllers import CGP, GEBT
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.structure import EdgeGates
from sparsegnn.controllers.structure.edges import pairs
from sparsegnn.nn import GATConv, GINConv, SAGEConv


class Plain(EdgeGates):
    """Gates sigmoid(theta) and nothing else."""

    edge_lr = 0.05

    def first_theta(self, weights):
        return torch.linspace(-1, 1, weights.numel(), dtype=weights.dtype)[None]

    def gates(self, theta):
        return theta[0].sigmoid()

    def due(self, step):
        return False


def twin(g, model, lr=0.05):
    """(theta, A(theta), optimizer) of a dense matrix whose undirected edges have one sigmoid each."""
    unit, undirected = pairs(g)
    assert undirected
    base, rows, cols = dense(g), g.rows(), g.col.long()
    theta = torch.linspace(-1, 1, int(unit.max()) + 1, dtype=torch.float64).requires_grad_()

    def matrix():
        gate = torch.cat([theta.sigmoid(), theta.new_ones(1)])[unit]
        return torch.zeros_like(base).index_put((rows, cols), gate) * base

    return theta, matrix, torch.optim.Adam([theta], lr=lr)


def dense_loss(model, a, step):
    x, y = batch(step)
    convs = model.conv1, model.conv2
    return (gcn(a, x, [c.lin.weight for c in convs], [c.bias for c in convs]) - y).square().mean()


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


def loops():
    def plain(model, optimizer, g, step):
        optimizer.zero_grad()
        loss_of(model, g, step).backward()
        optimizer.step()

    def accumulated(model, optimizer, g, step):
        optimizer.zero_grad()
        for _ in range(4):
            (loss_of(model, g, step) / 4).backward()
        optimizer.step()

    def closure(model, optimizer, g, step):
        def run():
            optimizer.zero_grad(set_to_none=False)
            loss = loss_of(model, g, step)
            loss.backward()
            return loss

        optimizer.step(run)

    def thrown_away(model, optimizer, g, step):  # a batch that is left out
        (loss_of(model, g, step) * float("nan")).backward()
        plain(model, optimizer, g, step)

    def thrown_to_zero(model, optimizer, g, step):
        (loss_of(model, g, step) * 1000).backward()
        optimizer.zero_grad(set_to_none=False)
        loss_of(model, g, step).backward()
        optimizer.step()

    return dict(plain=plain, accumulated=accumulated, closure=closure, thrown_away=thrown_away,
                thrown_to_zero=thrown_to_zero)  # fmt: skip


@pytest.mark.parametrize("loop", loops())
@pytest.mark.parametrize("kind, weighted", [("adam", False), ("sgd", True), ("adamw-fused", True)])
def test_gates_train_as_a_dense_matrix_would(kind, weighted, loop):
    g, model = graph(weighted=weighted), GCN(cached=weighted)
    other = copy.deepcopy(model)
    theta, matrix, gate_optimizer = twin(g, other)
    optimizer = OPTIMIZERS[kind](model.parameters())
    controller = Plain(model, optimizer, graph=g)
    twin_optimizer = OPTIMIZERS[kind](other.parameters())
    for step in range(5):
        loops()[loop](model, optimizer, g, step)
        twin_optimizer.zero_grad(), gate_optimizer.zero_grad()
        dense_loss(other, matrix(), step).backward()
        twin_optimizer.step(), gate_optimizer.step()
        torch.testing.assert_close(controller.gate.theta[0], theta.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(dense(g), matrix().detach(), rtol=1e-9, atol=1e-9)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert g.val.is_leaf and g.val.grad is None and controller.step == 5


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_a_scaler_changes_nothing_and_skips(fused, unscale):
    """Of gates with a penalty, which must not be scaled; in the second step the loss overflows."""

    class Paying(Plain):
        def penalty(self, theta):
            return 0.3 * theta.sigmoid().sum()

    def run(scaled):
        g, model = graph(), GCN()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
        controller = Paying(model, optimizer, graph=g)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        thetas = []
        for step in range(4):
            if step == 1 and not scaled:
                continue
            optimizer.zero_grad()
            loss = loss_of(model, g, step) * (float("inf") if step == 1 else 1.0)
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            thetas.append(controller.gate.theta.clone())
        return thetas, controller, dense(g)

    (got, controller, a), (wanted, _, b) = run(True), run(False)
    assert torch.equal(got[0], got[1]) and controller.step == 3
    for x, y in zip((got[0], *got[2:]), wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_no_autograd_graph_outlives_a_step():
    g, model = graph(), GCN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = Plain(model, optimizer, graph=g)
    val, version = g.val, g.version
    train(model, optimizer, g, 3)
    assert g.val is val and g.version > version and not controller.gate.theta.requires_grad
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(batch()[0], g), GCN.forward(model, batch()[0], g.weighted(None)
                                   .weighted(unordered(g))))  # fmt: skip


def unordered(g):
    """The values in the order of the list that the graph was made from."""
    return torch.empty_like(g.val.detach()).index_copy_(0, g.perm.long(), g.val.detach())


def test_detach_leaves_a_graph_of_constants_of_the_same_function():
    g, model = graph(), GCN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = Plain(model, optimizer, graph=g)
    train(model, optimizer, g, 3)
    x, _ = batch()
    wanted = model(x, g).detach()
    assert controller.finalize() is model
    assert not g.val.requires_grad
    torch.testing.assert_close(model(x, g), wanted)
    train(model, optimizer, g, 1, first=3)
    assert controller.step == 3 and g.val.grad is None
    Plain(model, optimizer, graph=g)  # another may have it now


def test_copies_control_the_copied_graph():
    g, model = graph(), GCN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = Plain(model, optimizer, graph=g)
    train(model, optimizer, g, 2)
    model2, optimizer2, controller2 = copy.deepcopy((model, optimizer, controller))
    train(model, optimizer, g, 2, first=2)
    train(model2, optimizer2, controller2.graph, 2, first=2)
    assert controller2.graph is not g and torch.equal(controller2.graph.val, g.val) and controller2.step == 4


def test_gradients_are_averaged_over_processes(monkeypatch):
    """Two ranks whose gradients differ by a factor of three; a graph of another size is refused."""
    from sparsegnn.controllers.structure import edge_method

    g, model = graph(), GCN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = Plain(model, optimizer, graph=g)
    factor, calls = [3.0], []

    def all_reduce(t, op=None):
        calls.append(t.dtype)
        if t.is_floating_point():
            t.mul_(1 + factor[0])
        elif op == torch.distributed.ReduceOp.MAX:
            t[0] += int(factor[0] == 0)

    monkeypatch.setattr(edge_method, "is_alone", lambda: False)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    loss_of(model, g).backward()
    wanted = controller.edges.gather(g.val.grad) * 2
    torch.testing.assert_close(controller._collect(), wanted)
    assert calls == [torch.int64, torch.int64, torch.float64]
    factor[0] = 0.0
    with pytest.raises(RuntimeError, match="Plain: all processes must have the same graph and seed"):
        controller._collect()


def test_warns_once_where_the_model_is_called_with_another_graph():
    g, model = graph(), GCN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Plain(model, optimizer, graph=g)
    with pytest.warns(UserWarning, match="Plain: the edges had no gradient in a step: call the model with the graph"):
        train(model, optimizer, graph(), 3)


def ignoring(layer):
    def make():
        model = GCN()
        model.other = layer
        return model

    return make


def trainable():
    g = graph(weighted=True)
    g.val.requires_grad_()
    return g


def taken():
    g, model = graph(), GCN()
    taken.keep = Plain(model, torch.optim.SGD(model.parameters(), lr=0.1), graph=g)
    return g


@pytest.mark.parametrize("of, model, error, words", [
    (lambda: None, GCN, TypeError, "graph must be the CSRGraph that the model is called with, got NoneType"),
    (lambda: torch.zeros(2, 4).long(), GCN, TypeError, "CSRGraph that the model is called with, got Tensor"),
    (trainable, GCN, ValueError, "graph must have constant weights, got some that require a gradient"),
    (taken, GCN, ValueError, r"graph must be one that no other controller changes, got that of Plain\("),
    (lambda: graph(e=0), GCN, ValueError, "graph must have an edge that is no self-loop"),
    (graph, ignoring(GATConv(3, 3)), ValueError, r"use the values of edges \(GCNConv\), got \['other'\]"),
    (graph, ignoring(SAGEConv(3, 3)), ValueError, r"got \['other'\], which see only which edges there are: use FastG"),
    (graph, ignoring(GINConv(torch.nn.Linear(3, 3))), ValueError, r"got \['other'\], which see only which edges there"),
])  # fmt: skip
def test_refused(of, model, error, words):
    model = model()
    with pytest.raises(error, match="Plain: .*" + words):
        Plain(model, torch.optim.SGD(model.parameters(), lr=0.1), graph=of())


def test_register_takes_a_method_on_edges():
    from sparsegnn.controllers import METHODS

    try:
        assert register("plain-edges")(Plain) is Plain
    finally:
        del METHODS["plain-edges"]
    assert CGP.family == GEBT.family == "structure"
