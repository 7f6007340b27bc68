"""The weight inside a graph layer: PyG's dense one, with its name and initialisation, or a sparse one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparsegnn.nn.checks import check_size
from sparsegnn.nn.exported import exporting
from sparsegnn.nn.features import check_dtype, dense_features, is_sparse
from sparsegnn.nn.linear import SparseLinear
from sparsegnn.nn.watched import is_unwatched
from sparsegnn.ops.act_dropout import apply as act_dropout
from sparsegnn.ops.sparse_linear import apply as sparse_linear


def glorot_(linear: nn.Module) -> None:
    """Glorot's uniform initialisation, with the mean fan-in and fan-out that a sparse weight really has."""
    size = linear.in_features * linear.out_features
    weight = linear.values if isinstance(linear, SparseLinear) else linear.weight
    if size:
        kept = weight.numel() / size
        bound = math.sqrt(6 / max(1.0, kept * (linear.in_features + linear.out_features)))
        nn.init.uniform_(weight, -bound, bound)


class Linear(nn.Linear):
    """``nn.Linear`` with Glorot's initialisation of the weight, that also takes sparse features."""

    def reset_parameters(self) -> None:
        if self.bias is not None:
            super().reset_parameters()
        glorot_(self)

    def forward(self, input: Tensor) -> Tensor:
        if not is_sparse(input):
            return nn.functional.linear(input, self.weight, self.bias)
        y = dense_features("Linear", input, self.weight.t())
        return y if self.bias is None else y.add_(self.bias.to(y.dtype))


class LazyLinear(nn.LazyLinear):
    """:class:`Linear` whose input size is that of its first input (PyG's ``in_channels=-1``)."""

    cls_to_become = Linear
    forward = Linear.forward
    glorot = True

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params() and self.in_features != 0:
            if self.bias is not None or not self.glorot:
                super().reset_parameters()
            if self.glorot:
                glorot_(self)


def reset_(linear: nn.Module) -> None:
    """New weights as ``nn.Linear``'s, where a layer does not begin with Glorot's; also at a later first input."""
    if type(linear) is Linear:
        nn.Linear.reset_parameters(linear)
    else:
        linear.glorot = False
        linear.reset_parameters()


#: forwards that are the product by the weight and nothing else; that of PyG's Linear joins where it is used
FORWARDS = {Linear.forward, nn.Linear.forward, SparseLinear.forward}


def inner_linear(
    layer: str, in_channels: int, out_channels: int, sparsity: float, pattern: str, bias: bool = False
) -> nn.Module:
    """``lin`` of the graph layer named ``layer``; dense when ``sparsity`` is 0."""
    in_channels = check_size(layer, "in_channels", in_channels, -1)
    out_channels = check_size(layer, "out_channels", out_channels, 1)
    if sparsity == 0 and not isinstance(sparsity, bool) and pattern == "unstructured":
        make = LazyLinear if in_channels == -1 else Linear
        args = (out_channels,) if in_channels == -1 else (in_channels, out_channels)
        return make(*args, bias=bias)
    if in_channels == -1:
        raise ValueError(f"{layer}: in_channels must be given when sparsity is, got -1")
    linear = SparseLinear(in_channels, out_channels, bias=bias, sparsity=sparsity, pattern=pattern)
    glorot_(linear)
    return linear


def new_seed(dropout: float, device: torch.device) -> Tensor | None:
    """A seed for one call, from torch's generator."""
    return torch.randint(0, 2**63 - 1, (1,), device=device) if dropout > 0 else None


def is_plain(linear: nn.Module) -> bool:
    """Whether a call of ``linear`` is the product by its weight and nothing else, so that its parts may serve instead.

    Hooks, a ``forward`` of its own (accelerate, adapters) or another class may do more, and keep what they see.
    """
    return type(linear).forward in FORWARDS and is_unwatched(linear)


def transform(linear: nn.Module, x: Tensor, bias: Tensor | None, act: str | None, dropout: float,
              seed: Tensor | None) -> Tensor:  # fmt: skip
    """``dropout(act(linear(x) + bias))``, without a pass over the result where the kernel of ``linear`` can."""
    if not is_plain(linear):  # its output may be kept, or be x
        return finish(linear(x), bias, act, dropout, seed, ours=False)
    if type(linear) in (Linear, nn.Linear) and linear.bias is None:
        if act is None and seed is None:
            return nn.functional.linear(x, linear.weight, bias)
        return finish(nn.functional.linear(x, linear.weight), bias, act, dropout, seed)
    if not isinstance(linear, SparseLinear) or not linear.fusible:
        return finish(linear(x), bias, act, dropout, seed)
    check_dtype("SparseLinear", "input", x, linear.values.dtype)
    pattern = (linear.crow, linear.col, linear.ccol, linear.row, linear.perm)
    return sparse_linear(x, linear.values, bias, *pattern, act or "none", float(dropout), seed)


def finish(y: Tensor, bias: Tensor | None, act: str | None, dropout: float, seed: Tensor | None,
           ours: bool = True) -> Tensor:  # fmt: skip
    """``dropout(act(y + bias))``, in one pass over ``y``; may overwrite it where it is ``ours`` and nobody else's."""
    bias = None if bias is None else bias.to(y.dtype)  # in the dtype of autocast
    if exporting():
        y = y if bias is None else y + bias
        return nn.functional.dropout(y if act is None else y.relu(), float(dropout), dropout > 0)
    if act is not None or seed is not None:
        return act_dropout(y, bias, act or "none", float(dropout), seed)
    y = y if ours else y.clone()
    return y if bias is None else y.add_(bias)
