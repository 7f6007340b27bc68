"""y = x W^T + bias with W stored as its nonzeros: the linear layer of sparse training, all three matmuls sparse."""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import register_autograd
from sparsegnn.ops._library import check, check_epilogue, check_like, check_pattern_device, define, rows_of
from sparsegnn.ops._linear_gradients import gathers, gradients
from sparsegnn.ops._out import check_out, write
from sparsegnn.ops._random import dropout_like


def reference(x, values, bias, crow, col, ccol, row, perm, act="none", dropout=0.0, seed=None):
    """The same in plain PyTorch: what the tests compare with, and what runs when nothing is compiled."""
    acc = torch.promote_types(x.dtype, torch.float32)
    m, k = crow.numel() - 1, x.size(1)
    slot = rows_of(crow, col.numel()) * k + col
    weight = x.new_zeros(m * k, dtype=acc).index_add(0, slot, values.to(acc)).view(m, k)
    y = torch.nn.functional.linear(x.to(acc), weight, None if bias is None else bias.to(acc))
    y = y.relu() if act == "relu" else y
    return (y if dropout == 0 else y * dropout_like(seed, y, dropout)).to(x.dtype)


def fake(x, values, bias, crow, col, ccol, row, perm, act="none", dropout=0.0, seed=None):
    return x.new_empty(x.size(0), crow.size(0) - 1)


op = define(
    "sparse_linear(Tensor x, Tensor values, Tensor? bias, Tensor crow, Tensor col, Tensor ccol, Tensor row, "
    "Tensor perm, str act='none', float dropout=0.0, Tensor? seed=None) -> Tensor",
    reference,
    fake,
    cast=("x", "values", "bias"),
)


def setup_context(ctx, inputs, output):
    x, values, _, *pattern, act, ctx.dropout, seed = inputs
    ctx.save_for_backward(x, values, *pattern, output if act == "relu" else None, seed)
    ctx.gathered = gathers(x, values, output.size(1))


def backward(ctx, dy):
    *saved, y, seed = ctx.saved_tensors
    grads = gradients(dy, *saved, ctx.needs_input_grad[:3], y, ctx.dropout, seed, gathered=ctx.gathered)
    return *grads[:3], *[None] * 8


apply = register_autograd(op, backward, setup_context, leading=3)


@register_flop_formula(torch.ops.sparsegnn.sparse_linear)
def _(x, values, *args, out_shape=None, **kwargs) -> int:
    return 2 * x[0] * values[0]  # arguments are shapes


def sparse_linear(x, values, bias, crow, col, ccol, row, perm, act="none", dropout=0.0, seed=None, *,
                  out=None) -> Tensor:  # fmt: skip
    """``dropout(act(x @ W.T + bias))`` for a CSR weight ``W`` of shape ``[M, K]``.

    Args:
        x: ``[..., K]``, float32, float64, bfloat16 or float16 (fp32 accumulation).
        values: ``[nnz]`` entries of ``W`` in the order of ``col``, the dtype of ``x``.
        bias: ``[M]`` or None.
        crow, col: int32 ``[M + 1]`` and ``[nnz]``, the pattern; ``ccol, row, perm``: its transpose
            (:func:`sparsegnn.pattern.transpose`), used by the backward.
        act: ``"none"`` or ``"relu"``, applied as results are stored; its gradient as ``dy`` is loaded.
        dropout: probability that a result becomes 0 (the others are scaled by ``1 / (1 - dropout)``); needs ``seed``,
            int64 ``[1]`` on the device of ``x``. The same seed drops the same results.
        out: ``[..., M]``, contiguous, apart from the inputs in memory: written and returned; no gradient.

    Returns:
        ``[..., M]``. Deterministic: the same bits for any number of threads, gradients included.
    """
    m, k, name = crow.numel() - 1, ccol.numel() - 1, "sparse_linear"
    check(name, "x", x, ("...", k))
    check(name, "values", values, (col.numel(),), x)
    check_pattern_device(name, x.device, crow, col, ccol, row, perm)
    if not torch.is_autocast_enabled(x.device.type):
        check_like(name, "values", values, x)
    if bias is not None:
        check(name, "bias", bias, (m,), x)
    check_epilogue(name, act, dropout, seed, x.device)
    pattern = (crow, col, ccol)
    flat = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), k)
    if out is not None:
        given = dict(values=values, bias=bias, crow=crow, col=col, ccol=ccol, seed=seed)
        check_out(name, out, x, (*x.shape[:-1], m), **given)
        args = (flat, values, bias, *pattern, act, dropout, seed)
        write(torch.ops.sparsegnn.sparse_linear_out, out.view(-1, m), *args)
        return out
    return apply(flat, values, bias, *pattern, row, perm, act, dropout, seed).view(*x.shape[:-1], m)
