"""One linear map of a layer, as channels see it: which outputs its inputs can reach, and what it makes of constants."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn import pattern as patterns
from sparsegnn.nn import SparseLinear


class Product:
    """``y = x W^T``: row ``i`` of W makes channel ``out[i]``, column ``j`` reads channel ``ins[j]``.

    ``linear`` is a layer with ``weight`` [M, K], or a :class:`SparseLinear`. ``folds``: a constant that arrives may go
    into its bias instead.
    """

    def __init__(self, linear: nn.Module, out: Tensor, ins: Tensor, folds: bool = False):
        self.linear, self.out, self.ins, self.folds = linear, out, ins, folds
        self.arrivals: list[Tensor] = []  # constants of the input, at each call
        self._entries: tuple[Tensor, Tensor, Tensor] | None = None
        self._dense: Tensor | None = None
        if isinstance(linear, SparseLinear) and linear.block == (1, 1):
            crow, col = linear.pattern()
            values = linear.values.detach().double().cpu()
            at = values.nonzero().view(-1)  # a weight that exists may be zero
            self._entries = patterns.rows_of(crow.cpu(), col.cpu())[at], col.cpu().long()[at], values[at]
        else:
            weight = linear.dense_weight() if isinstance(linear, SparseLinear) else linear.weight
            self._dense = weight.detach().cpu()

    def constants(self, constant: Tensor) -> Tensor:
        """What W makes of inputs that are constant in every row; NaN where one that is not gets in."""
        varies = constant.isnan()
        known = constant.nan_to_num(0.0)
        if self._entries is not None:
            row, col, value = self._entries
            y = torch.zeros(self.out.numel(), dtype=torch.float64).index_add_(0, row, value * known[col])
            y[row[varies[col]]] = float("nan")
            return y
        reached = (self._dense[:, varies] != 0).any(1)
        y = self._dense[:, ~varies].double() @ known[~varies]
        return y.masked_fill(reached, float("nan"))

    def used(self, rows: Tensor) -> Tensor:
        """bool [K]: which columns have a weight in one of these ``rows``, bool [M]."""
        if self._entries is not None:
            row, col, _ = self._entries
            used = torch.zeros(self.ins.numel(), dtype=torch.bool)
            used[col[rows[row]]] = True
            return used
        return (self._dense[rows] != 0).any(0)

    def harmless(self) -> Tensor:
        """bool [K]: inputs that add nothing to the result, or a constant that can go into the bias."""
        if not self.arrivals:
            return torch.ones(self.ins.numel(), dtype=torch.bool)
        arrived = torch.stack(self.arrivals)
        zero = (arrived == 0).all(0)
        return zero | (arrived == arrived[0]).all(0) if self.folds else zero

    def folded(self, gone: Tensor) -> Tensor:
        """float64 [M]: what the inputs ``gone``, bool [K], add to the bias."""
        if not self.arrivals:
            return torch.zeros(self.out.numel(), dtype=torch.float64)
        value = self.arrivals[0].where(gone & self.harmless(), 0.0).nan_to_num(0.0)
        return self.constants(value)
