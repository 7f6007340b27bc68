"""y = dropout(act(x + bias)): what stands between two layers, in one pass over memory, as is its gradient."""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import recorded, register_autograd
from sparsegnn.ops._library import check, check_like, define
from sparsegnn.ops._random import check_dropout, dropout_like

ACTIVATIONS = {"none": lambda x: x, "relu": torch.relu, "elu": torch.nn.functional.elu}


def reference(x, bias, act="none", dropout=0.0, seed=None):
    """The same in plain PyTorch: what the tests compare with, and what runs when nothing is compiled."""
    acc = torch.promote_types(x.dtype, torch.float32)
    y = ACTIVATIONS[act](x.to(acc) if bias is None else x.to(acc) + bias.to(acc))
    if dropout > 0:
        factor = dropout_like(seed, y, dropout)
        y = torch.where(factor > 0, y * factor, 0)
    return y.to(x.dtype, copy=True)


# No argument is cast by autocast: as elementwise operators of torch, it runs in the dtype of its input.
op = define(
    "act_dropout(Tensor x, Tensor? bias, str act='none', float dropout=0.0, Tensor? seed=None) -> Tensor",
    reference,
    lambda x, *_: x.new_empty(x.shape),
)


def setup_context(ctx, inputs, output):
    _, _, ctx.act, ctx.dropout, seed = inputs
    ctx.save_for_backward(None if ctx.act == "none" else output, seed)


def backward(ctx, dy):
    (y, seed), (need_dx, need_dbias, *_) = ctx.saved_tensors, ctx.needs_input_grad
    if recorded():
        dx = gradient(dy, y, ctx.act, ctx.dropout, seed)
        return dx if need_dx else None, dx.sum(0) if need_dbias else None, None, None, None
    same = ctx.act == "none" and ctx.dropout == 0
    dx = dbias = None
    if need_dbias or not same:
        dx, dbias = torch.ops.sparsegnn.act_dropout_backward(
            dy, y, ctx.act, ctx.dropout, seed, need_dx and not same, need_dbias
        )
    return (dy if same else dx) if need_dx else None, dbias if need_dbias else None, None, None, None


def gradient(dy, y, act, dropout, seed):
    """dx of ``y``, in operations that can be differentiated again."""
    acc = torch.promote_types(dy.dtype, torch.float32)
    g = dy.to(acc)
    if dropout > 0:
        g = g * dropout_like(seed, g, dropout)
    if act == "relu":
        g = g.masked_fill(y <= 0, 0)
    if act == "elu":
        g = g * torch.where(y > 0, 1, y.to(acc) * (1 - dropout) + 1)
    return g.to(dy.dtype)


apply = register_autograd(op, backward, setup_context, leading=2)


@register_flop_formula(torch.ops.sparsegnn.act_dropout)
def _(x, *args, out_shape=None, **kwargs) -> int:
    return 0  # no products: torch counts none for elementwise operators


def act_dropout(x: Tensor, bias: Tensor | None = None, act: str = "none", dropout: float = 0.0,
                seed: Tensor | None = None) -> Tensor:  # fmt: skip
    """``dropout(act(x + bias))``.

    Args:
        x: ``[..., F]``, float32, float64, bfloat16 or float16 (fp32 arithmetic).
        bias: ``[F]`` or None, the dtype of ``x``.
        act: ``"none"``, ``"relu"`` or ``"elu"`` (with alpha 1).
        dropout: probability that a result becomes 0 (the others are scaled by ``1 / (1 - dropout)``); needs ``seed``,
            int64 ``[1]`` on the device of ``x``. The same seed drops the same results, on every device.

    Returns:
        The shape of ``x``, new memory. The gradient is made of the result, which an activation keeps until then, and
        is deterministic: the same bits for any number of threads.
    """
    check("act_dropout", "x", x, ("...", "F"))
    if not x.is_floating_point():
        raise TypeError(f"act_dropout: x must be floating point, got {x.dtype}")
    if bias is not None:
        check("act_dropout", "bias", bias, (x.size(-1),), x)
        check_like("act_dropout", "bias", bias, x)
    if act not in ACTIVATIONS:
        raise ValueError(f"act_dropout: act must be 'none', 'relu' or 'elu', got {act!r}")
    seed = check_dropout("act_dropout", dropout, seed, x)
    flat = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.size(-1))
    return apply(flat, bias, act, float(dropout), seed).view(x.shape)
