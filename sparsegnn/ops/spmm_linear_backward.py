"""The gradients of spmm_linear: dx = (L^T dy) W and dvalues = (L^T dy)^T x on the nonzeros, from one gather of dy."""

import torch
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._library import define
from sparsegnn.ops._random import dropout_like


def reference(dy, x, ccol, row, val, row_scale, col_scale, diag, values, w_crow, w_col, w_ccol, w_row, w_perm, need_dx,
              need_dvalues, need_dbias, y=None, dropout=0.0, seed=None):  # fmt: skip
    """The two ops, one after the other, on dy masked by what followed the sums."""
    if y is not None:
        dy = dy.masked_fill(y <= 0, 0) / (1 - dropout if dropout < 1 else 1)
    elif dropout > 0:
        acc = torch.promote_types(dy.dtype, torch.float32)
        dy = (dy.to(acc) * dropout_like(seed, dy.to(acc), dropout)).to(dy.dtype)
    graph = (ccol, row, val, row_scale, col_scale, diag, None, None, None)
    weight = (w_crow, w_col, w_ccol, w_row, w_perm)
    dbias = dy.sum(0) if need_dbias else x.new_empty(0)
    if not need_dx and not need_dvalues:
        return x.new_empty(0, 0), values.new_empty(0), dbias
    g, _ = torch.ops.sparsegnn.spmm(dy, *graph, "sum", False)
    dx, dvalues, _ = torch.ops.sparsegnn.sparse_linear_backward(
        g, x, values, *weight, need_dx, need_dvalues, False, None, 0.0, None
    )
    return dx if need_dx else x.new_empty(0, 0), dvalues, dbias


def fake(dy, x, ccol, row, val, row_scale, col_scale, diag, values, w_crow, w_col, w_ccol, w_row, w_perm, need_dx,
         need_dvalues, need_dbias, *_):  # fmt: skip
    dx = x.new_empty(x.shape if need_dx else (0, 0))
    return dx, values.new_empty(values.shape if need_dvalues else (0,)), x.new_empty(dy.size(1) if need_dbias else 0)


define(
    "spmm_linear_backward(Tensor dy, Tensor x, Tensor ccol, Tensor row, Tensor? val, Tensor? row_scale, "
    "Tensor? col_scale, Tensor? diag, Tensor values, Tensor w_crow, Tensor w_col, Tensor w_ccol, Tensor w_row, "
    "Tensor w_perm, bool need_dx, bool need_dvalues, bool need_dbias, Tensor? y=None, float dropout=0.0, "
    "Tensor? seed=None) -> (Tensor, Tensor, Tensor)",
    reference,
    fake,
    composite=True,
)


@register_flop_formula(torch.ops.sparsegnn.spmm_linear_backward)
def _(dy, x, ccol, row, val, row_scale, col_scale, diag, values, w_crow, w_col, w_ccol, w_row, w_perm, need_dx,
      need_dvalues, *args, **kwargs) -> int:  # fmt: skip
    gather = 2 * row[0] * dy[1] if need_dx or need_dvalues else 0
    return gather + 2 * x[0] * values[0] * (need_dx + need_dvalues)  # arguments are shapes
