"""GCN2Conv: x' = ((1 - alpha) D^-1/2 (A + I) D^-1/2 x + alpha x_0) ((1 - beta) I + beta W) (Chen et al.,
https://arxiv.org/abs/2007.02133)."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn

from sparsegnn.nn.batches import batched, lead_of, rows_of
from sparsegnn.nn.checks import check_features, check_number, check_size
from sparsegnn.nn.inner import glorot_, inner_linear
from sparsegnn.nn.linear import SparseLinear
from sparsegnn.nn.maxk import dense
from sparsegnn.nn.products import fresh, plus, refuse_sparse
from sparsegnn.nn.propagation import Teleport


class GCN2Conv(Teleport):
    """Drop-in for PyG's ``GCN2Conv``: same arguments, same ``state_dict`` keys when dense, same results to rounding.

    Args:
        channels: width of ``x``, ``x_0`` and the result.
        alpha: part of ``x_0`` in what is multiplied by the weight.
        theta, layer: beta is log(theta / layer + 1); 1 without.
        shared_weights: False for a weight of its own for ``x_0``.
        cached: convert and normalise the graph of the first call, and use it for all later ones.
        add_self_loops: of every node to itself; where ``normalize``.
        normalize: the symmetric GCN norm.
        aggr, flow, options: see :class:`Convolution`; one reduction.
        sparsity: fraction of the weights that do not exist; above 0, ``weight1`` and ``weight2`` are
            :class:`SparseLinear`, which hold the transpose of what is a parameter of that name otherwise.
        pattern: where the weights may be, see :class:`SparseLinear`.
    """

    def __init__(self, channels: int, alpha: float, theta: float | None = None, layer: int | None = None,
                 shared_weights: bool = True, cached: bool = False, add_self_loops: bool = True,
                 normalize: bool = True, *, aggr="add", flow: str = "source_to_target", sparsity: float = 0.0,
                 pattern: str = "unstructured", **options):  # fmt: skip
        super().__init__(alpha, aggr, flow, options, normalize, add_self_loops, cached)
        self.channels, self.beta = check_size("GCN2Conv", "channels", channels, 1), _beta(theta, layer)
        self.weight1 = self._weight(sparsity, pattern)
        if shared_weights:
            self.register_parameter("weight2", None)
        else:
            self.weight2 = self._weight(sparsity, pattern)
        self.reset_parameters()

    def _weight(self, sparsity: float, pattern: str) -> nn.Parameter | SparseLinear:
        linear = inner_linear("GCN2Conv", self.channels, self.channels, sparsity, pattern)
        return linear if isinstance(linear, SparseLinear) else linear.weight

    def reset_parameters(self) -> None:
        """New weights, at the same places when sparse; forget what is cached."""
        for weight in (self.weight1, self.weight2):
            if isinstance(weight, nn.Module):
                weight.reset_parameters()
                glorot_(weight)
            elif weight is not None:
                nn.init.xavier_uniform_(weight)
        self._forget()

    def forward(self, x: Tensor, x_0: Tensor, edge_index: object, edge_weight: Tensor | None = None) -> Tensor:
        """Features of the nodes after one step of message passing.

        Args:
            x: ``[..., N, channels]``, a tensor or :class:`CompressedRows`.
            x_0: the first features of the nodes, of which rows behind the N do not count; as ``x``.
            edge_index: a :class:`CSRGraph`, or anything that ``CSRGraph.from_any`` takes.
            edge_weight: ``[E]`` or ``[E, 1]`` in the order of the edges that the graph was made from; differentiable.

        Returns:
            ``[..., N, channels]``.
        """
        check_features("GCN2Conv", x, self.channels, compressed=True, batched=True)
        refuse_sparse("GCN2Conv", x)
        refuse_sparse("GCN2Conv", x_0, "x_0")
        h, lead = dense(x_0), lead_of("GCN2Conv", x)
        if not isinstance(h, Tensor) or not h.dtype.is_floating_point:
            got = h.dtype if isinstance(h, Tensor) else type(h).__name__
            raise TypeError(f"GCN2Conv: x_0 must be a floating-point Tensor [N, {self.channels}], got {got}")
        if h.dim() != len(x.shape) or h.size(0) < x.size(0) or h.shape[1:] != x.shape[1:]:
            raise ValueError(f"GCN2Conv: x_0 must have shape {list(x.shape)} or more rows, got {list(h.shape)}")
        h = h if h.size(0) == x.size(0) else h[: x.size(0)]
        x, h = rows_of(x, lead), rows_of(h, lead)
        graph = self._graph(x, edge_index, edge_weight, lead)
        y = self._multiply(self._teleporting(graph, x, lead), x)
        if self.weight2 is None:
            return batched(self._mixed(plus(y, h, self.alpha), self.weight1), lead)
        return batched(plus(self._mixed(y, self.weight1), self._mixed(h, self.weight2), self.alpha), lead)

    def _mixed(self, h: Tensor, weight: Tensor | nn.Module) -> Tensor:
        """h ((1 - beta) I + beta W)."""
        if not isinstance(weight, Tensor):
            y = fresh(weight, h)
            return y if self.beta == 1 else torch.lerp(h, y.to(h.dtype), self.beta)
        if self.beta == 1:
            return h @ weight
        return torch.addmm(h, h, weight, beta=1 - self.beta, alpha=self.beta)

    def extra_repr(self) -> str:
        return f"{self.channels}, alpha={self.alpha}, beta={self.beta}"


def _beta(theta: float | None, layer: int | None) -> float:
    if theta is None and layer is None:
        return 1.0
    if theta is None or layer is None:
        raise ValueError(f"GCN2Conv: theta and layer must both be given, got theta={theta}, layer={layer}")
    theta, layer = check_number("GCN2Conv", "theta", theta), check_number("GCN2Conv", "layer", layer)
    if layer == 0 or theta / layer <= -1:
        raise ValueError(f"GCN2Conv: theta / layer must be above -1, got {theta} / {layer}")
    return log(theta / layer + 1)
