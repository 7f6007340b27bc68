"""Graph attention (GAT), softmax and weighted sum fused over the edges: nothing of size edges x features exists.

e = leaky(a_src[j] + a_dst[i] + a_edge[e]);  alpha = softmax of e over the edges of row i;
y[i, h] = sum_e dropout(alpha)[e, h] * x[col[e], h] + bias[h].   Veličković et al. 2018, https://arxiv.org/abs/1710.10903
Backward, with m the dropout factor, l' the slope of leaky at e and D_i = <dy_i, y_i - bias>:
de = alpha l' (m <dy_i, x_j> - D_i).  Its sum over a row is <dy_i, t_i>, t_i = sum alpha m l' x_j - (sum alpha l') y_i,
y without its bias,
which the forward saves; its sum over a source is <sum alpha m l' dy_i, x_j> - sum alpha l' D_i: one pass over the
transpose gives every gradient.
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


def reference(x, a_src, a_dst, a_edge, crow, col, ccol, row, perm, negative_slope, dropout, seed, save, bias=None, *_):
    """The same in plain PyTorch: what the tests compare with, and what runs when nothing is compiled."""
    acc, edges = torch.promote_types(x.dtype, torch.float32), col.numel()
    rows, source = rows_of(crow, edges), col.long()
    scores = x.new_empty(0, 0, 0, dtype=acc)
    if a_src.dim() == 3:
        a_src, a_dst = scores = torch.stack([(x.to(acc) * a.to(acc)).sum(-1) for a in (a_src, a_dst)])
    score = a_src.to(acc)[source] + a_dst.to(acc)[rows]
    score = score if a_edge is None else score + a_edge.to(acc)
    alpha, lse = softmax_of_rows(leaky_relu(score, negative_slope), rows, a_dst.size(0))
    slots = torch.arange(edges, device=x.device)
    kept = alpha if dropout == 0 else alpha * dropout_factor(seed, slots, x.size(1), dropout, acc)
    zero = x.new_zeros(a_dst.size(0), *x.shape[1:], dtype=acc)
    y = zero.index_add(0, rows, kept[:, :, None] * x.to(acc)[source])
    out = (y if bias is None else y + bias.to(acc).view(y.shape[1:])).to(x.dtype)
    if not save:
        return out, lse.new_empty(0, 0), x.new_empty(0, 0, 0), scores
    slope = torch.where(score > 0, score.new_ones(()), negative_slope)
    sloped = zero.index_add(0, rows, (kept * slope)[:, :, None] * x.to(acc)[source])
    tilt = sloped - torch.zeros_like(lse).index_add(0, rows, alpha * slope)[:, :, None] * y
    return out, lse, tilt.to(x.dtype), scores


def fake(x, a_src, a_dst, a_edge, crow, col, ccol, row, perm, negative_slope, dropout, seed, save, bias=None, *_):
    m, n, h, d, acc = crow.size(0) - 1, *x.shape, torch.promote_types(x.dtype, torch.float32)
    scores = x.new_empty((2, n, h) if a_src.dim() == 3 else (0, 0, 0), dtype=acc)
    lse, tilt = ((m, h), (m, h, d)) if save else ((0, 0), (0, 0, 0))
    return x.new_empty(m, h, d), x.new_empty(lse, dtype=acc), x.new_empty(tilt), scores


op = define(
    "gat(Tensor x, Tensor a_src, Tensor a_dst, Tensor? a_edge, Tensor crow, Tensor col, Tensor? ccol, Tensor? row, "
    "Tensor? perm, float negative_slope, float dropout, Tensor? seed, bool save, Tensor? bias=None, "
    "Tensor? spans=None, Tensor? cspans=None) -> (Tensor, Tensor, Tensor, Tensor)",
    reference, fake, cast=("x",),  # the scores stay as they are: they cost little and decide much
)  # fmt: skip


def setup_context(ctx, inputs, output):
    *tensors, ctx.negative_slope, ctx.dropout, seed, ctx.saved, bias, spans, cspans = inputs
    ctx.save_for_backward(*tensors, seed, bias, spans, cspans, keep_output(ctx, output[0]), *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def backward(ctx, dy, *_):
    x, a_src, a_dst, a_edge, *pattern, seed, bias, spans, cspans, y, lse, tilt, scores = ctx.saved_tensors
    if not ctx.saved or pattern[2] is None:
        raise RuntimeError("gat: backward needs save=True and the transpose (ccol, row, perm) in forward")
    inputs = (x, a_src, a_dst, a_edge, *pattern, ctx.negative_slope, ctx.dropout, seed)
    if recorded():
        return differentiate(reference, (*inputs, True, bias), ctx.needs_input_grad, dy)
    y = kept_output(ctx, y, op, *inputs, False, bias, spans)
    need_edge, need_bias = ctx.needs_input_grad[3], ctx.needs_input_grad[13]
    score, att = (scores, (a_src, a_dst)) if a_src.dim() == 3 else ((a_src, a_dst), (None, None))
    dx, da_src, da_dst, da_edge, dbias = torch.ops.sparsegnn.gat_backward(
        dy, x, *score, a_edge, y, lse, tilt, *pattern[2:], ctx.negative_slope, ctx.dropout, seed, need_edge, *att,
        bias, need_bias, cspans)  # fmt: skip
    da_edge, dbias = da_edge.to(a_edge.dtype) if need_edge else None, dbias.to(bias.dtype) if need_bias else None
    return dx, da_src.to(a_src.dtype), da_dst.to(a_dst.dtype), da_edge, *[None] * 9, dbias, None, None


apply = register_autograd(op, backward, setup_context)


@register_flop_formula(torch.ops.sparsegnn.gat)
def _(x, a_src, a_dst, a_edge, crow, col, *args, out_shape=None, **kwargs) -> int:
    return 2 * col[0] * x[1] * x[2]  # arguments are shapes


def gat(graph, x: Tensor, a_src: Tensor, a_dst: Tensor, a_edge: Tensor | None = None, *, negative_slope: float = 0.2,
        dropout: float = 0.0, seed: Tensor | None = None, bias: Tensor | None = None) -> Tensor:  # fmt: skip
    """Attend over the in-neighbours of every node.

    Args:
        graph: a :class:`sparsegnn.CSRGraph` of shape ``(M, N)``; its ``val`` is not used.
        x: ``[N, H, D]`` features of the sources, float32, float64, bfloat16 or float16 (fp32 accumulation).
        a_src, a_dst: ``[N, H]`` and ``[M, H]`` scores, the dtype of ``x`` or float32; or both ``[1, H, D]``, of a
            square graph: the scores are then the products of these with ``x``, head by head.
        a_edge: ``[E, H]`` scores in the order of the graph's ``col``.
        dropout: probability that an attention weight is dropped; needs ``seed``, int64 ``[1]`` on the device of ``x``.
        bias: ``[H * D]``, added to the result.

    Returns:
        ``[M, H, D]``, without bias 0 for rows without edges. Deterministic: the same bits for any number of threads.
    """
    check("gat", "x", x, (graph.num_cols, "H", "D"), graph)
    folded = isinstance(a_src, Tensor) and a_src.dim() == 3 and graph.num_rows == graph.num_cols
    heads, vector = x.size(1), (1, *x.shape[1:]) if folded else None
    given = [("a_src", a_src, vector or (graph.num_cols, heads)), ("a_dst", a_dst, vector or (graph.num_rows, heads))]
    others = ("a_edge", a_edge, (graph.num_edges, heads)), ("bias", bias, (heads * x.size(2),))
    given += [argument for argument in others if argument[1] is not None]
    for name, value, shape in given:
        check("gat", name, value, shape)
        if value.device != x.device or value.dtype not in (x.dtype, torch.promote_types(x.dtype, torch.float32)):
            check_like("gat", name, value, x)
    seed = check_dropout("gat", dropout, seed, x)
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *(t for _, t, _ in given)))
    pattern = (graph.crow, graph.col, *(graph.transpose() if save else (None, None, None)))
    pattern += (float(negative_slope), float(dropout), seed, save, bias, *graph.spans(save))
    return apply(x, a_src, a_dst, a_edge, *pattern)[0]
