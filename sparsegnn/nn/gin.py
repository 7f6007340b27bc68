"""GINConv: x' = nn((1 + eps) x + sum of x over the neighbours) (Xu et al., https://arxiv.org/abs/1810.00826)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsegnn.graph import CSRGraph
from sparsegnn.nn.aggregate import REDUCTIONS, aggregate, needs_grad
from sparsegnn.nn.inputs import check_aggregation, graph_of, pair_of, refuse_sparse
from sparsegnn.nn.maxk import dense


class GINConv(torch.nn.Module):
    """Drop-in for PyG's ``GINConv``: same arguments, same ``state_dict`` keys, same results to rounding.

    Args:
        nn: maps ``[N, in_channels]`` to ``[N, out_channels]``, such as an MLP, or one with :class:`SparseLinear` in it.
            As in PyG it gets new weights here, where it has ``reset_parameters``.
        eps: what a node counts more than a neighbour, to begin with.
        train_eps: learn ``eps``.
        aggr: ``"add"`` (or ``"sum"``), ``"mean"``, ``"max"`` or ``"min"``.
        flow: ``"source_to_target"``, or ``"target_to_source"`` for raw edge lists.

    As in PyG, edge weights of the graph do not count.
    """

    def __init__(self, nn: Callable, eps: float = 0.0, train_eps: bool = False, *, aggr: str = "add",
                 flow: str = "source_to_target"):  # fmt: skip
        super().__init__()
        check_aggregation("GINConv", aggr, flow)
        if not callable(nn):
            raise TypeError(f"GINConv: nn must be a Module or a function, got {type(nn).__name__}")
        if isinstance(eps, bool) or not isinstance(eps, (int, float)):
            raise TypeError(f"GINConv: eps must be a float, got {type(eps).__name__}")
        self.nn, self.initial_eps, self.aggr, self.flow = nn, eps, aggr, flow
        if train_eps:
            self.eps = torch.nn.Parameter(torch.empty(1))
        else:
            self.register_buffer("eps", torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New weights of ``nn``, and the ``eps`` of the beginning."""
        _reset(self.nn)
        with torch.no_grad():
            self.eps.fill_(self.initial_eps)

    def forward(self, x, edge_index: object, size: tuple[int, int] | None = None) -> Tensor:
        """Features of the nodes after one step of message passing.

        Args:
            x: ``[N, in_channels]``, a tensor or :class:`CompressedRows`; or a pair, of the sources and of the targets
                (None: without them) of a bipartite graph.
            edge_index: a :class:`CSRGraph`, or anything that ``CSRGraph.from_any`` takes.
            size: numbers of sources and targets, needed where a pair has no targets.

        Returns:
            what ``nn`` makes of ``[M, in_channels]``.
        """
        source, target = pair_of("GINConv", x, -1, -1)
        refuse_sparse("GINConv", source, target)
        if target is not None and target.size(1) != source.size(1):
            raise ValueError(f"GINConv: x must have targets as wide as sources ({source.size(1)}), "
                             f"got {target.size(1)}")  # fmt: skip
        graph = graph_of("GINConv", source, target, edge_index, None, size, self.flow)
        return self.nn(self._sum(graph if graph.val is None else graph.weighted(None), source, target))

    def _sum(self, graph: CSRGraph, source, target) -> Tensor:
        """(1 + eps) of the targets and their neighbours; in one pass where eps is constant."""
        if target is None:
            return aggregate(graph, source, self.aggr, normalize=False)
        root = 1 + self.eps.to(torch.promote_types(source.dtype, torch.float32))
        if target is source and REDUCTIONS[self.aggr] == "sum" and not needs_grad(root):
            return aggregate(graph, source, normalize=False, root=root)
        return aggregate(graph, source, self.aggr, normalize=False).addcmul_(dense(target), root.to(target.dtype))

    def extra_repr(self) -> str:
        return "" if self.aggr == "add" else f"aggr={self.aggr!r}"


def _reset(module: object) -> None:
    """As PyG's ``reset``: of the outermost modules that know how."""
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()
    elif isinstance(module, torch.nn.Module):
        for child in module.children():
            _reset(child)
