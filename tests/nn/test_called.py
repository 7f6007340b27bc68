"""A layer called with the tensors of another (torch.func.functional_call, ensembles): that one's product, unchanged."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel

from sparsegnn import SET
from sparsegnn.nn import SparseLinear

X = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
KINDS = ("unstructured", "fan_in", "block:16x16", "2:4")


def moved(kind, seed):
    """A layer whose weights have moved, and an average and a copy of it from before."""
    torch.manual_seed(seed)
    layer = SparseLinear(32, 32, sparsity=0.5, pattern=kind)
    average, before = AveragedModel(layer), copy.deepcopy(layer)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    SET(layer, optimizer, update_every=1, stop_at=9, seed=seed)
    for _ in range(seed + 1):
        optimizer.zero_grad()
        layer(X).square().mean().backward()
        optimizer.step()
    return layer, average.module, before


BASES = {
    "itself": lambda kind: moved(kind, 1)[0],
    "average": lambda kind: moved(kind, 1)[1],
    "behind": lambda kind: moved(kind, 1)[2],
    "copy": lambda kind: copy.deepcopy(moved(kind, 1)[0]),
    "copy on meta": lambda kind: copy.deepcopy(moved(kind, 1)[0]).to("meta"),
}


def product(state):
    """In plain PyTorch, of a matrix of weights or of 16 x 16 blocks of them."""
    crow, col, values = state["crow"].long(), state["col"].long(), state["values"].detach()
    size = 16 if values.numel() > col.numel() else 1
    rows = torch.repeat_interleave(torch.arange(crow.numel() - 1), crow.diff())
    grid = torch.zeros(32 // size, 32 // size, size, size)
    grid[rows, col] = values.view(-1, size, size)
    return X @ grid.permute(0, 2, 1, 3).reshape(32, 32).T + state["bias"].detach()


@pytest.mark.parametrize("base, state", [(b, s) for b in BASES for s in ("all", "saved")][:-1])  # not on meta
@pytest.mark.parametrize("kind", KINDS)
def test_functional_call(kind, base, state):
    called, other = BASES[base](kind), moved(kind, 4)[0]
    given = {**dict(other.named_parameters()), **dict(other.named_buffers())} if state == "all" else other.state_dict()
    before, own = copy.deepcopy(given), None if called.crow.is_meta else copy.deepcopy(called.state_dict())
    for _ in range(2):
        torch.testing.assert_close(functional_call(called, given, X), product(before))
    for name, t in before.items():
        assert torch.equal(given[name], t), name
    torch.testing.assert_close(other(X), product(before))
    if own is not None:
        torch.testing.assert_close(called(X), product(own))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", ["fan_in", "block:16x16", "2:4"])  # all of a size
def test_ensembles(kind, base):
    called, layers = BASES[base](kind), [moved(kind, seed)[0] for seed in range(2, 5)]
    states = stack_module_state(layers)
    got = vmap(lambda parameters, buffers: functional_call(called, (parameters, buffers), (X,)))(*states)
    for y, layer in zip(got, layers, strict=True):
        torch.testing.assert_close(y, product(layer.state_dict()))


def test_gradients_through_an_average():
    """As in meta-learning: a step by hand, differentiated."""
    layer, average, _ = moved("unstructured", 1)
    given = {n: nn.Parameter(t.clone()) if t.is_floating_point() else t for n, t in layer.state_dict().items()}
    functional_call(average, given, X).square().sum().backward()
    layer.zero_grad()
    layer(X).square().sum().backward()
    torch.testing.assert_close(given["values"].grad, layer.values.grad)
