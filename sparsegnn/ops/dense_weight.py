"""The matrix of a sparse weight with its zeros, for dense products, and back: two copies, each the other's gradient."""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import register_autograd
from sparsegnn.ops._library import check, define, rows_of


def reference(values, crow, col, cols, height=1, width=1):
    """The same in plain PyTorch: what the tests compare with, and what runs when nothing is compiled."""
    rows, across = crow.numel() - 1, cols // width
    slot = rows_of(crow, col.numel()) * across + col
    blocks = values.new_zeros(rows * across, height, width).index_copy(0, slot, values.view(-1, height, width))
    return blocks.view(rows, across, height, width).transpose(1, 2).reshape(rows * height, cols).contiguous()


def fake(values, crow, col, cols, height=1, width=1):
    return values.new_empty((crow.size(0) - 1) * height, cols)


op = define(
    "dense_weight(Tensor values, Tensor crow, Tensor col, SymInt cols, int height=1, int width=1) -> Tensor",
    reference,
    fake,
)


def values_reference(dense, crow, col, height=1, width=1):
    rows, across = crow.numel() - 1, dense.size(1) // width
    blocks = dense.reshape(rows, height, across, width).transpose(1, 2)
    return blocks[rows_of(crow, col.numel()), col.long()].flatten()


def values_fake(dense, crow, col, height=1, width=1):
    return dense.new_empty(col.size(0) * height * width)


values_op = define(
    "dense_weight_values(Tensor dense, Tensor crow, Tensor col, int height=1, int width=1) -> Tensor",
    values_reference,
    values_fake,
)


def setup_context(ctx, inputs, output):
    _, crow, col, *_, ctx.height, ctx.width = inputs
    ctx.save_for_backward(crow, col)
    matrix = output if output.dim() == 2 else inputs[0]
    ctx.cols = matrix.size(1)


def backward(ctx, ddense):
    dvalues = torch.ops.sparsegnn.dense_weight_values(ddense, *ctx.saved_tensors, ctx.height, ctx.width)
    return dvalues, None, None, None, None, None


def values_backward(ctx, dvalues):
    ddense = torch.ops.sparsegnn.dense_weight(dvalues, *ctx.saved_tensors, ctx.cols, ctx.height, ctx.width)
    return ddense, None, None, None, None


apply = register_autograd(op, backward, setup_context, leading=1, linear=reference)
gather = register_autograd(values_op, values_backward, setup_context, leading=1, linear=values_reference)
for _copy in (torch.ops.sparsegnn.dense_weight, torch.ops.sparsegnn.dense_weight_values):
    register_flop_formula(_copy)(lambda *shapes, **options: 0)


def dense_weight(values: Tensor, crow: Tensor, col: Tensor, cols: int, height: int = 1, width: int = 1) -> Tensor:
    """The matrix ``[M, cols]`` that holds ``values`` where the pattern ``(crow, col)`` says and 0 elsewhere.

    Args:
        values: ``[nnz]``, block ``[height, width]`` after block; float32, float64, bfloat16 or float16. Has a gradient.
        crow, col: int32 ``[M / height + 1]`` and one column of blocks per entry, none twice in a row.
        cols: columns of the matrix, a multiple of ``width``.
    """
    check("dense_weight", "crow", crow, ("M+1",))
    check("dense_weight", "col", col, ("nnz",), crow)
    check("dense_weight", "values", values, (col.numel() * height * width,), crow)
    return apply(values, crow, col, cols, height, width)
