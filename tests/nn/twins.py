"""A layer of ours and PyG's or torch's with the same parameters, and how their results are compared."""

import pytest
import torch

from sparsegnn import nn, pattern


def twins(layer: str, *sizes, dtype=torch.float64, **options):
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
