"""Gradients of spmm's max and min: each output's gradient goes to the one edge that ``arg`` names."""

import torch

from sparsegnn.ops._library import define


def reference(dy, x, arg, val, crow, col, ccol, row, perm, need_dx, need_dval):
    """The same in plain PyTorch."""
    acc = x.double() if x.dtype == torch.float64 else x.float()
    edge, k = arg.clamp(min=0).long(), torch.arange(x.size(1), device=x.device).expand_as(arg)
    flow = torch.where(arg >= 0, dy.to(acc), 0)
    if not col.numel():  # no edge to index
        return x.new_zeros(x.shape if need_dx else (0, 0)), x.new_zeros(0)
    weight = flow if val is None else flow * val.to(acc)[edge]
    source = col.long()[edge]
    dx = torch.zeros_like(acc).index_put((source, k), weight, accumulate=True) if need_dx else acc.new_empty(0, 0)
    dval = acc.new_zeros(col.numel()).index_put((edge,), flow * acc[source, k], accumulate=True) if need_dval else None
    return dx.to(x.dtype), (x.new_empty(0) if dval is None else dval.to(x.dtype))


def fake(dy, x, arg, val, crow, col, ccol, row, perm, need_dx, need_dval):
    return x.new_empty(x.shape if need_dx else (0, 0)), x.new_empty(col.size(0) if need_dval else 0)


op = define(
    "spmm_arg_backward(Tensor dy, Tensor x, Tensor arg, Tensor? val, Tensor crow, Tensor col, Tensor ccol, "
    "Tensor row, Tensor perm, bool need_dx, bool need_dval) -> (Tensor, Tensor)",
    reference,
    fake,
)
