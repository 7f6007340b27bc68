"""y = x W^T + bias for constant x in CSR and a sparse W: only nonzeros that meet are multiplied."""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import recorded, register_autograd
from sparsegnn.ops._library import check, check_like, check_pattern_device, define, rows_of

BLOCKS = ((1, 1), (4, 1), (8, 1), (16, 1), (16, 16), (32, 32))


def dense_weight(values, ccol, row, perm, height, width, outputs):
    """The weight [outputs, inputs], differentiable in ``values``."""
    rows, cols = outputs // height, ccol.numel() - 1
    blocks = values.view(-1, height, width).index_select(0, perm)
    slot = row.long() * cols + rows_of(ccol, row.numel())
    weight = values.new_zeros(rows * cols, height, width).index_add(0, slot, blocks)
    return weight.view(rows, cols, height, width).transpose(1, 2).reshape(outputs, cols * width)


def product(table, crow, col, val):
    """The matrix (crow, col, val) times ``table``."""
    target = rows_of(crow, col.numel())
    return table.new_zeros(crow.numel() - 1, table.size(1)).index_add(0, target, val[:, None] * table[col.long()])


def reference(values, bias, x_crow, x_col, x_val, ccol, row, perm, height, width, outputs,
              products=-1):  # fmt: skip
    """The same in plain PyTorch: what the tests compare with, and what runs when nothing is compiled."""
    acc = torch.promote_types(values.dtype, torch.float32)
    weight = dense_weight(values.to(acc), ccol, row, perm, height, width, outputs)
    y = product(weight.t(), x_crow, x_col, x_val.to(acc))
    return (y if bias is None else y + bias.to(acc)).to(values.dtype)


def fake(values, bias, x_crow, x_col, x_val, ccol, row, perm, height, width, outputs, *_):
    return values.new_empty(x_crow.size(0) - 1, outputs)


op = define(
    "features_linear(Tensor values, Tensor? bias, Tensor x_crow, Tensor x_col, Tensor x_val, Tensor ccol, "
    "Tensor row, Tensor perm, int height, int width, int outputs, int products=-1) -> Tensor",
    reference,
    fake,
    cast=("values", "bias", "x_val"),
)


def backward_reference(dy, x_crow, x_col, x_val, ccol, row, perm, height, width, need_dvalues, need_dbias, *_):
    acc = torch.promote_types(dy.dtype, torch.float32)
    g, rows, cols = dy.to(acc), dy.size(1) // height, ccol.numel() - 1
    dvalues, dbias = dy.new_empty(0), dy.new_empty(0)
    if need_dvalues:
        each = x_val.to(acc)[:, None] * g[rows_of(x_crow, x_col.numel())]
        gradient = g.new_zeros(cols * width, dy.size(1)).index_add(0, x_col, each).t()
        tiles = gradient.reshape(rows, height, cols, width).transpose(1, 2)
        blocks = tiles[row.long(), rows_of(ccol, row.numel())]
        dvalues = torch.empty_like(blocks).index_copy(0, perm.long(), blocks).flatten().to(dy.dtype)
    if need_dbias:
        dbias = g.sum(0).to(dy.dtype)
    return dvalues, dbias


def backward_fake(dy, x_crow, x_col, x_val, ccol, row, perm, height, width, need_dvalues, need_dbias, *_):
    values = row.size(0) * height * width
    return dy.new_empty(values if need_dvalues else 0), dy.new_empty(dy.size(1) if need_dbias else 0)


define(
    "features_linear_backward(Tensor dy, Tensor x_crow, Tensor x_col, Tensor x_val, Tensor ccol, Tensor row, "
    "Tensor perm, int height, int width, bool need_dvalues, bool need_dbias, int products=-1) -> (Tensor, Tensor)",
    backward_reference,
    backward_fake,
)


def setup_context(ctx, inputs, output):
    ctx.height, ctx.width, ctx.products = inputs[8], inputs[9], inputs[11]
    ctx.save_for_backward(*inputs[2:8])


def backward(ctx, dy):
    x_crow, x_col, x_val, *pattern = ctx.saved_tensors
    run = backward_reference if recorded() else torch.ops.sparsegnn.features_linear_backward
    need = ctx.needs_input_grad[:2]
    grads = run(dy, x_crow, x_col, x_val.to(dy.dtype), *pattern, ctx.height, ctx.width, *need, ctx.products)
    return *(g if n else None for g, n in zip(grads, need, strict=True)), *[None] * 10


apply = register_autograd(op, backward, setup_context, leading=2)  # the op, for eager callers


def _flop(products: int, nonzeros: int, values: int, inputs: int) -> int:
    """Two for each pair of nonzeros that meet: ``products``, or as many as do where both are spread evenly."""
    return 2 * products if products >= 0 else 2 * nonzeros * values // max(1, inputs)


@register_flop_formula(torch.ops.sparsegnn.features_linear)
def _(values, bias, x_crow, x_col, x_val, ccol, row, perm, height, width, outputs,
      products=-1, **_) -> int:  # fmt: skip
    return _flop(products, x_col[0], values[0], (ccol[0] - 1) * width)  # arguments are shapes


@register_flop_formula(torch.ops.sparsegnn.features_linear_backward)
def _(dy, x_crow, x_col, x_val, ccol, row, perm, height, width, need_dvalues, need_dbias, products=-1, **_) -> int:
    return need_dvalues * _flop(products, x_col[0], row[0] * height * width, (ccol[0] - 1) * width)


def features_linear(values, bias, x_crow, x_col, x_val, ccol, row, perm, height, width, outputs) -> Tensor:
    """``x @ W.T + bias`` for constant ``x`` [N, K] in compressed rows and a weight ``W`` [M, K] of blocks.

    Args:
        values: ``[blocks * height * width]`` in the order of the rows of the pattern, row-major in a block; float32,
            float64, bfloat16 or float16 (fp32 accumulation).
        bias: ``[M]`` or None.
        x_crow, x_col: int32 ``[N + 1]`` and ``[nonzeros]``; x_val: ``[nonzeros]``, the dtype of ``values``.
        ccol, row, perm: int32 ``[K / width + 1]``, ``[blocks]`` and ``[blocks]``, the transpose of the pattern over
            blocks (:func:`sparsegnn.pattern.transpose`).
        height, width: 1x1 for single weights; 4x1, 8x1, 16x1, 16x16 or 32x32.
        outputs: M.

    Returns:
        ``[N, M]``; differentiable in ``values`` and ``bias``. Deterministic: the same bits for any number of threads.
    """
    name = "features_linear"
    if not any(height == h and width == w for h, w in BLOCKS):
        supported = ", ".join(f"{h}x{w}" for h, w in BLOCKS)
        raise ValueError(f"{name}: height and width must be one of {supported}, got {height}x{width}")
    if outputs < 0 or outputs % height:
        raise ValueError(f"{name}: outputs must be a multiple of {height}, got {outputs}")
    check(name, "values", values, (row.numel() * height * width,))
    check(name, "x_val", x_val, (x_col.numel(),), values)
    check_pattern_device(name, values.device, x_crow, x_col, ccol, row, perm)
    if not torch.is_autocast_enabled(values.device.type):
        check_like(name, "x_val", x_val, values)
    if bias is not None:
        check(name, "bias", bias, (outputs,), values)
    return apply(values, bias, x_crow, x_col, x_val, ccol, row, perm, height, width, outputs)
