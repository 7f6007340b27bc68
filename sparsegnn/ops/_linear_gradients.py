"""Gradients of sparse_linear: by its kernels, or dvalues gathered from a dense product where that is cheaper."""

import torch
from torch import Tensor

from sparsegnn import policy
from sparsegnn.ops._autograd import recorded
from sparsegnn.ops._library import rows_of
from sparsegnn.ops._random import dropout_like

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
    if recorded():
        return by_dense_weight(masked(dy, y, dropout, seed), x, values, crow, col, need=need)
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


def by_dense_weight(dy, x, values, crow, col, height=1, width=1, *, need) -> tuple:
    """``(dx, dvalues, dbias, dense)`` by products with the whole weight, which can be differentiated again."""
    acc = torch.promote_types(x.dtype, torch.float32)
    flow, wide = dy.to(acc), x.to(acc)
    dense = flow.mT @ wide
    dx = dvalues = dbias = None
    if need[0]:
        rows, across = crow.numel() - 1, x.size(1) // width
        slot = rows_of(crow, col.numel()) * across + col
        blocks = flow.new_zeros(rows * across, height, width)
        blocks = blocks.index_add(0, slot, values.to(acc).view(-1, height, width))  # an entry may be there twice
        weight = blocks.view(rows, across, height, width).transpose(1, 2).reshape(rows * height, x.size(1))
        dx = (flow @ weight).to(x.dtype)
    if need[1]:
        blocks = dense.view(crow.numel() - 1, height, x.size(1) // width, width).transpose(1, 2)
        dvalues = blocks[rows_of(crow, col.numel()), col.long()].flatten().to(values.dtype)
    if need[2]:
        dbias = flow.sum(0).to(x.dtype)
    return dx, dvalues, dbias, dense


def masked(dy: Tensor, y: Tensor | None, dropout: float, seed: Tensor | None) -> Tensor:
    """``dy`` before ReLU and dropout, of which ``y`` came out, or dropout alone."""
    acc = torch.promote_types(dy.dtype, torch.float32)
    if y is not None:
        return (dy.to(acc).masked_fill(y <= 0, 0) / (1 - dropout if dropout < 1 else 1)).to(dy.dtype)
    return dy if dropout == 0 else (dy.to(acc) * dropout_like(seed, dy.to(acc), dropout)).to(dy.dtype)
