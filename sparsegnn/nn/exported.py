"""What ``torch.onnx`` records of a layer: plain gathers and scatters over an edge list, and dense products.

ONNX has neither compressed rows nor these kernels. While a model is exported, its graphs are edge lists, in the order
in which they come, and sparse weights are matrices with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.compiler import is_compiling

from sparsegnn.graph import CSRGraph
from sparsegnn.graph_formats import check_weight, flat_weight


def exporting() -> bool:
    return (is_compiling() or torch._C._is_tracing()) and torch.onnx.is_in_onnx_export()


@dataclass(eq=False)
class EdgeList:
    """What layers ask of a :class:`CSRGraph`, of edges in any order."""

    target: Tensor
    col: Tensor
    val: Tensor | None
    num_rows: int
    num_cols: int
    perm: Tensor | None = None  # as of a CSRGraph: position of every edge in the list that weights are given for

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_rows, self.num_cols

    @property
    def num_edges(self) -> int:
        return self.col.size(0)

    given = num_edges

    @property
    def device(self) -> torch.device:
        return self.col.device

    def rows(self) -> Tensor:
        return self.target

    def weighted(self, edge_weight: Tensor | None) -> EdgeList:
        edge_weight = flat_weight(edge_weight)
        check_weight("edge_weight", edge_weight, self.col)
        ordered = edge_weight is None or self.perm is None
        return replace(self, val=edge_weight if ordered else edge_weight.index_select(0, self.perm))

    def layer_loops(self) -> tuple[EdgeList, Tensor]:
        """As :meth:`CSRGraph.padded_loops`: with a row and a column for the edges that are none."""
        (m, n), edges, device = self.shape, self.num_edges, self.device
        slot, both = torch.arange(edges, device=device), torch.arange(min(m, n), device=device)
        loop = self.target == self.col
        last = torch.full((m,), -1, device=device).scatter_reduce(0, self.target, torch.where(loop, slot, -1), "amax")
        last = last[: min(m, n)]
        target = torch.cat([torch.where(loop, m, self.target), both])
        source = torch.cat([torch.where(loop, n, self.col), both])
        origin = torch.cat([torch.where(loop, edges, slot), torch.where(last < 0, edges, last)])
        return EdgeList(target, source, None, m + 1, n + 1), origin


def graph_of(obj, size: tuple[int, int] | None = None):
    """``obj`` as :meth:`CSRGraph.from_any` makes a graph of it, or as an edge list where a model is exported."""
    if not exporting():
        return CSRGraph.from_any(obj, size)
    if isinstance(obj, EdgeList):
        return obj
    if isinstance(obj, Tensor) and obj.layout == torch.strided:
        if obj.dim() != 2 or obj.size(0) != 2 or obj.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"edge_index must be an integer Tensor [2, E], got {obj.dtype} {list(obj.shape)}")
        return EdgeList(obj[1].long(), obj[0].long(), None, *size)
    graph = CSRGraph.from_any(obj, size)
    target = rows_of(graph.crow, graph.num_edges)
    return EdgeList(
        target, graph.col.long(), graph.val, *graph.shape, None if graph.perm is None else graph.perm.long()
    )


def rows_of(crow: Tensor, edges: int) -> Tensor:
    """int64 row of every slot of compressed rows."""
    starts = crow[1:-1].long()
    counts = torch.zeros(edges + 1, dtype=torch.int64, device=crow.device)
    return counts.scatter_add(0, starts, torch.ones_like(starts)).cumsum(0)[:edges]


def summed(value: Tensor, target: Tensor, rows: int) -> Tensor:
    """Rows of ``value`` [E, ...], or its numbers, added up by their ``target``."""
    index = target.view(-1, *[1] * (value.dim() - 1)).expand_as(value)
    return value.new_zeros(rows, *value.shape[1:]).scatter_add(0, index, value)


def norm(graph: EdgeList, val: Tensor) -> Tensor:
    """The symmetric GCN norm of weights."""
    deg = summed(val, graph.target, graph.num_rows)
    scale = torch.where(deg != 0, torch.where(deg != 0, deg, 1).pow(-0.5), 0)
    return val * scale[graph.target] * scale[graph.col]


def multiply(a, x: Tensor, reduce: str) -> Tensor:
    """``sparsegnn.nn.aggregate.multiply`` of a matrix whose graph is an :class:`EdgeList`."""
    graph = a.graph
    scaled = x if a.col_scale is None else x * a.col_scale.to(x.dtype)[:, None]
    message = scaled[graph.col] if a.val is None else scaled[graph.col] * a.val.to(x.dtype)[:, None]
    if reduce in ("max", "min"):
        index, worst = graph.target[:, None].expand_as(message), float("-inf" if reduce == "max" else "inf")
        y = x.new_full((graph.num_rows, x.size(1)), worst).scatter_reduce(0, index, message, f"a{reduce}")
        return torch.where(y == worst, 0, y)
    y = summed(message, graph.target, graph.num_rows)
    y = y if a.diag is None else y + a.diag.to(x.dtype)[:, None] * scaled
    if reduce == "mean":
        y = y / summed(torch.ones_like(graph.target), graph.target, graph.num_rows).clamp(min=1)[:, None].to(x.dtype)
    return y if a.row_scale is None else y * a.row_scale.to(x.dtype)[:, None]


def dense_weight(values: Tensor, crow: Tensor, col: Tensor, cols: int, height: int, width: int) -> Tensor:
    """:func:`sparsegnn.ops.dense_weight`."""
    rows, across = crow.size(0) - 1, cols // width
    slot = rows_of(crow, col.size(0)) * across + col
    blocks = values.new_zeros(rows * across, height, width).index_put((slot,), values.view(-1, height, width))
    return blocks.view(rows, across, height, width).transpose(1, 2).reshape(rows * height, cols)
