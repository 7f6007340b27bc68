"""Features with leading batch dimensions, ``[..., N, F]`` on one graph: their rows, those of a node side by side.

As ``[N * B, F]`` they are what any linear layer takes, and seen as ``[N, B * F]`` one wide aggregation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Lead = tuple[int, ...]


def rows_of(x, lead: Lead):
    """``x`` [..., N, F] as ``[N * B, F]``, where ``lead`` is what its leading sizes are, or are expanded to."""
    if not lead:
        return x
    return x.expand(*lead, *x.shape[-2:]).movedim(-2, 0).reshape(-1, x.shape[-1])


def lead_of(layer: str, *features) -> Lead:
    """The leading sizes of one tensor, or those of several together."""
    if all(x is None or x.dim() == 2 for x in features):
        return ()
    sizes = [tuple(x.shape[:-2]) for x in features if x is not None]
    try:
        lead = tuple(torch.broadcast_shapes(*sizes))
    except RuntimeError:
        raise ValueError(f"{layer}: x must have the same leading sizes in sources and targets, got {sizes}") from None
    if 0 in lead:
        raise ValueError(f"{layer}: x must have at least one example in its leading sizes, got {list(lead)}")
    return lead


def batched(y: Tensor, lead: Lead) -> Tensor:
    """The inverse of :func:`rows_of`."""
    if not lead:
        return y
    return y.view(y.size(0) // math.prod(lead), *lead, y.size(-1)).movedim(0, -2).contiguous()
