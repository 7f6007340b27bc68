"""Row-wise max and min over edges, in plain PyTorch."""

import torch
from torch import Tensor


def extremum(message: Tensor, rows: Tensor, m: int, reduce: str) -> tuple[Tensor, Tensor]:
    """``(y, arg)`` [M, K]: the max or min of ``message`` [E, K] over the edges of each row, and its first slot.

    0 and -1 without edges; NaN wins over everything.
    """
    index = rows[:, None].expand_as(message)
    y = message.new_zeros(m, message.size(1)).scatter_reduce(0, index, message, "a" + reduce, include_self=False)
    hit = (message == y[rows]) | (message.isnan() & y[rows].isnan())
    edge = torch.arange(rows.numel(), dtype=torch.int32, device=rows.device)[:, None]
    first = torch.where(hit, edge, torch.iinfo(torch.int32).max)
    arg = torch.full_like(y, -1, dtype=torch.int32).scatter_reduce(0, index, first, "amin", include_self=False)
    return y, arg
