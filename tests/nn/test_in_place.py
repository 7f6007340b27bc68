"""Outputs that are overwritten before the backward pass, as activations in place do: against PyG's layers in fp64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sparsegnn import CSRGraph
from sparsegnn.nn import GATConv, GATv2Conv
from sparsegnn.ops import gat, gatv2, maxk, spmm

from .twins import Initial, assert_close, twins

N = 15
ACTIVATIONS = {
    "elu": F.elu_,
    "relu": nn.ReLU(inplace=True),
    "leaky": lambda y: F.leaky_relu_(y, 0.1),
    "scaled": lambda y: y.mul_(2),
    "twice": lambda y: y.add_(1).clamp_(min=0),
    "part": lambda y: y.index_fill_(0, torch.tensor([2, 3]), 0),
}
LAYERS = {
    "gat": ("GATConv", dict(heads=2)),
    "gat without bias": ("GATConv", dict(heads=2, bias=False)),
    "gat mean": ("GATConv", dict(heads=2, concat=False, residual=True)),
    "gat of edges": ("GATConv", dict(edge_dim=3, add_self_loops=False, bias=False)),
    "gatv2": ("GATv2Conv", dict(heads=2, share_weights=True)),
    "gatv2 without bias": ("GATv2Conv", dict(heads=2, bias=False, edge_dim=3)),
    "gcn": ("GCNConv", {}),
    "gcn without bias": ("GCNConv", dict(bias=False, aggr="max")),
    "sage": ("SAGEConv", dict(project=True)),
    "sage without bias": ("SAGEConv", dict(bias=False, root_weight=False, aggr="max")),
    "gin": ("GINConv", {}, nn.Identity()),
    "gin trained": ("GINConv", dict(train_eps=True), nn.Identity()),
    "sgc": ("SGConv", dict(K=2)),
    "sgc without bias": ("SGConv", dict(K=2, bias=False), 5, 9),
    "tag": ("TAGConv", {}),
    "tag without bias": ("TAGConv", dict(bias=False), 5, 9),
    "graph conv": ("GraphConv", {}),
    "graph conv without bias": ("GraphConv", dict(bias=False, aggr="max"), 5, 9),
    "appnp": ("APPNP", {}, 3, 0.1),
    "gcn2": ("GCN2Conv", {}, 5, 0.1),
    "gcn2 of two weights": ("GCN2Conv", dict(shared_weights=False), 5, 0.1, 0.5, 2),
}


def edges(seed=0):
    return torch.randint(N, (2, 60), generator=torch.Generator().manual_seed(seed))


def run(model, act, *args):
    args = [a.clone().requires_grad_() if a.is_floating_point() else a for a in args]
    y = act(model(*args))
    leaves = [*model.parameters(), *(a for a in args if a.requires_grad)]
    return [y.detach().clone(), *torch.autograd.grad(y, leaves, torch.linspace(-1, 2, y.numel()).view(y.shape).to(y))]


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_pygs(name, act):
    layer, options, *sizes = LAYERS[name]
    ours, theirs = twins(layer, *(sizes or (5, 4)), **options)
    if layer == "GCN2Conv":
        ours, theirs = Initial(ours), Initial(theirs)
    attr = [torch.randn(60, 3, dtype=torch.float64)] if "edge_dim" in options else []
    args = (torch.randn(N, 5, dtype=torch.float64), edges(), *attr)
    assert_close(run(ours, ACTIVATIONS[act], *args), run(theirs, lambda y: ACTIVATIONS[act](y + 0), *args))


OPS = {
    "gat": lambda g, x, a: gat(g, x.view(N, 2, 4), a, a),
    "gatv2": lambda g, x, a: gatv2(g, x.view(N, 2, 4), x.view(N, 2, 4), a[:2, :1].expand(2, 4)),
    "spmm": lambda g, x, a: spmm(g, x, edge_weight=a[:, 0].repeat(4)),
    "max": lambda g, x, a: spmm(g, x, "max"),
    "maxk": lambda g, x, a: maxk(x, 3)[0],
}


MODES = ["plain", "again", "checkpoint", "reentrant", "autocast"]
CASES = [(op, mode) for op in OPS for mode in MODES] + [("gat", "compiled"), ("gatv2", "compiled")]


@pytest.mark.parametrize("op, mode", CASES)
def test_ops_in_every_mode_are_as_with_a_copy(op, mode):
    graph, call = CSRGraph.from_edge_index(edges(), N), OPS[op]
    inputs = [torch.randn(N, 8), torch.randn(N, 2)]
    graph.transpose()

    def grads(act):
        x, a = (t.clone().requires_grad_() for t in inputs)

        def work(x, a):
            return act(call(graph, x, a))

        if mode in ("checkpoint", "reentrant"):
            y = checkpoint(work, x, a, use_reentrant=mode == "reentrant")
        elif mode == "compiled":
            torch._dynamo.reset()
            y = torch.compile(work, backend="aot_eager")(x, a)
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
                y = work(x, a)
        y.square().sum().backward(retain_graph=mode == "again")
        if mode == "again":
            y.square().sum().backward()
        return [y.detach().clone(), *(torch.zeros(1) if t.grad is None else t.grad for t in (x, a))]

    for got, want in zip(grads(F.elu_), grads(lambda y: F.elu_(y.clone())), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [GATConv, GATv2Conv])
def test_dropout_and_two_layers(layer):
    first, second = layer(5, 4, heads=2, dropout=0.5, bias=False), layer(8, 3, dropout=0.3, bias=False)
    graph, x = CSRGraph.from_edge_index(edges(), N), torch.randn(N, 5)

    def grads(elu):
        torch.manual_seed(3)
        y = elu(second(elu(first(x, graph)), graph))
        return torch.autograd.grad(y.square().sum(), [*first.parameters(), *second.parameters()])

    for got, want in zip(grads(F.elu_), grads(F.elu), strict=True):
        torch.testing.assert_close(got, want)


def test_nothing_is_held_longer_than_what_is_saved():
    """A loss that is alive does not keep the output once its gradients are made."""
    graph, leaf = CSRGraph.from_edge_index(edges(), N), torch.randn(N, 2, 4, requires_grad=True)
    y = gat(graph, leaf, torch.randn(N, 2), torch.randn(N, 2))
    loss, node = y.sum(), y.grad_fn
    assert node.watch.untyped_storage().nbytes() == 0
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
