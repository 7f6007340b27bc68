"""Sparse features: X as ``torch.sparse_csr`` or ``torch.sparse_coo`` times a weight, dense or sparse.

X W^T sums rows of W^T, one for every nonzero of X: it is spmm with W^T as its table. Bag-of-words features are
1 % dense, which no sparsity of the weight can match. Where the weight is sparse too, only nonzeros that meet are
multiplied (:mod:`sparsegnn.ops.features_linear`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from sparsegnn import policy
from sparsegnn.graph_formats import outside_modes
from sparsegnn.nn.feature_structure import Structure, structure
from sparsegnn.ops._autograd import inverted, transformed
from sparsegnn.ops.dense_weight import gather
from sparsegnn.ops.features_linear import apply as features_linear
from sparsegnn.ops.spmm import apply as spmm

LAYOUTS = (torch.sparse_csr, torch.sparse_coo)


def product(table: Tensor, crow: Tensor, col: Tensor, val: Tensor, *transpose: Tensor) -> Tensor:
    """With the ``transpose`` (ccol, row, perm) differentiable in ``table``."""
    return spmm(table, crow, col, val, None, None, None, *(transpose or (None, None, None)), "sum")[0]


def turned(dy: Tensor, csr: Structure, val_t: Tensor) -> Tensor:
    """X^T dy, differentiable where the gradient may be."""
    back = (csr.crow, csr.col, inverted(csr.perm)) if torch.is_grad_enabled() else ()
    return product(dy, csr.ccol, csr.row, val_t.to(dy.dtype), *back)


class _Product(torch.autograd.Function):
    """X W^T; autograd of spmm would order the values for the transpose at every step."""

    @staticmethod
    def forward(ctx, weight_t, csr, val):
        ctx.csr, ctx.dtype = csr, weight_t.dtype
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(csr.transposed(val))
        return product(weight_t, csr.crow, csr.col, val)

    @staticmethod
    def backward(ctx, dy):
        (val_t,) = ctx.saved_tensors
        return turned(dy, ctx.csr, val_t).to(ctx.dtype), None, None


def is_sparse(x) -> bool:
    return isinstance(x, Tensor) and x.layout in LAYOUTS


class _Probed(torch.autograd.Function):
    """The product of a layer whose dense gradient, dy^T X, is wanted, in ``probe.grad``: the values' is read off it.

    So a step with a probe makes one product in its backward pass, as a dense layer does in every step.
    """

    @staticmethod
    def forward(ctx, values, bias, probe, layer, csr, val, kernel):
        ctx.csr, ctx.block = csr, layer.block
        ctx.save_for_backward(csr.transposed(val), layer.crow, layer.col)
        return _multiplied(layer, csr, val, values, bias, kernel)

    @staticmethod
    def backward(ctx, dy):
        val_t, crow, col = ctx.saved_tensors
        dense = turned(dy, ctx.csr, val_t).t().contiguous()
        dbias = dy.sum(0) if ctx.needs_input_grad[1] else None
        return gather(dense, crow, col, *ctx.block), dbias, dense, None, None, None, None


def dense_features(layer: str, x: Tensor, weight_t: Tensor) -> Tensor:
    """``x @ weight_t`` [N, M] for sparse ``x`` [N, K]; differentiable in ``weight_t`` [K, M], not in ``x``."""
    return _dense_product(weight_t, *checked(layer, x, weight_t.size(0), weight_t.dtype))


def _dense_product(weight_t: Tensor, csr: Structure, val: Tensor) -> Tensor:
    if transformed():
        return product(weight_t, csr.crow, csr.col, val, csr.ccol, csr.row, csr.perm)
    if weight_t.requires_grad and torch.is_grad_enabled():
        return _Product.apply(weight_t, csr, val)
    return product(weight_t, csr.crow, csr.col, val)


def sparse_features(layer, x: Tensor, bias: Tensor | None) -> Tensor:
    """The product of a :class:`SparseLinear` and sparse ``x`` [N, K], plus ``bias``; not differentiable in ``x``."""
    values, probe = layer.values, layer.probe
    csr, val = checked("SparseLinear", x, layer.in_features, values.dtype)
    kernel = policy.features_kernel(values, (layer.out_features, layer.in_features), layer.structure)
    if probe is None or not values.requires_grad or not torch.is_grad_enabled():
        return _multiplied(layer, csr, val, values, bias, kernel)
    return _Probed.apply(values, bias, probe, layer, csr, val, kernel)


def _multiplied(layer, csr: Structure, val: Tensor, values: Tensor, bias: Tensor | None, kernel: str) -> Tensor:
    if kernel == "dense":
        y = _dense_product(layer.dense_weight().t(), csr, val)
        return y if bias is None else y.add_(bias.to(y.dtype))
    weight = layer._buffers["ccol"], layer._buffers["row"], layer._buffers["perm"]
    sizes = (*layer.block, layer.out_features, _products(csr, weight[0], layer.block))
    transpose = (csr.ccol, csr.row, csr.transposed(val)) if val.is_cuda else (None, None, None)
    return features_linear(values, bias, csr.crow, csr.col, val, *transpose, *weight, *sizes)


def _products(csr: Structure, ccol: Tensor, block: tuple[int, int]) -> int:
    """How many products the kernel forms, for whoever counts FLOPs; -1: nobody does."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() == 0:
        return -1
    height, width = block
    with _disable_current_modes():  # counting is no part of what is counted
        meeting = csr.ccol.diff().long().view(-1, width).sum(1) * ccol.diff().long()
        return int(meeting.sum()) * height


def checked(layer: str, x: Tensor, inputs: int, dtype: torch.dtype) -> tuple[Structure, Tensor]:
    """The structure and the values of ``x`` [N, inputs], which must be constant and of the weight's ``dtype``."""
    csr, val = parts(layer, x, inputs)
    check_dtype(layer, "x", val, dtype)
    return csr, val


def check_dtype(layer: str, name: str, x: Tensor, dtype: torch.dtype) -> None:
    """That of the weight, where autocast does not see to it."""
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{layer}: {name} must have the dtype of the weight ({dtype}), got {x.dtype}")


@outside_modes
def parts(layer: str, x: Tensor, inputs: int) -> tuple[Structure, Tensor]:
    if x.dim() != 2 or x.size(1) != inputs or x.dense_dim():
        raise ValueError(f"{layer}: x must have shape [N, {inputs}] when sparse, got {list(x.shape)}")
    if x.requires_grad:
        raise ValueError(f"{layer}: x must not require a gradient when sparse, got requires_grad=True")
    csr = structure(x)
    return csr, csr.values(x)
