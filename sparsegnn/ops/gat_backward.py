"""Every gradient of gat in one pass over the transpose; the formulas are in gat.py."""

import torch
from torch.nn.functional import leaky_relu
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._library import define, rows_of
from sparsegnn.ops._random import dropout_factor


def reference(dy, x, a_src, a_dst, a_edge, y, lse, tilt, ccol, row, perm, negative_slope, dropout, seed, need_edge):
    acc, i, j, slot = lse.dtype, row.long(), rows_of(ccol, row.numel()), perm.long()
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
    return dx.to(x.dtype), da_src, da_dst, da_edge


def fake(dy, x, a_src, a_dst, a_edge, y, lse, tilt, ccol, row, perm, negative_slope, dropout, seed, need_edge):
    da_edge = (row.size(0), x.size(1)) if need_edge else (0, 0)
    return x.new_empty(x.shape), lse.new_empty(a_src.shape), lse.new_empty(a_dst.shape), lse.new_empty(da_edge)


op = define(
    "gat_backward(Tensor dy, Tensor x, Tensor a_src, Tensor a_dst, Tensor? a_edge, Tensor y, Tensor lse, Tensor tilt, "
    "Tensor ccol, Tensor row, Tensor perm, float negative_slope, float dropout, Tensor? seed, bool need_edge) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference,
    fake,
)


@register_flop_formula(torch.ops.sparsegnn.gat_backward)
def _(dy, x, a_src, a_dst, a_edge, y, lse, tilt, ccol, row, *args, out_shape=None, **kwargs) -> int:
    return 4 * row[0] * x[1] * x[2]
