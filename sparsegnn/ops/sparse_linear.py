"""y = x W^T + bias with W stored as its nonzeros: the linear layer of sparse training, all three matmuls sparse."""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._library import check, check_like, define, register_autograd, rows_of


def reference(x, values, bias, crow, col, ccol, row, perm):
    """The same in plain PyTorch: what the tests compare with, and what runs when nothing is compiled."""
    acc = torch.promote_types(x.dtype, torch.float32)
    m, k = crow.numel() - 1, x.size(1)
    slot = rows_of(crow, col.numel()) * k + col
    weight = x.new_zeros(m * k, dtype=acc).index_add(0, slot, values.to(acc)).view(m, k)
    return torch.nn.functional.linear(x.to(acc), weight, None if bias is None else bias.to(acc)).to(x.dtype)


def fake(x, values, bias, crow, col, ccol, row, perm):
    return x.new_empty(x.size(0), crow.size(0) - 1)


op = define(
    "sparse_linear(Tensor x, Tensor values, Tensor? bias, Tensor crow, Tensor col, Tensor ccol, Tensor row, "
    "Tensor perm) -> Tensor",
    reference,
    fake,
    cast=("x", "values", "bias"),
)


def backward_reference(dy, x, values, crow, col, ccol, row, perm, need_dx, need_dvalues, need_dbias):
    acc = torch.promote_types(x.dtype, torch.float32)
    rows, g = rows_of(crow, col.numel()), dy.to(acc)
    dx = reference(g, values[perm.long()].to(acc), None, ccol, row, crow, col, perm) if need_dx else x.new_empty(0)
    dvalues = (g.mT @ x.to(acc))[rows, col.long()] if need_dvalues else x.new_empty(0)
    dbias = g.sum(0) if need_dbias else x.new_empty(0)
    return dx.to(x.dtype), dvalues.to(values.dtype), dbias.to(x.dtype)


def backward_fake(dy, x, values, crow, col, ccol, row, perm, need_dx, need_dvalues, need_dbias):
    dx = x.new_empty(x.shape if need_dx else (0,))
    return dx, values.new_empty(values.shape if need_dvalues else (0,)), x.new_empty(dy.size(1) if need_dbias else 0)


define(
    "sparse_linear_backward(Tensor dy, Tensor x, Tensor values, Tensor crow, Tensor col, Tensor ccol, Tensor row, "
    "Tensor perm, bool need_dx, bool need_dvalues, bool need_dbias) -> (Tensor, Tensor, Tensor)",
    backward_reference,
    backward_fake,
)


def setup_context(ctx, inputs, output):
    x, values, _, *pattern = inputs
    ctx.save_for_backward(x, values, *pattern)


def backward(ctx, dy):
    need = ctx.needs_input_grad[:3]
    grads = torch.ops.sparsegnn.sparse_linear_backward(dy, *ctx.saved_tensors, *need)
    return (*(g if n else None for g, n in zip(grads, need, strict=True)), *[None] * 5)


apply = register_autograd(op, backward, setup_context)


@register_flop_formula(torch.ops.sparsegnn.sparse_linear)
def _(x, values, *args, out_shape=None, **kwargs) -> int:
    return 2 * x[0] * values[0]  # arguments are shapes


@register_flop_formula(torch.ops.sparsegnn.sparse_linear_backward)
def _(dy, x, values, crow, col, ccol, row, perm, need_dx, need_dvalues, need_dbias, **kwargs) -> int:
    return 2 * x[0] * values[0] * (need_dx + need_dvalues)


def sparse_linear(x, values, bias, crow, col, ccol, row, perm) -> Tensor:
    """``x @ W.T + bias`` for a CSR weight ``W`` of shape ``[M, K]``.

    Args:
        x: ``[..., K]``, float32, float64, bfloat16 or float16 (fp32 accumulation).
        values: ``[nnz]`` entries of ``W`` in the order of ``col``, the dtype of ``x``.
        bias: ``[M]`` or None.
        crow, col: int32 ``[M + 1]`` and ``[nnz]``, the pattern; ``ccol, row, perm``: its transpose
            (:func:`sparsegnn.pattern.transpose`), used by the backward.

    Returns:
        ``[..., M]``. Deterministic: the same bits for any number of threads, gradients included.
    """
    m, k, name = crow.numel() - 1, ccol.numel() - 1, "sparse_linear"
    check(name, "x", x, ("...", k))
    check(name, "values", values, (col.numel(),))
    if not torch.is_autocast_enabled(x.device.type):
        check_like(name, "values", values, x)
    if bias is not None:
        check(name, "bias", bias, (m,))
    flat = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), k)
    return apply(flat, values, bias, crow, col, ccol, row, perm).view(*x.shape[:-1], m)


def probe_reference(x, probe):
    """Zeros whose only gradient is dense: d probe = dy^T x, what RigL-like growth looks at on update steps."""
    return x.new_zeros(1, 1).expand(x.size(0), probe.size(0))


probe_op = define(
    "dense_probe(Tensor x, Tensor probe) -> Tensor", probe_reference, probe_reference, cast=("x",), composite=True
)


def probe_backward(ctx, dy):
    (x,) = ctx.saved_tensors
    return None, (dy.mT @ x).to(ctx.dtype) if ctx.needs_input_grad[1] else None


def probe_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])
    ctx.dtype = inputs[1].dtype


register_autograd(probe_op, probe_backward, probe_setup)
