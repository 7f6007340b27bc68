"""Gradients of maxk_spmm, of the compressed values and of the edge weights.

dvalues[j, t] = sum over the edges of column j of weight * dy[row, index[j, t]].
"""

import torch

from sparsegnn.ops._library import define, rows_of


def reference(dy, values, index, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, reduce, need_dvalues,
              need_dval, cspans=None):  # fmt: skip
    """The same in plain PyTorch."""
    acc, source, target = torch.promote_types(values.dtype, torch.float32), col.long(), rows_of(crow, col.numel())
    degree = crow.diff().clamp(min=1)[:, None] if reduce == "mean" else 1
    flow = dy.to(acc) / degree if row_scale is None else dy.to(acc) * row_scale.to(acc)[:, None] / degree
    scale = torch.ones(values.size(0), dtype=acc, device=dy.device) if col_scale is None else col_scale.to(acc)
    message = flow[target].gather(1, index.long()[source]) * scale[source, None]
    dvalues, dval = dy.new_empty(0, 0), dy.new_empty(0)
    if need_dvalues:
        edge = message if val is None else message * val.to(acc)[:, None]
        dvalues = torch.zeros_like(values, dtype=acc).index_add(0, source, edge)
        if diag is not None:
            dvalues = dvalues + flow.gather(1, index.long()) * (diag.to(acc) * scale)[:, None]
    if need_dval:
        dval = (message * values.to(acc)[source]).sum(1)
    return dvalues.to(values.dtype), dval.to(values.dtype)


def fake(dy, values, index, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, reduce, need_dvalues,
         need_dval, cspans=None):  # fmt: skip
    return values.new_empty(values.shape if need_dvalues else (0, 0)), values.new_empty(col.size(0) if need_dval else 0)


op = define(
    "maxk_spmm_backward(Tensor dy, Tensor values, Tensor index, Tensor crow, Tensor col, Tensor? val, "
    "Tensor? row_scale, Tensor? col_scale, Tensor? diag, Tensor? ccol, Tensor? row, Tensor? perm, str reduce, "
    "bool need_dvalues, bool need_dval, Tensor? cspans=None) -> (Tensor, Tensor)",
    reference,
    fake,
)
