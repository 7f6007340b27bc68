"""What a graph layer is called with: features of sources and targets, and the graph between them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsegnn.graph import CSRGraph
from sparsegnn.nn import exported
from sparsegnn.nn.batches import Lead, lead_of, rows_of
from sparsegnn.nn.checks import check_features, check_size
from sparsegnn.nn.convolution import FLOWS


def widths_of(layer: str, in_channels: int | tuple[int, int]) -> tuple[int, int]:
    """Widths of the sources and of the targets."""
    pair = in_channels if isinstance(in_channels, (tuple, list)) else (in_channels, in_channels)
    if len(pair) != 2:
        raise ValueError(f"{layer}: in_channels must be an int or a pair, got {in_channels}")
    sources, targets = (check_size(layer, "in_channels", width, -1) for width in pair)
    return sources, targets


def pair_of(layer: str, x, sources: int, targets: int):
    """Features of the sources and of the targets, of a pair or twice the same, as rows; and their leading sizes.

    Args:
        sources, targets: their widths, -1 for any.
    """
    if isinstance(x, (tuple, list)) and len(x) != 2:
        raise ValueError(f"{layer}: x must be a Tensor or a pair of sources and targets, got {len(x)} of them")
    source, target = x if isinstance(x, (tuple, list)) else (x, x)
    check_features(layer, source, sources, compressed=True, batched=True)
    if target is not None:
        check_features(layer, target, targets, compressed=True, batched=True)
    if target is source:
        lead = lead_of(layer, source)
        source = rows_of(source, lead)
        return source, source, lead
    lead = lead_of(layer, source, target)
    return rows_of(source, lead), None if target is None else rows_of(target, lead), lead


def graph_of(layer: str, source, target, edge_index: object, edge_weight: Tensor | None = None,
             size: tuple[int, int] | None = None, flow: str = FLOWS[0], lead: Lead = ()) -> CSRGraph:  # fmt: skip
    """The graph of a call, of shape (targets, sources), with ``edge_weight`` where that is given.

    Args:
        target: features of the targets, or None: then ``size`` (sources, targets) or the graph says how many.
    """
    columns, rows = source.size(0), None if target is None else target.size(0)
    if lead:
        batch = math.prod(lead)
        columns, rows = columns // batch, None if rows is None else rows // batch
    for name, known, given in zip(("sources", "targets"), (columns, rows), size, strict=True) if size else ():
        if None not in (known, given) and known != given:
            raise ValueError(f"{layer}: size must give {known} {name} as x does, got {tuple(size)}")
    rows = size[1] if rows is None and size is not None else rows
    if flow == "target_to_source":
        edge_index = turned(layer, edge_index, rows == columns)
    graph = edge_index
    if not isinstance(graph, CSRGraph) or exported.exporting():
        edges = isinstance(graph, Tensor) and graph.layout == torch.strided
        if rows is None and edges and None in getattr(graph, "sparse_size", lambda: (None,))():  # EdgeIndex may know
            raise ValueError(f"{layer}: size must be given where x has no targets, got {size}")
        graph = exported.graph_of(graph, None if rows is None else (rows, columns))
    if graph.num_cols != columns or (rows is not None and graph.num_rows != rows):
        raise ValueError(f"{layer}: x must have one row per node of the graph {graph.shape}, got {[columns, rows]}")
    return graph if edge_weight is None else graph.weighted(edge_weight)


def turned(layer: str, edge_index: object, square: bool) -> Tensor:
    """An edge list whose edges go the other way; matrices say themselves which way theirs go. PyG counts the targets of
    another number of sources wrongly."""
    if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
        raise ValueError(
            f"{layer}: edge_index must be a Tensor [2, E] with flow='target_to_source', got {edge_index!r}: transpose "
            "the matrix, and leave flow as it is"
        )
    if not square:
        raise ValueError(f"{layer}: x must have as many targets as sources with flow='target_to_source', got others: "
                         "give edge_index.flip(0), and leave flow as it is")  # fmt: skip
    return edge_index.flip(0)
