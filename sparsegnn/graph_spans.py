"""Spans: the edges of a pattern's rows, cut and sorted as the CUDA kernels walk them (csrc/common/segments.cuh)."""

import torch
from torch import Tensor

#: Types of devices whose kernels take a list of spans; elsewhere none is made.
DEVICES = {"cuda"}
#: Fewer edges than this are in flight all at once, and a list costs more than it brings.
LEAST_EDGES = 1 << 16


def window(edges: int) -> int:
    """Edges of the longest span: ``segment_window`` of csrc/common/segments.cuh."""
    size = 256
    while size < 1024 and size * 16384 < edges:
        size *= 2
    return size


def row_spans(crow: Tensor, edges: int) -> Tensor:
    """``[S, 2]`` int32, the row and the number of the piece of every span, longest first.

    A row of more than a window of edges is the fewest pieces of at most a window, of equal length, one after another;
    others are one span, also where they are empty. Rows of equal spans stay in order.
    """
    degree, size = crow.diff().long(), window(edges)
    pieces = torch.where(degree > size, (degree + size - 1) // size, 1)
    order = torch.argsort((degree + pieces - 1) // pieces, descending=True, stable=True)
    pieces = pieces[order]
    first = pieces.cumsum(0) - pieces
    place = torch.repeat_interleave(torch.arange(order.numel(), device=crow.device), pieces)
    number = torch.arange(place.numel(), device=crow.device) - first[place]
    return torch.stack([order[place], number], 1).int()
