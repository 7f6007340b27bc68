"""A layer of ours and PyG's or torch's with the same parameters, and how their results are compared."""

import pytest
import torch

from sparsegnn import nn, pattern


def twins(layer: str, /, *sizes, dtype=torch.float64, **options):
    """Ours and PyG's layer of this name, through the checkpoint."""
    pyg = pytest.importorskip("torch_geometric.nn")
    theirs = getattr(pyg, layer)(*sizes, **options).to(dtype)
    ours = getattr(nn, layer)(*sizes, **options).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    if getattr(ours, "bias", None) is not None:
        torch.nn.init.normal_(ours.bias)
        theirs.load_state_dict(ours.state_dict())
    return ours, theirs


class Initial(torch.nn.Module):
    """A GCN2Conv that is called as other layers are; ``x_0`` is made of ``x``."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, *args):
        dense = x if isinstance(x, torch.Tensor) else x.to_dense()
        return self.conv(x, dense.flip(0) * 2, *args)


def random_graph(n=40, e=160, seed=0):
    """Duplicates, isolated nodes, self-loops; of these one per node, as PyG's gradient of others is not defined."""
    g = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(n - 4, (2, e), generator=g)
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    loops = torch.randperm(n, generator=g)[:7].expand(2, 7)
    edge_index = torch.cat([edge_index, loops], 1)
    edge_index = edge_index[:, torch.randperm(edge_index.size(1), generator=g)]
    return edge_index, torch.rand(edge_index.size(1), generator=g, dtype=torch.float64) + 0.1


def run(conv, x, edge_index, weight):
    """The output, and the gradients of its product with a fixed random tensor."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight) if t is not None]
    y = conv(leaves[0], edge_index, *leaves[1:])
    flow = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *(p for _, p in sorted(conv.named_parameters()))], flow)]


def assert_close(got, wanted, tolerance=1e-11, least=1e-6):
    """Outputs and gradients, each held against its norm or ``least``."""
    for g, w in zip(got, wanted, strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        assert (g - w).norm() <= tolerance * w.norm().clamp(min=least), f"{(g - w).norm()} of {w.norm()}"


def assert_equals_dense(layer, dense, x):
    """A SparseLinear and the nn.Linear with the same weights: outputs and all gradients."""
    other = x.detach().clone().requires_grad_()
    y, want = layer(x), dense(other)
    torch.testing.assert_close(y, want)
    dy = torch.randn_like(y)
    y.backward(dy)
    want.backward(dy)
    torch.testing.assert_close(x.grad, other.grad)
    kept = pattern.gather(dense.weight.grad, *layer.pattern(), layer.structure)
    torch.testing.assert_close(layer.values.grad, kept)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
