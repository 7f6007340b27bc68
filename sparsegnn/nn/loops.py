"""Self-loops as PyG's GATConv adds them: exactly one per node, with edge features made from those of the edges."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsegnn.graph import CSRGraph
from sparsegnn.nn.exported import EdgeList

FILLS = {"add": "sum", "sum": "sum", "mean": "mean", "max": "amax", "min": "amin", "mul": "prod"}


def with_loops(graph: CSRGraph) -> tuple[CSRGraph, Tensor]:
    """:meth:`CSRGraph.looped`; of a bipartite graph, loops for the nodes that are both source and target. In a compiled
    region the graph may be padded by a row and a column: see :func:`pad_rows`."""
    if graph.num_rows == graph.num_cols or torch.compiler.is_compiling() or isinstance(graph, EdgeList):
        return graph.layer_loops()
    kept = (graph.rows() != graph.col).nonzero().view(-1)
    both = torch.arange(min(graph.shape), device=graph.device)
    target, source = torch.cat([graph.rows()[kept], both]), torch.cat([graph.col[kept].long(), both])
    crow, col, order = torch.ops.sparsegnn.csr_from_edges(target, source, *graph.shape)
    return CSRGraph(crow, col, None, graph.num_cols), torch.cat([kept, graph.num_edges + both])[order]


def fill_loops(base: CSRGraph, graph: CSRGraph, slot: Tensor, attr: Tensor, fill: float | Tensor | str) -> Tensor:
    """Edge features of ``graph, slot = with_loops(base)``: ``attr`` [E, F] of the edges of ``base``, and the filled
    ones of the loops: ``fill`` itself, or the features of the edges into the node, reduced."""
    rows, shape = graph.rows(), (base.num_rows + 1, attr.size(1))  # the last for edges that do not count
    if isinstance(fill, str):
        index = torch.where(base.rows() == base.col, base.num_rows, base.rows())[:, None].expand_as(attr)
        start = attr.new_full(shape, float(fill == "mul"))
        fill = start.scatter_reduce(0, index, attr, FILLS[fill], include_self=fill == "mul")
    else:
        fill = torch.as_tensor(fill, dtype=attr.dtype, device=attr.device).expand(shape)
    edges = torch.cat([attr, attr.new_zeros(1, attr.size(1))]).index_select(0, slot.clamp(max=attr.size(0)))
    return torch.where((rows == graph.col)[:, None], fill[rows], edges)


def pad_rows(x: Tensor | None, rows: int) -> Tensor | None:
    """``x`` with rows of zeros behind its own, for a graph that is padded."""
    if x is None or x.size(0) == rows:
        return x
    return torch.cat([x, x.new_zeros(rows - x.size(0), *x.shape[1:])])
