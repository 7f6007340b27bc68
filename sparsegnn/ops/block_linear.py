"""y = x W^T + bias with W stored as dense blocks: outputs that share their inputs, or square tiles.

A weight [M, K] of blocks [height, width] is a CSR pattern over blocks, ``crow`` [M / height + 1] and ``col`` [blocks],
and ``values`` [blocks * height * width], block after block, row-major inside a block.
"""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import recorded, register_autograd
from sparsegnn.ops._library import check, check_like, check_pattern_device, define, rows_of
from sparsegnn.ops._linear_gradients import by_dense_weight
from sparsegnn.policy import tf32_allowed

BLOCKS = ((4, 1), (8, 1), (16, 1), (16, 16), (32, 32))


def reference(x, values, bias, crow, col, ccol, row, perm, height, width, tf32=False):
    """The same in plain PyTorch: what the tests compare with, and what runs when nothing is compiled."""
    acc = torch.promote_types(x.dtype, torch.float32)
    rows, cols = crow.numel() - 1, ccol.numel() - 1
    blocks = values.to(acc).view(col.numel(), height, width)
    slot = rows_of(crow, col.numel()) * cols + col
    weight = x.new_zeros(rows * cols, height, width, dtype=acc).index_add(0, slot, blocks)
    weight = weight.view(rows, cols, height, width).transpose(1, 2).reshape(rows * height, cols * width)
    return torch.nn.functional.linear(x.to(acc), weight, None if bias is None else bias.to(acc)).to(x.dtype)


def fake(x, values, bias, crow, col, ccol, row, perm, height, width, tf32=False):
    return x.new_empty(x.size(0), (crow.size(0) - 1) * height)


op = define(
    "block_linear(Tensor x, Tensor values, Tensor? bias, Tensor crow, Tensor col, Tensor ccol, Tensor row, "
    "Tensor perm, int height, int width, bool tf32=False) -> Tensor",
    reference,
    fake,
    cast=("x", "values", "bias"),
)


def backward_reference(dy, x, values, crow, col, ccol, row, perm, height, width, need_dx, need_dvalues, need_dbias, *_):
    acc = torch.promote_types(x.dtype, torch.float32)
    dx, dvalues, g, wide = x.new_empty(0), x.new_empty(0), dy.to(acc), x.to(acc)
    if need_dx:
        turned = values.view(-1, height, width)[perm.long()].mT.flatten()
        dx = reference(g, turned.to(acc), None, ccol, row, crow, col, perm, width, height)
    if need_dvalues:
        tiles = (g.mT @ wide).view(crow.numel() - 1, height, ccol.numel() - 1, width).transpose(1, 2)
        dvalues = tiles[rows_of(crow, col.numel()), col.long()].flatten()
    dbias = g.sum(0) if need_dbias else x.new_empty(0)
    return dx.to(x.dtype), dvalues.to(values.dtype), dbias.to(x.dtype)


def backward_fake(dy, x, values, crow, col, ccol, row, perm, height, width, need_dx, need_dvalues, need_dbias, *_):
    dx = x.new_empty(x.shape if need_dx else (0,))
    return dx, values.new_empty(values.shape if need_dvalues else (0,)), x.new_empty(dy.size(1) if need_dbias else 0)


define(
    "block_linear_backward(Tensor dy, Tensor x, Tensor values, Tensor crow, Tensor col, Tensor ccol, Tensor row, "
    "Tensor perm, int height, int width, bool need_dx, bool need_dvalues, bool need_dbias, "
    "bool tf32=False) -> (Tensor, Tensor, Tensor)",
    backward_reference,
    backward_fake,
)


def setup_context(ctx, inputs, output):
    x, values, _, *pattern, ctx.height, ctx.width, ctx.tf32 = inputs
    ctx.save_for_backward(x, values, *pattern)


def backward(ctx, dy):
    need, saved, block = ctx.needs_input_grad[:3], ctx.saved_tensors, (ctx.height, ctx.width)
    if recorded():
        return *by_dense_weight(dy, *saved[:4], *block, need=need)[:3], *[None] * 8
    grads = torch.ops.sparsegnn.block_linear_backward(dy, *saved, *block, *need, ctx.tf32)
    return (*(g if n else None for g, n in zip(grads, need, strict=True)), *[None] * 8)


apply = register_autograd(op, backward, setup_context, leading=3)  # the op, for eager callers


def may_round(x: Tensor) -> bool:
    """The last argument of the op: whether torch would round the factors of a float32 product of ``x`` to TF32."""
    return x.is_cuda and tf32_allowed()


@register_flop_formula(torch.ops.sparsegnn.block_linear)
def _(x, values, *args, out_shape=None, **kwargs) -> int:
    return 2 * x[0] * values[0]  # arguments are shapes


@register_flop_formula(torch.ops.sparsegnn.block_linear_backward)
def _(dy, x, values, *args, out_shape=None, **kwargs) -> int:
    return 2 * x[0] * values[0] * sum(args[7:9])


def block_linear(x, values, bias, crow, col, ccol, row, perm, height, width) -> Tensor:
    """``x @ W.T + bias`` for a weight ``W`` of shape ``[M, K]`` made of dense blocks ``[height, width]``.

    Args:
        x: ``[..., K]``, float32, float64, bfloat16 or float16 (fp32 accumulation). On CUDA float32 is rounded to TF32
            where ``torch.backends.cuda.matmul.fp32_precision`` or ``allow_tf32`` lets torch's own products do so, and
            only there.
        values: ``[blocks * height * width]`` in the order of ``col``, row-major in a block; the dtype of ``x``.
        bias: ``[M]`` or None.
        crow, col: int32 ``[M / height + 1]`` and ``[blocks]``, the pattern over blocks, columns ascending within rows;
            ``ccol, row, perm``: its transpose (:func:`sparsegnn.pattern.transpose`), used by the backward.
        height, width: 4x1, 8x1 or 16x1 (groups of outputs that share their inputs), 16x16 or 32x32.

    Returns:
        ``[..., M]``. Deterministic: the same bits for any number of threads, gradients included.
    """
    name, m, k = "block_linear", (crow.numel() - 1) * height, (ccol.numel() - 1) * width
    if not any(height == h and width == w for h, w in BLOCKS):  # one guard each, where these are symbols
        supported = ", ".join(f"{h}x{w}" for h, w in BLOCKS)
        raise ValueError(f"{name}: height and width must be one of {supported}, got {height}x{width}")
    check(name, "x", x, ("...", k))
    check(name, "values", values, (col.numel() * height * width,), x)
    check_pattern_device(name, x.device, crow, col, ccol, row, perm)
    if not torch.is_autocast_enabled(x.device.type):
        check_like(name, "values", values, x)
    if bias is not None:
        check(name, "bias", bias, (m,), x)
    flat = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), k)
    args = (values, bias, crow, col, ccol, row, perm, height, width)
    return apply(flat, *args, may_round(flat)).view(*x.shape[:-1], m)
