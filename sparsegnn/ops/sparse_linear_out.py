"""sparse_linear into memory that the caller owns: no output is allocated, and there is no gradient."""

import torch

from sparsegnn.ops._library import define


def reference(out, x, values, bias, crow, col, ccol, act="none", dropout=0.0, seed=None):
    """The same in plain PyTorch."""
    pattern = (crow, col, *torch.ops.sparsegnn.csr_transpose(crow, col, x.size(1)))
    out.copy_(torch.ops.sparsegnn.sparse_linear(x, values, bias, *pattern, act, dropout, seed))


def fake(out, x, values, bias, crow, col, ccol, act="none", dropout=0.0, seed=None):
    return None


op = define(
    "sparse_linear_out(Tensor(a!) out, Tensor x, Tensor values, Tensor? bias, Tensor crow, Tensor col, Tensor ccol, "
    "str act='none', float dropout=0.0, Tensor? seed=None) -> ()",
    reference,
    fake,
)
