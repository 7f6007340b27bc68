"""Accelerated models that are copied, shared between threads, compiled or changed afterwards."""

import copy
from concurrent.futures import ThreadPoolExecutor

import torch
import torch_geometric.nn as pyg
from pyg.models import MODELS, OURS, N, edges
from pyg.oracle import accelerated, paths, watched
from torch import nn

import sparsegnn
from sparsegnn.pyg import cache
from sparsegnn.pyg.route import route_of


def test_replicas_of_data_parallel_run_their_own_weights():
    x, index = torch.randn(N, 6), edges()
    conv = accelerated(pyg.GATConv(6, 4))
    replica = conv._replicate_for_data_parallel()
    for name, p in conv._parameters.items():
        setattr(replica, name, None if p is None else p.detach().clone())
    plain = pyg.GATConv(6, 4)
    plain.load_state_dict(conv.state_dict())
    for p in conv.parameters(recurse=False):
        torch.nn.init.constant_(p, float("nan"))
    torch.testing.assert_close(replica(x, index), plain(x, index))
    assert route_of(replica).last == OURS and route_of(conv).last is None


def test_a_shallow_copy_can_be_accelerated_again():
    conv, x, index = accelerated(pyg.GATConv(6, 4, dropout=0.9)), torch.randn(N, 6), edges()
    other = sparsegnn.accelerate(copy.copy(conv)).eval()
    assert conv.training and other.forward.conv is other and conv.forward.conv is conv
    torch.testing.assert_close(other(x, index), other(x, index))
    sparsegnn.accelerate(other, undo=True)
    assert paths(conv) and not paths(other)


def test_threads_share_what_is_kept():
    model, lists = accelerated(MODELS["gcn"]()), [edges() for _ in range(40)]
    x = torch.randn(N, 6)
    with torch.no_grad():
        wanted = [model(x, index) for index in lists]
    old, cache.OBJECTS = cache.OBJECTS, 3  # all of them throw out what others need
    try:
        with ThreadPoolExecutor(8) as pool, torch.no_grad():
            for _ in range(5):
                for got, want in zip(pool.map(lambda index: model(x, index), lists), wanted, strict=True):
                    torch.testing.assert_close(got, want)
    finally:
        cache.OBJECTS = old


def test_compiled_before_it_is_accelerated():
    model, x, index = MODELS["sage"](), torch.randn(N, 6), edges()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    wanted = compiled(x, index)
    sparsegnn.accelerate(compiled)
    torch.testing.assert_close(compiled(x, index), wanted)
    with watched() as watch:
        torch.testing.assert_close(model(x, index), wanted)
    assert watch.kernels
    sparsegnn.accelerate(compiled, undo=True)
    assert not paths(model)


def test_layers_that_change_after_they_were_accelerated():
    x, index = torch.randn(N, 6), edges()
    for change in (
        lambda m: torch.nn.utils.parametrizations.spectral_norm(m.convs[0].lin),
        lambda m: setattr(m.convs[0], "lin", nn.Sequential(m.convs[0].lin, nn.Tanh())),
        lambda m: setattr(m.convs[0], "aggr_module", pyg.aggr.SoftmaxAggregation()),
        lambda m: m.convs.__setitem__(0, pyg.GCNConv(6, 8)),
        lambda m: setattr(m.convs[0], "bias", None),
        lambda m: m.double(),
    ):
        model = MODELS["gcn"]().eval()
        other = accelerated(model)
        other(x, index)
        for m in (model, other):
            torch.manual_seed(3)
            change(m)
        like = x.to(next(model.parameters()).dtype)
        torch.testing.assert_close(other(like, index), model(like, index))


def test_second_order_gradients():
    for make in MODELS.values():
        model, index = make().double(), edges()
        results = []
        for net in (model, accelerated(model)):
            x = torch.linspace(-1, 1, N * 6, dtype=torch.float64).view(N, 6).requires_grad_()
            (slope,) = torch.autograd.grad(net(x, index).sin().sum(), x, create_graph=True)
            results.append(torch.autograd.grad(slope.square().sum(), list(net.parameters()), allow_unused=True))
        for got, want in zip(*results, strict=True):
            assert (got is None) == (want is None)
            if got is not None:
                torch.testing.assert_close(got, want)


def test_state_goes_to_and_fro():
    model, x, index = MODELS["gat"](), torch.randn(N, 6), edges()
    other = accelerated(MODELS["gat"]())
    other.load_state_dict(model.state_dict())
    sparsegnn.accelerate(other, undo=True)
    plain = MODELS["gat"]()
    plain.load_state_dict(other.state_dict())
    torch.testing.assert_close(plain(x, index), model(x, index))
    again = sparsegnn.accelerate(plain)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x, index), model(x, index))


def test_a_batch_of_a_loader_after_another():
    """Tensors that are gone leave nothing that a new one at the same place would be taken for."""
    model = MODELS["sage"]()
    other = accelerated(model)
    for seed in range(30):
        torch.manual_seed(seed)
        x, index = torch.randn(N, 6), edges(e=40)
        torch.testing.assert_close(other(x, index), model(x, index))
