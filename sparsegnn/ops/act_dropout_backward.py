"""The gradients of act_dropout, in one pass over dy and, where an activation followed, its results y."""

import torch
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._library import define
from sparsegnn.ops._random import dropout_like


def reference(dy, y, act, dropout, seed, need_dx, need_dbias):
    """The same in plain PyTorch."""
    g = dy.to(torch.promote_types(dy.dtype, torch.float32))
    if act == "relu":  # the results that dropout made 0 among them
        g = g.masked_fill(y <= 0, 0) * (1 / (1 - dropout) if dropout < 1 else 0)
    elif dropout > 0:
        factor = dropout_like(seed, g, dropout)
        g = torch.where(factor > 0, g * factor, 0)
    if act == "elu":
        g = torch.where(y > 0, g, g * (y.to(g.dtype) * (1 - dropout) + 1))
    dx = g.to(dy.dtype, copy=True) if need_dx else dy.new_empty(0)
    return dx, g.sum(0).to(dy.dtype) if need_dbias else dy.new_empty(0)


def fake(dy, y, act, dropout, seed, need_dx, need_dbias):
    return dy.new_empty(dy.shape if need_dx else (0,)), dy.new_empty(dy.size(1) if need_dbias else 0)


define(
    "act_dropout_backward(Tensor dy, Tensor? y, str act, float dropout, Tensor? seed, bool need_dx, bool need_dbias) "
    "-> (Tensor, Tensor)",
    reference,
    fake,
)


@register_flop_formula(torch.ops.sparsegnn.act_dropout_backward)
def _(*args, out_shape=None, **kwargs) -> int:
    return 0
