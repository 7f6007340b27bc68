"""Softmax over the edges of each row, in plain PyTorch."""

import torch
from torch import Tensor


def softmax_of_rows(logit: Tensor, rows: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """``(alpha, lse)``: of ``logit`` [E, H] over the edges of each of ``m`` rows, and the logarithm of its divisor."""
    empty = logit.new_zeros(m, logit.size(1))
    top = (empty - torch.inf).scatter_reduce(0, rows[:, None].expand_as(logit), logit, "amax", include_self=False)
    alpha = (logit - top[rows]).exp()
    total = empty.index_add(0, rows, alpha)
    return alpha / total[rows], top + total.log()
