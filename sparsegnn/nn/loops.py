"""Self-loops as PyG's GATConv adds them: exactly one per node, with edge features made from those of the edges."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsegnn.graph import CSRGraph

FILLS = {"add": "sum", "sum": "sum", "mean": "mean", "max": "amax", "min": "amin", "mul": "prod"}


def with_loops(graph: CSRGraph) -> tuple[CSRGraph, Tensor]:
    """:meth:`CSRGraph.looped`; of a bipartite graph, loops for the nodes that are both source and target."""
    if graph.num_rows == graph.num_cols:
        return graph.looped()
    kept, both = _plain_edges(graph), torch.arange(min(graph.shape), device=graph.device)
    target, source = torch.cat([graph.rows()[kept], both]), torch.cat([graph.col[kept].long(), both])
    crow, col, order = torch.ops.sparsegnn.csr_from_edges(target, source, *graph.shape)
    return CSRGraph(crow, col, None, graph.num_cols), torch.cat([kept, graph.num_edges + both])[order]


def fill_loops(base: CSRGraph, graph: CSRGraph, slot: Tensor, attr: Tensor, fill: float | Tensor | str) -> Tensor:
    """Edge features of ``graph, slot = with_loops(base)``: ``attr`` [E, F] of the edges of ``base``, and the filled
    ones of the loops: ``fill`` itself, or the features of the edges into the node, reduced."""
    rows, shape = graph.rows(), (graph.num_rows, attr.size(1))
    if isinstance(fill, str):
        kept = _plain_edges(base)
        start, index = attr.new_full(shape, float(fill == "mul")), base.rows()[kept, None].expand(-1, attr.size(1))
        fill = start.scatter_reduce(0, index, attr[kept], FILLS[fill], include_self=fill == "mul")
    else:
        fill = torch.as_tensor(fill, dtype=attr.dtype, device=attr.device).expand(shape)
    loop = rows == graph.col
    edges = attr.new_zeros(graph.num_edges, attr.size(1)).index_put((~loop,), attr[slot[~loop]])
    return torch.where(loop[:, None], fill[rows], edges)


def _plain_edges(graph: CSRGraph) -> Tensor:
    return (graph.rows() != graph.col).nonzero().view(-1)
