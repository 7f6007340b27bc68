"""The gradients of sparse_linear, in one pass over dy; dy is masked first when ReLU or dropout followed."""

import torch
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._library import define, rows_of
from sparsegnn.ops._random import dropout_like


def reference(
    dy, x, values, crow, col, ccol, row, perm, need_dx, need_dvalues, need_dbias, y=None, dropout=0.0, seed=None
):
    acc = torch.promote_types(x.dtype, torch.float32)
    rows, g = rows_of(crow, col.numel()), dy.to(acc)
    if y is not None:
        g = g.masked_fill(y <= 0, 0) / (1 - dropout if dropout < 1 else 1)
    elif dropout > 0:
        g = g * dropout_like(seed, g, dropout)
    weight = x.new_zeros(dy.size(1), x.size(1), dtype=acc)
    weight.index_put_((rows, col.long()), values.to(acc), accumulate=True)
    dx = g @ weight if need_dx else x.new_empty(0)
    dvalues = (g.mT @ x.to(acc))[rows, col.long()] if need_dvalues else x.new_empty(0)
    dbias = g.sum(0) if need_dbias else x.new_empty(0)
    return dx.to(x.dtype), dvalues.to(values.dtype), dbias.to(x.dtype)


def fake(dy, x, values, crow, col, ccol, row, perm, need_dx, need_dvalues, need_dbias, *_):
    dx = x.new_empty(x.shape if need_dx else (0,))
    return dx, values.new_empty(values.shape if need_dvalues else (0,)), x.new_empty(dy.size(1) if need_dbias else 0)


define(
    "sparse_linear_backward(Tensor dy, Tensor x, Tensor values, Tensor crow, Tensor col, Tensor ccol, Tensor row, "
    "Tensor perm, bool need_dx, bool need_dvalues, bool need_dbias, Tensor? y=None, float dropout=0.0, "
    "Tensor? seed=None) -> (Tensor, Tensor, Tensor)",
    reference,
    fake,
)


@register_flop_formula(torch.ops.sparsegnn.sparse_linear_backward)
def _(dy, x, values, crow, col, ccol, row, perm, need_dx, need_dvalues, *args, **kwargs) -> int:
    return 2 * x[0] * values[0] * (need_dx + need_dvalues)
