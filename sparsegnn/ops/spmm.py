"""y[r] = reduction over the edges e of row r of val[e] * x[col[e]]: a graph aggregation step.

With scales (GCN norm as factored degrees, no edge array) and a diagonal (self-loops, no extra edges):
y[r] = row_scale[r] * (sum_e val[e] * col_scale[col[e]] * x[col[e]] + diag[r] * col_scale[r] * x[r]).
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import inverted, recorded, register_autograd
from sparsegnn.ops._extremum import extremum, extremum_gradients
from sparsegnn.ops._library import check, check_like, define, rows_of
from sparsegnn.ops._out import check_out, write

REDUCTIONS = ("sum", "mean", "max", "min")


def reference(x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, reduce, need_arg=True, *_):
    """The same in plain PyTorch: what the tests compare with, and what runs when nothing is compiled."""
    m, rows, source = crow.numel() - 1, rows_of(crow, col.numel()), col.long()
    acc = x.double() if x.dtype == torch.float64 else x.float()
    scaled = acc if col_scale is None else acc * col_scale.to(acc)[:, None]
    message = scaled[source] if val is None else scaled[source] * val.to(acc)[:, None]
    if reduce in ("max", "min"):
        y, arg = extremum(message, rows, m, reduce)
        return y.to(x.dtype), arg if need_arg else col.new_empty(0, 0)
    y = acc.new_zeros(m, x.size(1)).index_add(0, rows, message)
    if diag is not None:
        y = y + diag.to(acc)[:, None] * scaled
    if reduce == "mean":
        y = y / crow.diff().clamp(min=1)[:, None]
    return (y if row_scale is None else y * row_scale.to(acc)[:, None]).to(x.dtype), col.new_empty(0, 0)


def fake(x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, reduce, need_arg=True, *_):
    m, k = crow.size(0) - 1, x.size(1)
    arg = (m, k) if need_arg and reduce in ("max", "min") else (0, 0)
    return x.new_empty(m, k), col.new_empty(arg)


op = define(
    "spmm(Tensor x, Tensor crow, Tensor col, Tensor? val, Tensor? row_scale, Tensor? col_scale, Tensor? diag, "
    "Tensor? ccol, Tensor? row, Tensor? perm, str reduce, bool need_arg=True, Tensor? spans=None, Tensor? cspans=None) "
    "-> (Tensor, Tensor)", reference, fake, cast=("x", "val"),
)  # fmt: skip


def setup_context(ctx, inputs, output):
    (x, *tensors, ctx.reduce, _, spans, cspans), ctx.dtype = inputs, inputs[0].dtype
    x = x if ctx.reduce in ("max", "min") or ctx.needs_input_grad[3] else None  # of several hops all would stay
    ctx.save_for_backward(x, *tensors, spans, cspans, output[1])
    ctx.mark_non_differentiable(output[1])


def backward(ctx, dy, _):
    x, crow, col, val, row_scale, col_scale, diag, ccol, row, perm, spans, cspans, arg = ctx.saved_tensors
    need_dx, _, _, need_dval, *scales = ctx.needs_input_grad[:7]
    if any(scales):
        raise NotImplementedError("spmm: scales and diag are constants; pass a differentiable val instead")
    dx = dval = None
    if ctx.reduce in ("max", "min"):
        given = (dy, x, arg, val, crow, col, ccol, row, perm, need_dx, need_dval)
        dx, dval = extremum_gradients(*given) if recorded() else torch.ops.sparsegnn.spmm_arg_backward(*given, cspans)
        return (dx if need_dx else None, None, None, dval if need_dval else None, *[None] * 10)
    if ctx.reduce == "mean":
        inverse = 1 / crow.diff().clamp(min=1).to(torch.promote_types(ctx.dtype, torch.float32))
        row_scale = inverse if row_scale is None else row_scale * inverse
    if need_dx:
        val_t = None if val is None else val.index_select(0, perm)
        back = inverted(perm) if recorded() else None
        dx = op(dy, ccol, row, val_t, col_scale, row_scale, diag, crow, col, back, "sum", False, cspans, spans)[0]
    if need_dval:
        a, b = (t if s is None else t * s[:, None].to(t.dtype) for t, s in ((dy, row_scale), (x, col_scale)))
        dval = torch.ops.sparsegnn.sddmm(a, b, crow, col, ccol, row, perm)
    return (dx, None, None, dval, *[None] * 10)


apply = register_autograd(op, backward, setup_context)


@register_flop_formula(torch.ops.sparsegnn.spmm)
def _(x, crow, col, *args, out_shape=None, **kwargs) -> int:
    return 2 * col[0] * x[1]  # arguments are shapes


def spmm(
    graph, x: Tensor, reduce: str = "sum", edge_weight: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """Aggregate the features of the in-neighbours of every node.

    Args:
        graph: a :class:`sparsegnn.CSRGraph` of shape ``(M, N)``; its own ``val`` is used when no weight is given.
        x: ``[N, K]`` features of the sources, float32, float64, bfloat16 or float16 (fp32 accumulation).
        reduce: ``"sum"``, ``"mean"`` (divided by the number of edges), ``"max"`` or ``"min"`` (0 without edges).
        edge_weight: ``[E]`` in the order of the graph's ``col``, the dtype of ``x``; differentiable.
        out: ``[M, K]``, contiguous, apart from the inputs in memory: written and returned; no gradient.

    Returns:
        ``[M, K]``. Deterministic: the same bits for any number of threads.
    """
    check("spmm", "x", x, (graph.num_cols, "K"), graph)
    if reduce not in REDUCTIONS:
        raise ValueError(f"spmm: reduce must be one of {', '.join(REDUCTIONS)}, got {reduce!r}")
    val = graph.val if edge_weight is None else edge_weight
    if val is not None:
        check("spmm", "edge_weight", val, (graph.num_edges,))
        check_like("spmm", "edge_weight", val, x)
    grad = torch.is_grad_enabled()
    need_dx, need_dval = grad and x.requires_grad, grad and val is not None and val.requires_grad
    if out is not None:
        check_out("spmm", out, x, (graph.num_rows, x.size(1)), edge_weight=val, crow=graph.crow, col=graph.col)
        rest = None, None, None, reduce, graph.spans()[0]
        return write(torch.ops.sparsegnn.spmm_out, out, x, graph.crow, graph.col, val, *rest)
    transpose = graph.transpose() if need_dx else (None, None, None)
    rest = reduce, need_dx or need_dval, *graph.spans(need_dx)
    return apply(x, graph.crow, graph.col, val, None, None, None, *transpose, *rest)[0]
