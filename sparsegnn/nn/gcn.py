"""GCNConv: x' = D^-1/2 (A + I) D^-1/2 x W^T + b (Kipf and Welling, https://arxiv.org/abs/1609.02907)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn.graph import CSRGraph
from sparsegnn.nn.aggregate import aggregate_transform, commutes, multiply, narrower
from sparsegnn.nn.batches import Lead, batched, lead_of, rows_of
from sparsegnn.nn.checks import check_activation, check_features, check_size
from sparsegnn.nn.inner import finish, glorot_, inner_linear, new_seed, transform
from sparsegnn.nn.maxk import dense
from sparsegnn.nn.propagation import Propagation
from sparsegnn.nn.reductions import refuse_several


class GCNConv(Propagation):
    """Drop-in for PyG's ``GCNConv``: same arguments, same ``state_dict`` keys when dense, same results to rounding.

    Args:
        in_channels, out_channels: width of ``x`` (-1: that of the first input) and of the result.
        improved: weigh self-loops 2 instead of 1; as in PyG, of graphs with edge weights only.
        cached: convert and normalise the graph of the first call, and use it for all later ones. The aggregate of an
            input without gradient is kept too, once the same tensor has come twice unchanged: a training step of a
            first layer then only multiplies. Changes in place, of that or of the graph (:meth:`CSRGraph.assign_`), are
            noticed, those through ``x.data`` or numpy are not.
        add_self_loops: None: when ``normalize``.
        normalize: the symmetric GCN norm; kept as one number per node, never one per edge.
        bias: learn an additive bias.
        aggr, flow, options: see :class:`Convolution`; several reductions without ``bias`` only, for a result of
            ``[..., N, len(aggr) * out_channels]``.
        sparsity: fraction of the weights that do not exist; above 0, ``lin`` is a :class:`SparseLinear`.
        pattern: where the weights of a sparse ``lin`` may be, see :class:`SparseLinear`.
        act: ``"relu"`` or None, applied to the result in the same pass that writes it where the kernels can.
        dropout: probability that, in training, an entry of the result becomes 0, after ``act``.

    Where PyG's input formats differ from each other, all formats here follow its edge lists: a node keeps the weight of
    its last self-loop.
    """

    def __init__(self, in_channels: int, out_channels: int, improved: bool = False, cached: bool = False,
                 add_self_loops: bool | None = None, normalize: bool = True, bias: bool = True, aggr="add",
                 flow: str = "source_to_target", *, sparsity: float = 0.0, pattern: str = "unstructured",
                 act: str | None = None, dropout: float = 0.0, **options):  # fmt: skip
        add_self_loops = normalize if add_self_loops is None else add_self_loops
        super().__init__(aggr, flow, options, normalize, add_self_loops, improved, cached)
        if add_self_loops and not normalize:
            raise ValueError("GCNConv: add_self_loops must be False or None without normalize, got True: that does not "
                             "support adding self-loops")  # fmt: skip
        check_activation("GCNConv", act, dropout)
        if bias:
            refuse_several("GCNConv", self.aggr, "bias is added to out_channels")
        in_channels = check_size("GCNConv", "in_channels", in_channels, -1)
        out_channels = check_size("GCNConv", "out_channels", out_channels, 1)
        self.in_channels, self.out_channels, self.act, self.dropout = in_channels, out_channels, act, dropout
        self.lin = inner_linear("GCNConv", in_channels, out_channels, sparsity, pattern)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)

    def reset_parameters(self) -> None:
        """New weights, at the same places when sparse; forget what is cached."""
        self.lin.reset_parameters()
        if not isinstance(self.lin, nn.LazyLinear):
            glorot_(self.lin)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self._forget()

    def forward(self, x: Tensor, edge_index: object, edge_weight: Tensor | None = None) -> Tensor:
        """Features of the nodes after one step of message passing.

        Args:
            x: ``[..., N, in_channels]``; ``torch.sparse_csr`` or coo where most features are 0 and need no gradient;
                or :class:`CompressedRows`, the output of :class:`MaxK`.
            edge_index: a :class:`CSRGraph`, or anything that ``CSRGraph.from_any`` takes, which is then converted at
                every call unless ``cached``.
            edge_weight: ``[E]`` or ``[E, 1]`` in the order of the edges that the graph was made from; differentiable.

        Returns:
            ``[..., N, out_channels]``.
        """
        check_features("GCNConv", x, self.in_channels, compressed=True, batched=True)
        if lead := lead_of("GCNConv", x):
            return batched(self._forward(rows_of(x, lead), edge_index, edge_weight, lead), lead)
        return self._forward(x, edge_index, edge_weight)

    def _forward(self, x, edge_index: object, edge_weight: Tensor | None, lead: Lead = ()) -> Tensor:
        graph = self._graph(x, edge_index, edge_weight, lead)
        dropout = self.dropout if self.training else 0.0
        epilogue = (self.bias, self.act, dropout, new_seed(dropout, x.device))
        if commutes(self.aggr):
            plain = not lead and not self.explain
            ax = self._kept(x, graph, lambda: self._product(graph, x, lead)) if self.cached and plain else None
            if ax is None and narrower(x, self.out_channels):
                options = dict(aggr=self.aggr, **self._options())
                y = aggregate_transform(graph, x, self.lin, *epilogue, **options) if plain else None
                if y is not None:
                    return y
                ax = self._product(graph, x, lead)
            if ax is not None:
                return transform(self.lin, ax, *epilogue)
        return finish(self._product(graph, self.lin(dense(x)), lead), *epilogue)

    def _finished(self, y: Tensor) -> Tensor:
        dropout = self.dropout * self.training
        return finish(y, None, self.act, dropout, new_seed(dropout, y.device))

    def _product(self, graph: CSRGraph, x, lead: Lead) -> Tensor:
        return multiply(self._matrix(graph, x, lead), x, self.aggr)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}"
        text += "" if self.act is None else f", act={self.act!r}"
        return text + (f", dropout={self.dropout}" if self.dropout else "")
