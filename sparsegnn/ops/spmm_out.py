"""spmm into memory that the caller owns: no output is allocated, and there is no gradient."""

import torch

from sparsegnn.ops._library import define


def reference(out, x, crow, col, val, row_scale, col_scale, diag, reduce, spans=None):
    """The same in plain PyTorch."""
    out.copy_(torch.ops.sparsegnn.spmm(x, crow, col, val, row_scale, col_scale, diag, None, None, None, reduce)[0])


def fake(out, x, crow, col, val, row_scale, col_scale, diag, reduce, spans=None):
    return None


op = define(
    "spmm_out(Tensor(a!) out, Tensor x, Tensor crow, Tensor col, Tensor? val, Tensor? row_scale, Tensor? col_scale, "
    "Tensor? diag, str reduce, Tensor? spans=None) -> ()",
    reference,
    fake,
)
