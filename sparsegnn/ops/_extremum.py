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


def extremum_gradients(dy, x, arg, val, crow, col, ccol, row, perm, need_dx, need_dval) -> tuple[Tensor, Tensor]:
    """``(dx, dval)``: each output's gradient goes to the one edge that ``arg`` names. Differentiable."""
    acc = x.double() if x.dtype == torch.float64 else x.float()
    edge, k = arg.clamp(min=0).long(), torch.arange(x.size(1), device=x.device).expand_as(arg)
    flow = torch.where(arg >= 0, dy.to(acc), 0)
    if not col.numel():  # no edge to index
        return x.new_zeros(x.shape if need_dx else (0, 0)), x.new_zeros(0)
    weight = flow if val is None else flow * val.to(acc)[edge]
    source = col.long()[edge]
    dx = torch.zeros_like(acc).index_put((source, k), weight, accumulate=True) if need_dx else acc.new_empty(0, 0)
    dval = acc.new_zeros(col.numel()).index_put((edge,), flow * acc[source, k], accumulate=True) if need_dval else None
    return dx.to(x.dtype), (x.new_empty(0) if dval is None else dval.to(x.dtype))
