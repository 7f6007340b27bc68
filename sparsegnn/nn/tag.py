"""TAGConv: x' = sum over k of (D^-1/2 A D^-1/2)^k x W_k^T + b (Du et al., https://arxiv.org/abs/1710.10370)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn.nn.aggregate import commutes, multiply
from sparsegnn.nn.batches import batched, lead_of, rows_of
from sparsegnn.nn.checks import check_features, check_hops, check_size
from sparsegnn.nn.inner import inner_linear, reset_
from sparsegnn.nn.maxk import CompressedRows, dense
from sparsegnn.nn.products import add_product, fresh, plus, refuse_sparse
from sparsegnn.nn.propagation import Propagation
from sparsegnn.nn.reductions import refuse_several
from sparsegnn.ops.spmm_gcn import aggregate_first


class Linears(nn.ModuleList):
    """The weights of the hops, all of one size."""


class TAGConv(Propagation):
    """Drop-in for PyG's ``TAGConv``: same arguments, same ``state_dict`` keys when dense, same results to rounding.

    Args:
        in_channels, out_channels: width of ``x`` (-1: that of the first input) and of the result.
        K: number of hops, of which each has a weight ``lins[k]``, and no hop has ``lins[0]``.
        bias: learn an additive bias.
        normalize: the symmetric GCN norm, without self-loops.
        aggr, flow, options: see :class:`Convolution`; several reductions only where K is 0.
        sparsity: fraction of the weights of ``lins`` that do not exist.
        pattern: where the weights may be, see :class:`SparseLinear`.
    """

    def __init__(self, in_channels: int, out_channels: int, K: int = 3, bias: bool = True, normalize: bool = True, *,
                 aggr="add", flow: str = "source_to_target", sparsity: float = 0.0, pattern: str = "unstructured",
                 **options):  # fmt: skip
        super().__init__(aggr, flow, options, normalize, add_self_loops=False)
        self.in_channels = check_size("TAGConv", "in_channels", in_channels, -1)
        self.out_channels, self.K = check_size("TAGConv", "out_channels", out_channels, 1), check_hops("TAGConv", K)
        if self.K:
            refuse_several("TAGConv", self.aggr, "the weights take in_channels")
        sizes = self.in_channels, self.out_channels, sparsity, pattern
        self.lins = Linears(inner_linear("TAGConv", *sizes) for _ in range(self.K + 1))
        self.register_parameter("bias", nn.Parameter(torch.empty(self.out_channels)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New weights, at the same places when sparse."""
        for linear in self.lins:
            reset_(linear)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, edge_index: object, edge_weight: Tensor | None = None) -> Tensor:
        """Features of the nodes after up to K steps of message passing: arguments and result as of :class:`GCNConv`."""
        check_features("TAGConv", x, self.in_channels, compressed=True, batched=True)
        lead = lead_of("TAGConv", x)
        x = rows_of(x, lead)
        a = self._matrix(self._graph(x, edge_index, edge_weight, lead), x, lead)
        narrow = isinstance(x, CompressedRows) or aggregate_first(x, self.out_channels)
        if narrow or not commutes(self.aggr) or self.K == 0:
            y = self._of_aggregates(a, x)
        else:  # y = W_0 x + A (W_1 x + A (W_2 x + ...))
            *others, last = self.lins
            y = last(x)
            for linear in reversed(others):
                y = add_product(multiply(a, y, self.aggr), linear, x)
        return batched(y if self.bias is None else plus(y, self.bias), lead)

    def _of_aggregates(self, a, x) -> Tensor:
        first, *others = self.lins
        y = fresh(first, dense(x))
        for linear in others:
            refuse_sparse("TAGConv", x)
            x = multiply(a, x, self.aggr)
            y = add_product(y, linear, x)
        return y

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, K={self.K}"
