"""The masked baseline is the dense net with weights set to zero, on dense and on sparse features."""

import copy

import pytest
import torch
from torch import nn

import sparsegnn
from sparsegnn.experiments.masked_dense import MaskedDense, MaskedLinear
from sparsegnn.nn import GATConv, GCNConv, SAGEConv
from sparsegnn.nn.inner import Linear

N = 12
EDGES = torch.stack([torch.arange(N), torch.arange(N).roll(1)])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("make", [lambda: GCNConv(9, 4), lambda: SAGEConv(9, 4), lambda: SAGEConv(9, 40),
                                  lambda: GATConv(9, 4), lambda: Linear(9, 4), lambda: nn.Linear(9, 4)])  # fmt: skip
def test_is_the_dense_net_with_zeros(make, sparse):
    conv = make()
    zeroed = copy.deepcopy(conv)
    model = nn.ModuleList([conv])
    MaskedDense(model, torch.optim.SGD(model.parameters(), 0.1), sparsity=0.75)
    masks = {n: m.mask for n, m in conv.named_modules() if isinstance(m, MaskedLinear)}
    assert masks and all(set(mask.unique().tolist()) == {0.0, 1.0} for mask in masks.values())
    kept, every = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    assert kept == round(0.25 * every)
    with torch.no_grad():
        for name, linear in zeroed.named_modules():
            if name in masks:
                linear.weight.mul_(masks[name])
    x = torch.randn(N, 9) * (torch.rand(N, 9) < 0.3)
    given = (x,) if isinstance(conv, nn.Linear) else (x, sparsegnn.CSRGraph.from_edge_index(EDGES, N))
    want = zeroed(*given)
    if sparse:
        given = (x.to_sparse_csr(), *given[1:])
    got = conv(*given)
    torch.testing.assert_close(got, want)
    got.square().sum().backward()
    want.square().sum().backward()
    for (name, ours), theirs in zip(conv.named_parameters(), zeroed.parameters(), strict=True):
        mask = masks.get(name.rpartition(".")[0])
        grad = theirs.grad * mask if name.endswith("weight") and mask is not None else theirs.grad
        torch.testing.assert_close(ours.grad, grad, msg=name)
