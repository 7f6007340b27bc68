"""What stands between two layers, for models that are written by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparsegnn.nn.inner import new_seed
from sparsegnn.nn.maxk import CompressedRows
from sparsegnn.ops.act_dropout import ACTIVATIONS, act_dropout
from sparsegnn.ops.act_dropout import apply as raw

#: functions that mean an activation of :func:`sparsegnn.ops.act_dropout`
NAMES = {torch.relu: "relu", nn.functional.relu: "relu", nn.functional.elu: "elu", None: "none"}


def activation_dropout(x: Tensor, bias: Tensor | None = None, act: str | Callable | None = None, p: float = 0.5,
                       training: bool = True) -> Tensor:  # fmt: skip
    """``F.dropout(act(x + bias), p, training)`` in one pass over memory, and its gradient in one.

    Args:
        x: ``[..., F]``, floating point.
        bias: ``[F]`` or None; in the dtype of ``x``, whichever it has.
        act: ``"none"`` or None, ``"relu"``, ``"elu"``, or a function: ``F.relu``, ``torch.relu`` and ``F.elu`` mean
            these; any other, modules among them, is called, and dropout follows by itself.
        p: probability that, in training, a result becomes 0; drawn from torch's generator.
        training: False: no dropout.

    Returns:
        The shape of ``x``. With an activation the result is kept for the gradient, so autograd refuses that it is
        written to before the backward pass.
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"activation_dropout: p must be a float, got {type(p).__name__}")
    if not 0 <= p <= 1:
        raise ValueError(f"activation_dropout: p must be in [0, 1], got {p}")
    if not isinstance(act, str):
        if act is not None and not callable(act):
            raise TypeError(f"activation_dropout: act must be a str, a function or None, got {type(act).__name__}")
        name = None if isinstance(act, nn.Module) else NAMES.get(act)
    elif act in ACTIVATIONS:
        name = act
    else:
        raise ValueError(f"activation_dropout: act must be 'none', 'relu' or 'elu', got {act!r}")
    if isinstance(x, CompressedRows) and bias is None and name in ("none", "relu"):
        return x.map(lambda values: activation_dropout(values, None, name, p, training))
    if name is None or not isinstance(x, Tensor):  # a node of torch.fx
        y = x if bias is None else x + bias
        y = y if name == "none" else getattr(nn.functional, name)(y) if name else act(y)
        return nn.functional.dropout(y, p, training)
    bias = None if bias is None else bias.to(x.dtype)
    p = float(p) if training else 0.0
    if name == "none" and p == 0:
        return x if bias is None else x + bias
    seed = new_seed(p, x.device)
    if x.dim() == 2 and bias is None:
        return raw(x, None, name, p, seed)
    return act_dropout(x, bias, name, p, seed)
