"""Gradients of sparse_linear: by its kernels, or dvalues gathered from a dense product where that is cheaper."""

import torch
from torch import Tensor

from sparsegnn import policy

TENSOR_CORES = "cuda"  # the device whose dense products are so fast; elsewhere nobody is asked, which takes 1.5 us


def gathers(x: Tensor, values: Tensor, outputs: int) -> bool:
    """The policy, asked in the forward pass: forced kernels belong to its thread."""
    device = x.device.type
    if device != TENSOR_CORES:
        return False
    return policy.gathers_gradient(values.numel(), (outputs, x.size(1)), policy.rounded(device, x.dtype), device)


def gradients(dy, x, values, crow, col, ccol, row, perm, need, y=None, dropout=0.0, seed=None, *, gathered=False,
              need_dense=False):  # fmt: skip
    """``(dx, dvalues, dbias, dense)``, as far as ``need`` asks; ``dense`` [M, K] is dy^T x, made once for all who ask.

    Deterministic where torch's product is; nothing waits for the device, so that a CUDA graph can hold it.
    """
    need_dx, need_dvalues, need_dbias = need
    # Dropout alone leaves no y to mask dy with: that stays with the kernels.
    gathered = gathered and need_dvalues and (y is not None or dropout == 0)
    if gathered and y is not None:
        dy = torch.ops.aten.threshold_backward(dy, y, 0)
        dy, y, dropout, seed = dy if dropout in (0, 1) else dy * (1 / (1 - dropout)), None, 0.0, None
    dx = dvalues = dbias = dense = None
    if need_dx or need_dbias or (need_dvalues and not gathered):
        wanted = (need_dx, need_dvalues and not gathered, need_dbias)
        pattern = (crow, col, ccol, row, perm)
        dx, dvalues, dbias = torch.ops.sparsegnn.sparse_linear_backward(
            dy, x, values, *pattern, *wanted, y, dropout, seed
        )
    if gathered or need_dense:
        dense = dy.contiguous().mT @ x.contiguous()  # the same bits for every layout
    if gathered:
        dvalues = torch.ops.sparsegnn.dense_weight_values(dense, crow, col)
    return *(g if n else None for g, n in zip((dx, dvalues, dbias), need, strict=True)), dense
