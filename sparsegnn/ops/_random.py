"""The generator of csrc/common/random.h in plain PyTorch: dropout keyed on (seed, edge slot, head)."""

import torch
from torch import Tensor

from sparsegnn.ops._library import check

_LOW = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A 32-bit finaliser on int64 tensors that hold uint32 values."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _LOW
    return x ^ (x >> 16)


def _multiply(z: Tensor, constant: int) -> Tensor:
    return z * (constant - (1 << 64) if constant >> 63 else constant)  # int64 wraps like uint64


def _shift(z: Tensor, n: int) -> Tensor:
    return (z >> n) & ((1 << (64 - n)) - 1)  # logical


def bits(seed: Tensor, edge: Tensor, heads: int) -> Tensor:
    """uint32 values in an int64 tensor [len(edge), heads]; ``seed`` int64 [1], ``edge`` the slots."""
    z = seed + (0x9E3779B97F4A7C15 - (1 << 64))
    z = _multiply(z ^ _shift(z, 30), 0xBF58476D1CE4E5B9)
    z = _multiply(z ^ _shift(z, 27), 0x94D049BB133111EB)
    z = z ^ _shift(z, 31)
    lo, hi = z & _LOW, _shift(z, 32)
    stream = (torch.arange(heads, device=edge.device) * 0x9E3779B9) & _LOW ^ hi
    return _mix((_mix(edge.long() ^ lo)[:, None] + stream) & _LOW)


def dropout_factor(seed: Tensor, edge: Tensor, heads: int, p: float, dtype: torch.dtype) -> Tensor:
    """[len(edge), heads]: 0 with probability ``p``, else 1 / (1 - p)."""
    threshold = min(int(p * 2**32), _LOW)
    return (bits(seed, edge, heads) >= threshold).to(dtype) * (1 / (1 - p) if p < 1 else 0.0)


def dropout_like(seed: Tensor, like: Tensor, p: float) -> Tensor:
    """:func:`dropout_factor` of every element of ``like`` [N, M]: rows count as edges, columns as heads."""
    return dropout_factor(seed, torch.arange(like.size(0), device=like.device), like.size(1), p, like.dtype)


def check_dropout(op: str, p: float, seed: Tensor | None, x: Tensor) -> Tensor | None:
    """The seed where something is dropped; raise unless it is int64 [1] on the device of ``x``."""
    if not 0 <= p <= 1:
        raise ValueError(f"{op}: dropout must be in [0, 1], got {p}")
    if p == 0:
        return None
    check(op, "seed", seed, (1,))
    if seed.dtype != torch.int64 or seed.device != x.device:
        raise TypeError(f"{op}: seed must be int64 on {x.device}, got {seed.dtype} on {seed.device}")
    return seed
