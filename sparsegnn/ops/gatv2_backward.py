"""Every gradient of gatv2 in a pass over the rows and one over the transpose; the formulas are in gatv2.py."""

import torch
from torch.nn.functional import leaky_relu
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._library import define, rows_of
from sparsegnn.ops._random import dropout_factor


def reference(
    dy, x_src, x_dst, att, edge, y, lse, crow, col, ccol, row, perm, negative_slope, dropout, seed, need_edge,
    spans=None, cspans=None,
):  # fmt: skip
    acc, i, j = lse.dtype, rows_of(crow, col.numel()), col.long()
    dy, source, weight = dy.to(acc), x_src.to(acc)[j], att.to(acc)
    z = source + x_dst.to(acc)[i]
    z = z if edge is None else z + edge.to(acc)
    leaky = leaky_relu(z, negative_slope)
    alpha = ((leaky * weight).sum(-1) - lse[i]).exp()
    factor = torch.ones_like(alpha)
    if dropout > 0:
        factor = dropout_factor(seed, torch.arange(col.numel(), device=col.device), alpha.size(1), dropout, acc)
    de = alpha * (factor * (dy[i] * source).sum(-1) - (dy * y.to(acc)).sum(-1)[i])
    dz = de[:, :, None] * weight * torch.where(z > 0, z.new_ones(()), negative_slope)
    dx_dst = torch.zeros_like(dy).index_add(0, i, dz)
    dx_src = dy.new_zeros(x_src.shape).index_add(0, j, dz + (alpha * factor)[:, :, None] * dy[i])
    datt = torch.einsum("eh,ehc->hc", de, leaky)
    dedge = dz if need_edge else dz.new_empty(0, 0, 0)
    return dx_src.to(x_src.dtype), dx_dst.to(x_src.dtype), datt, dedge.to(x_src.dtype)


def fake(
    dy, x_src, x_dst, att, edge, y, lse, crow, col, ccol, row, perm, negative_slope, dropout, seed, need_edge,
    spans=None, cspans=None,
):  # fmt: skip
    size = (col.size(0), *att.shape) if need_edge else (0, 0, 0)
    return x_src.new_empty(x_src.shape), dy.new_empty(dy.shape), lse.new_empty(att.shape), x_src.new_empty(size)


op = define(
    "gatv2_backward(Tensor dy, Tensor x_src, Tensor x_dst, Tensor att, Tensor? edge, Tensor y, Tensor lse, "
    "Tensor crow, Tensor col, Tensor ccol, Tensor row, Tensor perm, float negative_slope, float dropout, Tensor? seed, "
    "bool need_edge, Tensor? spans=None, Tensor? cspans=None) -> (Tensor, Tensor, Tensor, Tensor)",
    reference,
    fake,
)


@register_flop_formula(torch.ops.sparsegnn.gatv2_backward)
def _(dy, x_src, x_dst, att, edge, y, lse, crow, col, *args, out_shape=None, **kwargs) -> int:
    return 17 * col[0] * x_src[1] * x_src[2]
