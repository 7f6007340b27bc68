"""Compressed rows to dense ones and back.

maxk_expand: y[n, index[n, t]] = values[n, t], 0 elsewhere. maxk_gather: values[n, t] = x[n, index[n, t]].
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import register_autograd
from sparsegnn.ops._library import define


def expand_reference(values, index, width):
    """The same in plain PyTorch."""
    return values.new_zeros(values.size(0), width).scatter(1, index.long(), values)


def gather_reference(x, index):
    """The same in plain PyTorch."""
    return x.gather(1, index.long())


expand = define(
    "maxk_expand(Tensor values, Tensor index, int width) -> Tensor",
    expand_reference,
    lambda values, index, width: values.new_empty(values.size(0), width),
)
gather = define(
    "maxk_gather(Tensor x, Tensor index) -> Tensor", gather_reference, lambda x, index: x.new_empty(index.shape)
)


def setup_expand(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def setup_gather(ctx, inputs, output):
    ctx.width = inputs[0].shape[1]
    ctx.save_for_backward(inputs[1])


register_autograd(expand, lambda ctx, dy: (gather(dy, ctx.saved_tensors[0]), None, None), setup_expand)
register_autograd(gather, lambda ctx, dv: (expand(dv, ctx.saved_tensors[0], ctx.width), None), setup_gather)


@register_flop_formula([torch.ops.sparsegnn.maxk_expand, torch.ops.sparsegnn.maxk_gather])
def _(*args, out_shape=None, **kwargs) -> int:
    return 0  # copies only
