"""The dense kernel of a sparse layer: the weight with its zeros, and torch's products, as one node of autograd."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn.nn import exported
from sparsegnn.ops._autograd import node_apply, transformed
from sparsegnn.ops.dense_weight import apply as dense_weight
from sparsegnn.ops.dense_weight import gather


def dense_linear(x: Tensor, values: Tensor, bias: Tensor | None, pattern: tuple) -> Tensor:
    """``x @ W.T + bias`` for x [N, K]; ``pattern`` is (crow, col, K, height, width), as of :func:`ops.dense_weight`."""
    if exported.exporting():
        return nn.functional.linear(x, exported.dense_weight(values, *pattern), bias)
    if torch.is_grad_enabled() and not _recorded(x):
        return apply_node(x, values, bias, pattern)
    return nn.functional.linear(x, dense_weight(values, *pattern), bias)


def _recorded(x: Tensor) -> bool:
    """Whether something looks at single ops: a compiler, a tracer, autocast, or a transform."""
    traced = torch.compiler.is_compiling() or isinstance(x, torch.fx.Proxy)
    return traced or torch._C._is_any_autocast_enabled() or transformed()


class _DenseLinear(torch.autograd.Function):
    """Half the Python of a node for the weight and one for the product: in a step on Cora's features that was 7 %."""

    @staticmethod
    def forward(ctx, x, values, bias, pattern):
        crow, col, *ctx.sizes = pattern
        weight = dense_weight(values, crow, col, *ctx.sizes)
        need_dx, need_dvalues = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if need_dvalues else None, values, weight if need_dx else None, crow, col)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        x, values, weight, crow, col = ctx.saved_tensors
        need_dx, need_dvalues, need_dbias, _ = ctx.needs_input_grad
        if need_dx and torch.is_grad_enabled():  # create_graph=True: the weight depends on the values
            weight = dense_weight(values, crow, col, *ctx.sizes)
        dx = dy @ weight if need_dx else None
        dvalues = gather(dy.t() @ x, crow, col, *ctx.sizes[1:]) if need_dvalues else None
        return dx, dvalues, dy.sum(0) if need_dbias else None, None


apply_node = node_apply(_DenseLinear)
