"""GCNConv: x' = D^-1/2 (A + I) D^-1/2 x W^T + b (Kipf and Welling, https://arxiv.org/abs/1609.02907)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn.graph import CSRGraph
from sparsegnn.nn.aggregate import REDUCTIONS, aggregate, aggregate_transform
from sparsegnn.nn.inner import check_activation, check_features, finish, glorot_, inner_linear, new_seed, transform
from sparsegnn.nn.kept import Given, KeptAggregate
from sparsegnn.nn.maxk import CompressedRows, dense
from sparsegnn.ops.spmm_gcn import aggregate_first


class GCNConv(nn.Module):
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
        aggr: ``"add"`` (or ``"sum"``), ``"mean"``, ``"max"`` or ``"min"``.
        flow: ``"source_to_target"``, or ``"target_to_source"`` for raw edge lists.
        sparsity: fraction of the weights that do not exist; above 0, ``lin`` is a :class:`SparseLinear`.
        pattern: where the weights of a sparse ``lin`` may be, see :class:`SparseLinear`.
        act: ``"relu"`` or None, applied to the result in the same pass that writes it where the kernels can.
        dropout: probability that, in training, an entry of the result becomes 0, after ``act``.

    Where PyG's input formats differ from each other, all formats here follow its edge lists: a node keeps the weight of
    its last self-loop.
    """

    def __init__(self, in_channels: int, out_channels: int, improved: bool = False, cached: bool = False,
                 add_self_loops: bool | None = None, normalize: bool = True, bias: bool = True, aggr: str = "add",
                 flow: str = "source_to_target", *, sparsity: float = 0.0, pattern: str = "unstructured",
                 act: str | None = None, dropout: float = 0.0):  # fmt: skip
        super().__init__()
        add_self_loops = normalize if add_self_loops is None else add_self_loops
        if add_self_loops and not normalize:
            raise ValueError("GCNConv: add_self_loops must be False or None without normalize, got True")
        if aggr not in REDUCTIONS:
            raise ValueError(f"GCNConv: aggr must be one of {', '.join(REDUCTIONS)}, got {aggr!r}")
        if flow not in ("source_to_target", "target_to_source"):
            raise ValueError(f"GCNConv: flow must be source_to_target or target_to_source, got {flow!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.improved, self.cached, self.normalize, self.add_self_loops = improved, cached, normalize, add_self_loops
        check_activation("GCNConv", act, dropout)
        self.aggr, self.flow, self.act, self.dropout = aggr, flow, act, dropout
        self.lin = inner_linear("GCNConv", in_channels, out_channels, sparsity, pattern)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)
        self._cached_graph: CSRGraph | None = None
        self._cached_of = Given(None)
        self._kept = KeptAggregate()

    def reset_parameters(self) -> None:
        """New weights, at the same places when sparse; forget what is cached."""
        self.lin.reset_parameters()
        if not isinstance(self.lin, nn.LazyLinear):
            glorot_(self.lin)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        self._cached_graph = None
        self._kept.clear()

    def forward(self, x: Tensor, edge_index: object, edge_weight: Tensor | None = None) -> Tensor:
        """Features of the nodes after one step of message passing.

        Args:
            x: ``[N, in_channels]``; ``torch.sparse_csr`` or coo where most features are 0 and need no gradient;
                or :class:`CompressedRows`, the output of :class:`MaxK`.
            edge_index: a :class:`CSRGraph`, or anything that ``CSRGraph.from_any`` takes, which is then converted at
                every call unless ``cached``.
            edge_weight: ``[E]`` in the order of the edges that the graph was made from; differentiable.

        Returns:
            ``[N, out_channels]``.
        """
        check_features("GCNConv", x, self.in_channels, compressed=True)
        graph = self._graph(x, edge_index, edge_weight)
        if graph.shape != (x.size(0), x.size(0)):
            raise ValueError(f"GCNConv: x must have one row per node of the graph {graph.shape}, got {list(x.shape)}")
        dropout = self.dropout if self.training else 0.0
        epilogue = (self.bias, self.act, dropout, new_seed(dropout, x.device))
        if commutes(self.aggr):
            ax = self._kept(x, graph, lambda: self._aggregate(graph, x)) if self.cached else None
            if ax is None and (isinstance(x, CompressedRows) or aggregate_first(x, self.out_channels)):
                y = aggregate_transform(graph, x, self.lin, *epilogue, **self._options())
                if y is not None:
                    return y
                ax = self._aggregate(graph, x)
            if ax is not None:
                return transform(self.lin, ax, *epilogue)
        return finish(self._aggregate(graph, self.lin(dense(x))), *epilogue)

    def _graph(self, x: Tensor, edge_index: object, edge_weight: Tensor | None) -> CSRGraph:
        if self._cached_graph is not None and self._cached_of.fits(edge_index):
            return self._cached_graph
        if self.flow == "target_to_source":
            if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
                raise ValueError(
                    f"GCNConv: edge_index must be a Tensor [2, E] with flow='target_to_source', got {edge_index!r}"
                )
            edge_index = edge_index.flip(0)
        graph = given = edge_index
        if not isinstance(graph, CSRGraph):
            graph = CSRGraph.from_any(graph, x.size(0))
        if edge_weight is not None:
            graph = graph.weighted(edge_weight)
        if self.cached:
            self._cached_graph, self._cached_of = graph, Given(given)
        return graph

    def _aggregate(self, graph: CSRGraph, x: Tensor) -> Tensor:
        return aggregate(graph, x, **self._options())

    def _options(self) -> dict:
        names = ("aggr", "normalize", "improved", "add_self_loops")
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}"
        text += "" if self.act is None else f", act={self.act!r}"
        return text + (f", dropout={self.dropout}" if self.dropout else "")


def commutes(aggr: str) -> bool:
    """Whether A (x W) = (A x) W."""
    return aggr not in ("max", "min")
