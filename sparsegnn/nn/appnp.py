"""APPNP: x_k = (1 - alpha) D^-1/2 (A + I) D^-1/2 x_k-1 + alpha x, K times (Gasteiger et al.,
https://arxiv.org/abs/1810.05997)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sparsegnn.nn.inner import check_activation, check_features
from sparsegnn.nn.inputs import check_hops
from sparsegnn.nn.maxk import dense
from sparsegnn.nn.products import plus, refuse_sparse
from sparsegnn.nn.propagation import Teleport


class APPNP(Teleport):
    """Drop-in for PyG's ``APPNP``: same arguments, same results to rounding.

    Args:
        K: number of steps.
        alpha: part of ``x`` in each of them.
        dropout: probability that, in training, an edge does not count in a step, nor, as in PyG, in those after it.
        cached: convert and normalise the graph of the first call, and use it for all later ones.
        add_self_loops: of every node to itself; where ``normalize``.
        normalize: the symmetric GCN norm.
        aggr: ``"add"`` (or ``"sum"``), ``"mean"``, ``"max"`` or ``"min"``.
        flow: ``"source_to_target"``, or ``"target_to_source"`` for raw edge lists.
    """

    def __init__(self, K: int, alpha: float, dropout: float = 0.0, cached: bool = False, add_self_loops: bool = True,
                 normalize: bool = True, *, aggr: str = "add", flow: str = "source_to_target"):  # fmt: skip
        super().__init__(alpha, aggr, flow, normalize, add_self_loops, cached)
        check_activation("APPNP", None, dropout)
        self.K, self.dropout = check_hops("APPNP", K), dropout

    def reset_parameters(self) -> None:
        """Forget what is cached."""
        self._forget()

    def forward(self, x: Tensor, edge_index: object, edge_weight: Tensor | None = None) -> Tensor:
        """Propagated features of the nodes.

        Args:
            x: ``[N, F]``, a tensor or :class:`CompressedRows`.
            edge_index: a :class:`CSRGraph`, or anything that ``CSRGraph.from_any`` takes.
            edge_weight: ``[E]`` in the order of the edges that the graph was made from; differentiable.

        Returns:
            ``[N, F]``; ``x`` itself without steps.
        """
        check_features("APPNP", x, -1, compressed=True)
        refuse_sparse("APPNP", x)
        dropout = self.dropout if self.training else 0.0
        graph, h = self._graph(x, edge_index, edge_weight), dense(x)
        a = self._teleporting(graph, x, explicit=dropout > 0)
        for _ in range(self.K):
            if dropout > 0:
                a = a._replace(val=F.dropout(a.val, dropout))
            x = plus(self._multiply(a, x), h, self.alpha)
        return dense(x)

    def extra_repr(self) -> str:
        return f"K={self.K}, alpha={self.alpha}"
