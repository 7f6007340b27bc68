"""Gradients of spmm's max and min: each output's gradient goes to the one edge that ``arg`` names."""

from sparsegnn.ops._extremum import extremum_gradients
from sparsegnn.ops._library import define


def reference(dy, x, arg, val, crow, col, ccol, row, perm, need_dx, need_dval, cspans=None):
    """The same in plain PyTorch."""
    return extremum_gradients(dy, x, arg, val, crow, col, ccol, row, perm, need_dx, need_dval)


def fake(dy, x, arg, val, crow, col, ccol, row, perm, need_dx, need_dval, cspans=None):
    return x.new_empty(x.shape if need_dx else (0, 0)), x.new_empty(col.size(0) if need_dval else 0)


op = define(
    "spmm_arg_backward(Tensor dy, Tensor x, Tensor arg, Tensor? val, Tensor crow, Tensor col, Tensor? ccol, "
    "Tensor? row, Tensor? perm, bool need_dx, bool need_dval, Tensor? cspans=None) -> (Tensor, Tensor)",
    reference,
    fake,
)
