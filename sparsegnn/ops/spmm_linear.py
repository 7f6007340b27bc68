"""y = epilogue(bias + L x W^T), a graph aggregation and a sparse linear layer in one op; on CUDA in one kernel.

L is the matrix of spmm: y[r] = row_scale[r] * (sum_e val[e] * col_scale[col[e]] * x[col[e]] + the diagonal).
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import differentiate, recorded, register_autograd
from sparsegnn.ops._library import define
from sparsegnn.ops._linear_gradients import masked


def reference(x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, values, bias, w_crow, w_col, w_ccol,
              w_row, w_perm, act="none", dropout=0.0, seed=None):  # fmt: skip
    """The two ops, one after the other: what runs on the CPU, and what the tests compare with."""
    graph = (crow, col, val, row_scale, col_scale, diag, ccol, row, perm)
    ax, _ = torch.ops.sparsegnn.spmm(x, *graph, "sum", False)
    weight = (w_crow, w_col, w_ccol, w_row, w_perm)
    return torch.ops.sparsegnn.sparse_linear(ax, values, bias, *weight, act, dropout, seed)


def fake(x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, values, bias, w_crow, *_):
    return x.new_empty(crow.size(0) - 1, w_crow.size(0) - 1)


op = define(
    "spmm_linear(Tensor x, Tensor crow, Tensor col, Tensor? val, Tensor? row_scale, Tensor? col_scale, Tensor? diag, "
    "Tensor? ccol, Tensor? row, Tensor? perm, Tensor values, Tensor? bias, Tensor w_crow, Tensor w_col, "
    "Tensor w_ccol, Tensor w_row, Tensor w_perm, str act='none', float dropout=0.0, Tensor? seed=None) -> Tensor",
    reference,
    fake,
    cast=("x", "val", "values", "bias"),
    composite=True,
)


def setup_context(ctx, inputs, output):
    *tensors, act, ctx.dropout, seed = inputs
    ctx.save_for_backward(*tensors, output if act == "relu" else None, seed)


def backward(ctx, dy):
    x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, values, bias, *weight, y, seed = ctx.saved_tensors
    need = [ctx.needs_input_grad[i] for i in (0, 10, 11)]
    if any(ctx.needs_input_grad[3:7]):
        raise NotImplementedError("spmm_linear: val, scales and diag are constants; use spmm and sparse_linear instead")
    if ccol is None:
        raise ValueError("spmm_linear: ccol, row and perm must be given for a gradient, got None")
    if recorded():
        given = (x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, values, bias, *weight)
        return differentiate(reference, given, ctx.needs_input_grad, masked(dy, y, ctx.dropout, seed))
    graph = (ccol, row, None if val is None else val.index_select(0, perm), col_scale, row_scale, diag)
    grads = torch.ops.sparsegnn.spmm_linear_backward(dy, x, *graph, values, *weight, *need, y, ctx.dropout, seed)
    dx, dvalues, dbias = (g if n else None for g, n in zip(grads, need, strict=True))
    return dx, *[None] * 9, dvalues, dbias, *[None] * 8


apply = register_autograd(op, backward, setup_context)


@register_flop_formula(torch.ops.sparsegnn.spmm_linear)
def _(x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, values, *args, out_shape=None, **kwargs) -> int:
    return 2 * col[0] * x[1] + 2 * (crow[0] - 1) * values[0]  # arguments are shapes
