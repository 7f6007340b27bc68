"""Graph attention with dynamic scores (GATv2), fused over the edges: the sum under leaky exists in registers only.

z = x_src[j] + x_dst[i] + edge[e];  e = sum_c att[h, c] leaky(z)[h, c];  alpha = softmax of e over the edges of row i;
y[i, h] = sum_e dropout(alpha)[e, h] * x_src[j, h].   Brody, Alon, Yahav 2022, https://arxiv.org/abs/2105.14491
Backward, m the dropout factor, l' the slope of leaky at z, D_i = <dy_i, y_i>: de = alpha (m <dy_i, x_src[j]> - D_i);
dx_dst[i] = att sum_row de l';  dx_src[j] = sum m alpha dy_i + att sum_source de l';  datt = sum de leaky(z): a pass
over the rows and one over the transpose, both making alpha again from lse[i], the log of the sum of exp(e).
"""

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import differentiate, recorded, register_autograd
from sparsegnn.ops._library import check, check_like, define, rows_of
from sparsegnn.ops._random import check_dropout, dropout_factor
from sparsegnn.ops._saved import keep_output, kept_output
from sparsegnn.ops._softmax import softmax_of_rows


def reference(x_src, x_dst, att, edge, crow, col, ccol, row, perm, negative_slope, dropout, seed, save, spans=None,
              cspans=None):  # fmt: skip
    """The same in plain PyTorch: what the tests compare with, and what runs when nothing is compiled."""
    acc, edges = torch.promote_types(x_src.dtype, torch.float32), col.numel()
    rows, source = rows_of(crow, edges), col.long()
    z = x_src.to(acc)[source] + x_dst.to(acc)[rows]
    z = z if edge is None else z + edge.to(acc)
    logit = (leaky_relu(z, negative_slope) * att.to(acc)).sum(-1)
    kept, lse = softmax_of_rows(logit, rows, x_dst.size(0))
    if dropout > 0:
        kept = kept * dropout_factor(seed, torch.arange(edges, device=col.device), logit.size(1), dropout, acc)
    y = x_dst.new_zeros(x_dst.shape, dtype=acc).index_add(0, rows, kept[:, :, None] * x_src.to(acc)[source])
    return y.to(x_src.dtype), lse if save else lse.new_empty(0, 0)


def fake(x_src, x_dst, att, edge, crow, col, ccol, row, perm, negative_slope, dropout, seed, save, spans=None,
         cspans=None):  # fmt: skip
    size = x_dst.shape[:2] if save else (0, 0)
    return x_dst.new_empty(x_dst.shape), x_dst.new_empty(size, dtype=torch.promote_types(x_dst.dtype, torch.float32))


op = define(
    "gatv2(Tensor x_src, Tensor x_dst, Tensor att, Tensor? edge, Tensor crow, Tensor col, Tensor? ccol, Tensor? row, "
    "Tensor? perm, float negative_slope, float dropout, Tensor? seed, bool save, Tensor? spans=None, "
    "Tensor? cspans=None) -> (Tensor, Tensor)",
    reference,
    fake,
    cast=("x_src", "x_dst", "edge"),  # att stays as it is: it costs little and decides much
)


def setup_context(ctx, inputs, output):
    *tensors, ctx.negative_slope, ctx.dropout, seed, ctx.saved, spans, cspans = inputs
    ctx.save_for_backward(*tensors, seed, spans, cspans, keep_output(ctx, output[0]), output[1])
    ctx.mark_non_differentiable(output[1])


def backward(ctx, dy, _):
    x_src, x_dst, att, edge, *pattern, seed, spans, cspans, y, lse = ctx.saved_tensors
    if not ctx.saved or pattern[2] is None:
        raise RuntimeError("gatv2: backward needs save=True and the transpose (ccol, row, perm) in forward")
    inputs = (x_src, x_dst, att, edge, *pattern, ctx.negative_slope, ctx.dropout, seed, False)
    if recorded():
        return differentiate(reference, inputs, ctx.needs_input_grad, dy)
    y = kept_output(ctx, y, op, *inputs, spans)
    need_edge = ctx.needs_input_grad[3]
    dx_src, dx_dst, datt, dedge = torch.ops.sparsegnn.gatv2_backward(
        dy, x_src, x_dst, att, edge, y, lse, *pattern, ctx.negative_slope, ctx.dropout, seed, need_edge,
        spans, cspans)  # fmt: skip
    return dx_src, dx_dst, datt.to(att.dtype), dedge if need_edge else None, *[None] * 11


apply = register_autograd(op, backward, setup_context)


@register_flop_formula(torch.ops.sparsegnn.gatv2)
def _(x_src, x_dst, att, edge, crow, col, *args, out_shape=None, **kwargs) -> int:
    return 5 * col[0] * x_src[1] * x_src[2]  # arguments are shapes; two sums, leaky counted as none


def gatv2(graph, x_src: Tensor, x_dst: Tensor, att: Tensor, edge: Tensor | None = None, *,
          negative_slope: float = 0.2, dropout: float = 0.0, seed: Tensor | None = None) -> Tensor:  # fmt: skip
    """Attend over the in-neighbours of every node, with scores of the sum of both ends.

    Args:
        graph: a :class:`sparsegnn.CSRGraph` of shape ``(M, N)``; its ``val`` is not used.
        x_src, x_dst: ``[N, H, D]`` and ``[M, H, D]``, float32, float64, bfloat16 or float16 (fp32 accumulation).
        att: ``[H, D]`` weights of the scores, the dtype of ``x_src`` or float32.
        edge: ``[E, H, D]`` added to the sum, in the order of the graph's ``col``.
        dropout: probability that an attention weight is dropped; needs ``seed``, int64 ``[1]`` on the same device.

    Returns:
        ``[M, H, D]``, 0 for rows without edges. Deterministic: the same bits for any number of threads.
    """
    check("gatv2", "x_src", x_src, (graph.num_cols, "H", "D"), graph)
    sizes = x_src.shape[1:]
    check("gatv2", "x_dst", x_dst, (graph.num_rows, *sizes))
    check("gatv2", "att", att, tuple(sizes))
    check_like("gatv2", "x_dst", x_dst, x_src, "x_src")
    if edge is not None:
        check("gatv2", "edge", edge, (graph.num_edges, *sizes))
        check_like("gatv2", "edge", edge, x_src, "x_src")
    if att.device != x_src.device or att.dtype not in (x_src.dtype, torch.promote_types(x_src.dtype, torch.float32)):
        check_like("gatv2", "att", att, x_src, "x_src")
    seed = check_dropout("gatv2", dropout, seed, x_src)
    leaves = (x_src, x_dst, att, edge)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)
    pattern = (graph.crow, graph.col, *(graph.transpose() if save else (None, None, None)))
    spans = graph.spans(save)
    return apply(*leaves, *pattern, float(negative_slope), float(dropout), seed, save, *spans)[0]
