"""Arguments of layers: TypeError or ValueError that names the layer, the argument, what it must be and what it is."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from sparsegnn.nn.maxk import CompressedRows


def check_size(layer: str, name: str, value: int, least: int) -> int:
    """``value``, an int or one of numpy's."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{layer}: {name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{layer}: {name} must be at least {least}, got {value}")
    return int(value)


def check_activation(layer: str, act: str | None, dropout: float) -> None:
    if act not in (None, "relu"):
        raise ValueError(f"{layer}: act must be None or 'relu', got {act!r}")
    if isinstance(dropout, bool) or not isinstance(dropout, Real):
        raise TypeError(f"{layer}: dropout must be a float, got {type(dropout).__name__}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"{layer}: dropout must be in [0, 1], got {dropout}")


def check_features(layer: str, x, channels: int, *, compressed: bool = False, batched: bool = False) -> None:
    """x must be floating point [N, channels], or, ``batched``, [..., N, channels]; any width where that is -1."""
    if isinstance(x, (tuple, list)):
        raise ValueError(f"{layer}: x must be a Tensor [N, {channels}], got a {type(x).__name__} (no bipartite graphs)")
    kinds = (Tensor, CompressedRows) if compressed else Tensor
    if not isinstance(x, kinds) or not x.dtype.is_floating_point:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{layer}: x must be a floating-point Tensor [N, {channels}], got {got}")
    many = batched and x.dim() > 2 and x.layout == torch.strided
    if (x.dim() != 2 and not many) or (channels != -1 and channels != x.size(-1)):
        raise ValueError(f"{layer}: x must have shape [N, {channels}], got {list(x.shape)}")


def check_hops(layer: str, hops: int) -> int:
    return check_size(layer, "K", hops, 0)


def check_number(layer: str, name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{layer}: {name} must be a float, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{layer}: {name} must be finite, got {value}")
    return float(value)
