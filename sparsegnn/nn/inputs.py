"""What a graph layer is called with: features of sources and targets, and the graph between them."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from sparsegnn.graph import CSRGraph
from sparsegnn.nn.aggregate import REDUCTIONS
from sparsegnn.nn.inner import check_features

FLOWS = ("source_to_target", "target_to_source")


def check_aggregation(layer: str, aggr: str, flow: str = FLOWS[0]) -> None:
    if aggr not in REDUCTIONS:
        raise ValueError(f"{layer}: aggr must be one of {', '.join(REDUCTIONS)}, got {aggr!r}")
    if flow not in FLOWS:
        raise ValueError(f"{layer}: flow must be source_to_target or target_to_source, got {flow!r}")


def check_hops(layer: str, hops: int) -> int:
    if isinstance(hops, bool) or not isinstance(hops, Integral):
        raise TypeError(f"{layer}: K must be an int, got {type(hops).__name__}")
    if hops < 0:
        raise ValueError(f"{layer}: K must be at least 0, got {hops}")
    return int(hops)


def check_number(layer: str, name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{layer}: {name} must be a float, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{layer}: {name} must be finite, got {value}")
    return float(value)


def widths_of(layer: str, in_channels: int | tuple[int, int]) -> tuple[int, int]:
    """Widths of the sources and of the targets."""
    if not isinstance(in_channels, (tuple, list)):
        return in_channels, in_channels
    if len(in_channels) != 2:
        raise ValueError(f"{layer}: in_channels must be an int or a pair, got {in_channels}")
    return tuple(in_channels)


def pair_of(layer: str, x, sources: int, targets: int):
    """Features of the sources and of the targets: of a pair, or twice the same; their widths, -1 for any."""
    if isinstance(x, (tuple, list)) and len(x) != 2:
        raise ValueError(f"{layer}: x must be a Tensor or a pair of sources and targets, got {len(x)} of them")
    source, target = x if isinstance(x, (tuple, list)) else (x, x)
    check_features(layer, source, sources, compressed=True)
    if target is not None:
        check_features(layer, target, targets, compressed=True)
    return source, target


def graph_of(layer: str, source, target, edge_index: object, edge_weight: Tensor | None = None,
             size: tuple[int, int] | None = None, flow: str = FLOWS[0]) -> CSRGraph:  # fmt: skip
    """The graph of a call, of shape (targets, sources), with ``edge_weight`` where that is given.

    Args:
        target: features of the targets, or None: then ``size`` (sources, targets) or the graph says how many.
    """
    columns, rows = source.size(0), None if target is None else target.size(0)
    for name, known, given in zip(("sources", "targets"), (columns, rows), size, strict=True) if size else ():
        if None not in (known, given) and known != given:
            raise ValueError(f"{layer}: size must give {known} {name} as x does, got {tuple(size)}")
    rows = size[1] if rows is None and size is not None else rows
    if flow == "target_to_source":
        edge_index = _turned(layer, edge_index)
    graph = edge_index
    if not isinstance(graph, CSRGraph):
        edges = isinstance(graph, Tensor) and graph.layout == torch.strided
        if rows is None and edges and None in getattr(graph, "sparse_size", lambda: (None,))():  # EdgeIndex may know
            raise ValueError(f"{layer}: size must be given where x has no targets, got {size}")
        graph = CSRGraph.from_any(graph, None if rows is None else (rows, columns))
    if graph.num_cols != columns or (rows is not None and graph.num_rows != rows):
        raise ValueError(f"{layer}: x must have one row per node of the graph {graph.shape}, got {[columns, rows]}")
    return graph if edge_weight is None else graph.weighted(edge_weight)


def _turned(layer: str, edge_index: object) -> Tensor:
    """An edge list whose edges go the other way; matrices say themselves which way theirs go."""
    if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
        raise ValueError(
            f"{layer}: edge_index must be a Tensor [2, E] with flow='target_to_source', got {edge_index!r}"
        )
    return edge_index.flip(0)
