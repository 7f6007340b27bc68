"""x W^T for a graph layer, where what stands around it wants its parts: without the bias, or added to what is there."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import addmm_flop, flop_registry

from sparsegnn.nn.features import check_dtype, dense_features, is_sparse, sparse_features
from sparsegnn.nn.inner import Linear, is_plain, is_unwatched
from sparsegnn.nn.linear import SparseLinear
from sparsegnn.ops._autograd import transformed
from sparsegnn.ops.sparse_linear import apply as sparse_linear

DENSE = (Linear, nn.Linear)
flop_registry.setdefault(torch.ops.aten.addmm_, addmm_flop)  # a product as any other


def product(linear: nn.Module, x: Tensor) -> Tensor | None:
    """``x W^T`` without the bias of ``linear``; None where only a call of it will do."""
    if not is_plain(linear):  # a class of its own may say what it is without the bias
        return linear.product(x) if hasattr(type(linear), "product") and is_unwatched(linear) else None
    if type(linear) in DENSE:
        w = linear.weight
        return nn.functional.linear(x, w) if x.layout == torch.strided else dense_features("Linear", x, w.t())
    if linear.bias is None:
        return linear(x)
    if not isinstance(linear, SparseLinear):
        return None
    linear._settle()
    if is_sparse(x):
        return sparse_features(linear, x, None)
    if not linear.bare:
        return None
    check_dtype("SparseLinear", "input", x, linear.values.dtype)
    return sparse_linear(x, linear.values, None, linear.crow, linear.col, linear.ccol, linear.row, linear.perm)


def fresh(linear: nn.Module, x: Tensor) -> Tensor:
    """``linear(x)``, which may be overwritten."""
    y = linear(x)
    return y if is_plain(linear) else y.clone()  # else it may be kept, or be x


def plus(y: Tensor, other: Tensor, factor: float = 1) -> Tensor:
    """``y + factor * other`` in the dtype of y, which is overwritten: it must be nobody else's."""
    if transformed():  # other may have a batch that y has not
        return y.add(other.to(y.dtype), alpha=factor)
    return y.add_(other, alpha=factor)


def add_product(y: Tensor, linear: nn.Module, x: Tensor) -> Tensor:
    """``y + linear(x)``; overwrites y as :func:`plus`."""
    if type(linear) in DENSE and is_plain(linear) and not (torch._C._is_any_autocast_enabled() or transformed()):
        own = linear._parameters  # an attribute costs 0.6 us
        w = own.get("weight")
        if w is not None and own["bias"] is None and y.dtype == x.dtype == w.dtype and x.layout == torch.strided:
            return y.addmm_(x, w.t())
    return plus(y, linear(x))


def refuse_sparse(layer: str, x, name: str = "x") -> None:
    """Of a layer that aggregates before it multiplies: a product of two sparse matrices is no less than one with a
    dense one, as soon as neighbours share few features."""
    if is_sparse(x):
        raise TypeError(f"{layer}: {name} must be dense, got {x.layout}: call {name}.to_dense()")
