"""Every gradient of gat in one pass over the transpose; the formulas are in gat.py."""

import torch
from torch.nn.functional import leaky_relu
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._library import define, rows_of
from sparsegnn.ops._random import dropout_factor


def reference(
    dy, x, a_src, a_dst, a_edge, y, lse, tilt, ccol, row, perm, negative_slope, dropout, seed, need_edge,
    att_src=None, att_dst=None, bias=None, need_bias=False, cspans=None,
):  # fmt: skip
    acc, i, j, slot = lse.dtype, row.long(), rows_of(ccol, row.numel()), perm.long()
    dbias = dy.to(acc).sum(0).flatten() if need_bias else lse.new_empty(0)
    y = y.to(acc) if bias is None else y.to(acc) - bias.to(acc).view(y.shape[1:])
    dy, wide = dy.to(acc), x.to(acc)
    score = a_src.to(acc)[j] + a_dst.to(acc)[i]
    score = score if a_edge is None else score + a_edge.to(acc)[slot]
    alpha = (leaky_relu(score, negative_slope) - lse[i]).exp()
    factor = dropout_factor(seed, slot, x.size(1), dropout, acc) if dropout > 0 else torch.ones_like(alpha)
    flow = factor * (dy[i] * wide[j]).sum(-1) - (dy * y.to(acc)).sum(-1)[i]
    de = alpha * torch.where(score > 0, score.new_ones(()), negative_slope) * flow
    dx = torch.zeros_like(wide).index_add(0, j, (alpha * factor)[:, :, None] * dy[i])
    da_src = lse.new_zeros(a_src.shape).index_add(0, j, de)
    da_dst = (dy * tilt.to(acc)).sum(-1)
    da_edge = lse.new_empty(0, 0)
    if need_edge:
        da_edge = torch.empty_like(de).index_copy(0, slot, de)
    if att_src is not None:
        dx = dx + da_src[:, :, None] * att_src.to(acc) + da_dst[:, :, None] * att_dst.to(acc)
        da_src, da_dst = ((da[:, :, None] * wide).sum(0, keepdim=True) for da in (da_src, da_dst))
    return dx.to(x.dtype), da_src, da_dst, da_edge, dbias


def fake(
    dy, x, a_src, a_dst, a_edge, y, lse, tilt, ccol, row, perm, negative_slope, dropout, seed, need_edge,
    att_src=None, att_dst=None, bias=None, need_bias=False, cspans=None,
):  # fmt: skip
    shapes = [a.shape if att is None else (1, *x.shape[1:]) for a, att in ((a_src, att_src), (a_dst, att_dst))]
    shapes += [(row.size(0), x.size(1)) if need_edge else (0, 0), (x.size(1) * x.size(2) if need_bias else 0,)]
    return x.new_empty(x.shape), *(lse.new_empty(shape) for shape in shapes)


op = define(
    "gat_backward(Tensor dy, Tensor x, Tensor a_src, Tensor a_dst, Tensor? a_edge, Tensor y, Tensor lse, Tensor tilt, "
    "Tensor ccol, Tensor row, Tensor perm, float negative_slope, float dropout, Tensor? seed, bool need_edge, "
    "Tensor? att_src=None, Tensor? att_dst=None, Tensor? bias=None, bool need_bias=False, Tensor? cspans=None) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference,
    fake,
)


@register_flop_formula(torch.ops.sparsegnn.gat_backward)
def _(dy, x, a_src, a_dst, a_edge, y, lse, tilt, ccol, row, *args, out_shape=None, **kwargs) -> int:
    return 4 * row[0] * x[1] * x[2]
