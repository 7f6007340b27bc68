"""y = x W^T + bias for constant x in CSR and a sparse W: only nonzeros that meet are multiplied."""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import recorded, register_autograd
from sparsegnn.ops._library import REFERENCES, check, check_device, check_like, define, rows_of
from sparsegnn.ops._products import flop

BLOCKS = ((1, 1), (4, 1), (8, 1), (16, 1), (16, 16), (32, 32))


def reference(values, bias, x_crow, x_col, x_val, x_ccol, x_row, x_val_t, ccol, row, perm, height, width, outputs,
              products=-1):  # fmt: skip
    """The same in plain PyTorch: what the tests compare with, and what runs when nothing is compiled."""
    acc = torch.promote_types(values.dtype, torch.float32)
    rows, cols = outputs // height, ccol.numel() - 1
    blocks = values.to(acc).view(-1, height, width).index_select(0, perm)
    slot = row.long() * cols + rows_of(ccol, row.numel())
    weight = blocks.new_zeros(rows * cols, height, width).index_add(0, slot, blocks)
    weight = weight.view(rows, cols, height, width).transpose(1, 2).reshape(outputs, cols * width)
    each = x_val.to(acc)[:, None] * weight.t()[x_col.long()]
    y = each.new_zeros(x_crow.numel() - 1, outputs).index_add(0, rows_of(x_crow, x_col.numel()), each)
    return (y if bias is None else y + bias.to(acc)).to(values.dtype)


def fake(values, bias, x_crow, x_col, x_val, x_ccol, x_row, x_val_t, ccol, row, perm, height, width, outputs,
         products=-1):  # fmt: skip
    return values.new_empty(x_crow.size(0) - 1, outputs)


op = define(
    "features_linear(Tensor values, Tensor? bias, Tensor x_crow, Tensor x_col, Tensor x_val, Tensor? x_ccol, "
    "Tensor? x_row, Tensor? x_val_t, Tensor ccol, Tensor row, Tensor perm, int height, int width, int outputs, "
    "int products=-1) -> Tensor",
    reference,
    fake,
    cast=("values", "bias", "x_val", "x_val_t"),
)


def setup_context(ctx, inputs, output):
    ctx.height, ctx.width, ctx.products = inputs[11], inputs[12], inputs[14]
    ctx.save_for_backward(*inputs[2:11])


def backward(ctx, dy):
    crow, col, val, ccol, row, val_t, *pattern = ctx.saved_tensors
    x = crow, col, val.to(dy.dtype), ccol, row, None if val_t is None else val_t.to(dy.dtype)
    run = REFERENCES["features_linear_backward"] if recorded() else torch.ops.sparsegnn.features_linear_backward
    need = ctx.needs_input_grad[:2]
    grads = run(dy, *x, *pattern, ctx.height, ctx.width, *need, ctx.products)
    return *(g if n else None for g, n in zip(grads, need, strict=True)), *[None] * 13


apply = register_autograd(op, backward, setup_context, leading=2)  # the op, for eager callers


@register_flop_formula(torch.ops.sparsegnn.features_linear)
def _(values, bias, x_crow, x_col, x_val, x_ccol, x_row, x_val_t, ccol, row, perm, height, width, outputs,
      products=-1, **_) -> int:  # fmt: skip
    return flop(products, x_col[0], values[0], (ccol[0] - 1) * width)  # arguments are shapes


def features_linear(values, bias, x_crow, x_col, x_val, x_ccol, x_row, x_val_t, ccol, row, perm, height, width,
                    outputs) -> Tensor:  # fmt: skip
    """``x @ W.T + bias`` for constant ``x`` [N, K] in compressed rows and a weight ``W`` [M, K] of blocks.

    Args:
        values: ``[blocks * height * width]`` in the order of the rows of the pattern, row-major in a block; float32,
            float64, bfloat16 or float16 (fp32 accumulation).
        bias: ``[M]`` or None.
        x_crow, x_col: int32 ``[N + 1]`` and ``[nonzeros]``; x_val: ``[nonzeros]``, the dtype of ``values``.
        x_ccol, x_row, x_val_t: the transpose of ``x``, for a gradient on a GPU; None elsewhere.
        ccol, row, perm: int32 ``[K / width + 1]``, ``[blocks]`` and ``[blocks]``, the transpose of the pattern over
            blocks (:func:`sparsegnn.pattern.transpose`), without repetitions.
        height, width: 1x1 for single weights; 4x1, 8x1, 16x1, 16x16 or 32x32.
        outputs: M.

    Returns:
        ``[N, M]``; differentiable in ``values`` and ``bias``. Deterministic: the same bits for any number of threads.
    """
    name, x = "features_linear", (x_crow, x_col, x_val, x_ccol, x_row, x_val_t)
    if not any(height == h and width == w for h, w in BLOCKS):
        supported = ", ".join(f"{h}x{w}" for h, w in BLOCKS)
        raise ValueError(f"{name}: height and width must be one of {supported}, got {height}x{width}")
    if outputs < 0 or outputs % height:
        raise ValueError(f"{name}: outputs must be a multiple of {height}, got {outputs}")
    check(name, "values", values, (row.numel() * height * width,))
    check(name, "x_val", x_val, (x_col.numel(),), values)
    for key, index in (("x_crow", x_crow), ("x_col", x_col), ("ccol", ccol), ("row", row), ("perm", perm)):
        check_device(name, key, index, values.device)
    if not torch.is_autocast_enabled(values.device.type):
        check_like(name, "x_val", x_val, values)
    if bias is not None:
        check(name, "bias", bias, (outputs,), values)
    return apply(values, bias, *x, ccol, row, perm, height, width, outputs)
