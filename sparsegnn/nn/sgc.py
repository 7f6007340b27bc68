"""SGConv: x' = (D^-1/2 (A + I) D^-1/2)^K x W^T + b (Wu et al., https://arxiv.org/abs/1902.07153)."""

from __future__ import annotations

from torch import Tensor

from sparsegnn.nn.aggregate import propagate, transform_hops
from sparsegnn.nn.batches import batched, lead_of, rows_of
from sparsegnn.nn.checks import check_features, check_hops, check_size
from sparsegnn.nn.inner import inner_linear, reset_
from sparsegnn.nn.products import fresh
from sparsegnn.nn.propagation import Propagation
from sparsegnn.nn.reductions import refuse_several


class SGConv(Propagation):
    """Drop-in for PyG's ``SGConv``: same arguments, same ``state_dict`` keys when dense, same results to rounding.

    Args:
        in_channels, out_channels: width of ``x`` (-1: that of the first input) and of the result.
        K: number of hops.
        cached: convert and normalise the graph of the first call, and use it for all later ones; keep the propagated
            features of an input without gradient, once the same tensor has come twice unchanged: from then on a call
            is a linear layer. Where PyG would go on with the old ones, another or a changed input is propagated.
        add_self_loops: of every node to itself.
        bias: learn an additive bias.
        aggr, flow, options: see :class:`Convolution`; several reductions only where K is 0.
        sparsity: fraction of the weights that do not exist; above 0, ``lin`` is a :class:`SparseLinear`.
        pattern: where the weights of a sparse ``lin`` may be, see :class:`SparseLinear`.
    """

    def __init__(self, in_channels: int, out_channels: int, K: int = 1, cached: bool = False,
                 add_self_loops: bool = True, bias: bool = True, *, aggr="add", flow: str = "source_to_target",
                 sparsity: float = 0.0, pattern: str = "unstructured", **options):  # fmt: skip
        super().__init__(aggr, flow, options, add_self_loops=add_self_loops, cached=cached)
        self.in_channels = check_size("SGConv", "in_channels", in_channels, -1)
        self.out_channels, self.K = check_size("SGConv", "out_channels", out_channels, 1), check_hops("SGConv", K)
        if self.K:
            refuse_several("SGConv", self.aggr, "the weight takes in_channels")
        self.lin = inner_linear("SGConv", self.in_channels, self.out_channels, sparsity, pattern, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New weights, at the same places when sparse; forget what is cached."""
        reset_(self.lin)
        self._forget()

    def forward(self, x: Tensor, edge_index: object, edge_weight: Tensor | None = None) -> Tensor:
        """Features of the nodes after K steps of message passing: arguments and result as of :class:`GCNConv`."""
        check_features("SGConv", x, self.in_channels, compressed=True, batched=True)
        lead = lead_of("SGConv", x)
        x = rows_of(x, lead)
        graph = self._graph(x, edge_index, edge_weight, lead)
        a = self._matrix(graph, x, lead) if self.K else None
        if self.cached and self.K and not lead and not self.explain:
            ax = self._kept(x, graph, lambda: propagate(a, x, self.aggr, self.K))
            if ax is not None:
                return fresh(self.lin, ax)
        return batched(transform_hops("SGConv", a, x, self.lin, self.out_channels, self.aggr, self.K), lead)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, K={self.K}"
