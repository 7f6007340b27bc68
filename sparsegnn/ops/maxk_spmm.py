"""Aggregation of compressed rows: y = A X where X[j, index[j, t]] = values[j, t] and 0 elsewhere (see ``maxk``).

Scales, diagonal, weights and mean as in ``spmm``; y is dense. Reads k values and k columns per edge, not F values.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import differentiate, recorded, register_autograd
from sparsegnn.ops._compressed import check_rows
from sparsegnn.ops._library import check, check_like, define, rows_of


def weights(crow, col, val, row_scale, col_scale, reduce, acc):
    """What every edge counts in y, and what the rows do: with scales and the mean's division."""
    edge = torch.ones(col.numel(), dtype=acc, device=col.device) if val is None else val.to(acc)
    edge = edge if col_scale is None else edge * col_scale.to(acc)[col.long()]
    row = torch.ones(crow.numel() - 1, dtype=acc, device=col.device) if row_scale is None else row_scale.to(acc)
    return edge, row / crow.diff().clamp(min=1) if reduce == "mean" else row


def reference(values, index, width, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, reduce, group=0,
              cspans=None):  # fmt: skip
    """The same in plain PyTorch: what the tests compare with, and what runs when nothing is compiled."""
    acc = torch.promote_types(values.dtype, torch.float32)
    x = values.new_zeros(values.size(0), width, dtype=acc).scatter(1, index.long(), values.to(acc))
    edge, scale = weights(crow, col, val, row_scale, col_scale, reduce, acc)
    y = x.new_zeros(crow.numel() - 1, width).index_add(0, rows_of(crow, col.numel()), x[col.long()] * edge[:, None])
    if diag is not None:
        y = y + x * (diag.to(acc) if col_scale is None else diag.to(acc) * col_scale.to(acc))[:, None]
    return (y * scale[:, None]).to(values.dtype)


def fake(values, index, width, crow, *args):
    return values.new_empty(crow.size(0) - 1, width)


op = define(
    "maxk_spmm(Tensor values, Tensor index, int width, Tensor crow, Tensor col, Tensor? val, Tensor? row_scale, "
    "Tensor? col_scale, Tensor? diag, Tensor? ccol, Tensor? row, Tensor? perm, str reduce, int group=0, "
    "Tensor? cspans=None) -> Tensor",
    reference,
    fake,
    cast=("values", "val"),
)


def composed(values, index, width, *rest):
    """The same of two ops that can be differentiated again."""
    x = torch.ops.sparsegnn.maxk_expand(values, index, width)
    return torch.ops.sparsegnn.spmm(x, *rest[:-2])[0]


def setup_context(ctx, inputs, output):
    values, index, ctx.width, *tensors, ctx.reduce, _, cspans = inputs
    ctx.save_for_backward(values, index, *tensors, cspans)


def backward(ctx, dy):
    need_dvalues, _, _, _, _, need_dval, *scales = ctx.needs_input_grad[:9]
    if any(scales):
        raise NotImplementedError(
            "maxk_spmm: row_scale, col_scale and diag are constants; pass a differentiable val instead"
        )
    if recorded():
        given = (*ctx.saved_tensors[:2], ctx.width, *ctx.saved_tensors[2:-1], ctx.reduce, 0, None)
        return differentiate(composed, given, ctx.needs_input_grad, dy)
    run = torch.ops.sparsegnn.maxk_spmm_backward
    dvalues, dval = run(dy, *ctx.saved_tensors[:-1], ctx.reduce, need_dvalues, need_dval, ctx.saved_tensors[-1])
    return (dvalues if need_dvalues else None, *[None] * 4, dval if need_dval else None, *[None] * 9)


register_autograd(op, backward, setup_context)


@register_flop_formula(torch.ops.sparsegnn.maxk_spmm)
def _(values, index, width, crow, col, *args, out_shape=None, **kwargs) -> int:
    return 2 * col[0] * values[1]  # arguments are shapes


def maxk_spmm(graph, values: Tensor, index: Tensor, width: int, reduce: str = "sum",
              edge_weight: Tensor | None = None, group: int | None = None) -> Tensor:  # fmt: skip
    """Aggregate the compressed features of the in-neighbours of every node.

    Args:
        graph: a :class:`sparsegnn.CSRGraph` of shape ``(M, N)``; its own ``val`` is used when no weight is given.
        values, index: ``[N, k]`` of :func:`maxk`: columns ascending and distinct within rows, below ``width``.
        width: F, the number of columns of the rows that were compressed, and of the result.
        reduce: ``"sum"`` or ``"mean"`` (divided by the number of edges).
        edge_weight: ``[E]`` in the order of the graph's ``col``, the dtype of ``values``; differentiable.
        group: that of :func:`maxk`, where one was given: a GPU then adds without bank conflicts.

    Returns:
        ``[M, F]``, dense. Deterministic: the same bits for any number of threads.
    """
    check("maxk_spmm", "values", values, (graph.num_cols, "k"), graph)
    group = check_rows("maxk_spmm", values, index, width, group)
    if reduce not in ("sum", "mean"):
        raise ValueError(f"maxk_spmm: reduce must be sum or mean, got {reduce!r}")
    val = graph.val if edge_weight is None else edge_weight
    if val is not None:
        check("maxk_spmm", "edge_weight", val, (graph.num_edges,))
        check_like("maxk_spmm", "edge_weight", val, values, "values")
    transpose = graph.transpose() if values.requires_grad else (None, None, None)
    cspans = graph.spans(True)[1] if values.requires_grad else None
    return op(values, index, width, graph.crow, graph.col, val, None, None, None, *transpose, reduce, group, cspans)
