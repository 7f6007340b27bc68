"""The gradients of features_linear: dW at the nonzeros of W only, and the sums of dy."""

import torch
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._library import define, rows_of
from sparsegnn.ops._products import flop


def reference(dy, x_crow, x_col, x_val, x_ccol, x_row, x_val_t, ccol, row, perm, height, width, need_dvalues,
              need_dbias, products=-1):  # fmt: skip
    """The same in plain PyTorch."""
    acc = torch.promote_types(dy.dtype, torch.float32)
    g, rows, cols = dy.to(acc), dy.size(1) // height, ccol.numel() - 1
    dvalues, dbias = dy.new_empty(0), dy.new_empty(0)
    if need_dvalues:
        each = x_val.to(acc)[:, None] * g[rows_of(x_crow, x_col.numel())]
        gradient = g.new_zeros(cols * width, dy.size(1)).index_add(0, x_col, each).t()
        tiles = gradient.reshape(rows, height, cols, width).transpose(1, 2)
        blocks = tiles[row.long(), rows_of(ccol, row.numel())]
        dvalues = torch.empty_like(blocks).index_copy(0, perm.long(), blocks).flatten().to(dy.dtype)
    if need_dbias:
        dbias = g.sum(0).to(dy.dtype)
    return dvalues, dbias


def fake(dy, x_crow, x_col, x_val, x_ccol, x_row, x_val_t, ccol, row, perm, height, width, need_dvalues, need_dbias,
         products=-1):  # fmt: skip
    values = row.size(0) * height * width
    return dy.new_empty(values if need_dvalues else 0), dy.new_empty(dy.size(1) if need_dbias else 0)


define(
    "features_linear_backward(Tensor dy, Tensor x_crow, Tensor x_col, Tensor x_val, Tensor? x_ccol, Tensor? x_row, "
    "Tensor? x_val_t, Tensor ccol, Tensor row, Tensor perm, int height, int width, bool need_dvalues, "
    "bool need_dbias, int products=-1) -> (Tensor, Tensor)",
    reference,
    fake,
)


@register_flop_formula(torch.ops.sparsegnn.features_linear_backward)
def _(dy, x_crow, x_col, x_val, x_ccol, x_row, x_val_t, ccol, row, perm, height, width, need_dvalues, need_dbias,
      products=-1, **_) -> int:  # fmt: skip
    return need_dvalues * flop(products, x_col[0], row[0] * height * width, (ccol[0] - 1) * width)
