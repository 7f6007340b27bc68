"""A x for a graph layer: the GCN norm or none, as scales or edge weights; A x W^T, as one op or the shorter way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparsegnn.graph import CSRGraph, extend
from sparsegnn.nn import exported
from sparsegnn.nn.exported import EdgeList
from sparsegnn.nn.inner import is_plain
from sparsegnn.nn.linear import SparseLinear
from sparsegnn.nn.loops import pad_rows
from sparsegnn.nn.maxk import CompressedRows, dense
from sparsegnn.nn.products import fresh, plus, product, refuse_sparse
from sparsegnn.nn.reductions import REDUCTIONS, commutes, is_one
from sparsegnn.ops._fused import fused
from sparsegnn.ops.spmm import apply as spmm
from sparsegnn.ops.spmm_gcn import aggregate_first
from sparsegnn.ops.spmm_linear import apply as spmm_linear


class Matrix(NamedTuple):
    """A, as the kernels take it: row_scale (val of the edges of graph + diag) col_scale."""

    graph: CSRGraph
    val: Tensor | None
    row_scale: Tensor | None
    col_scale: Tensor | None
    diag: Tensor | None
    rows: int  # of the result: the graph of a compiled region may be padded
    batch: int = 1  # rows of the features that every node has: see sparsegnn.nn.batches

    def times(self, factor: float, dtype: torch.dtype) -> Matrix:
        """Of sums and means, for features of ``dtype``, that are multiplied by ``factor``."""
        if self.row_scale is not None:
            return self._replace(row_scale=self.row_scale * factor)
        wide, graph = torch.promote_types(dtype, torch.float32), self.graph
        return self._replace(row_scale=graph.col.new_full((graph.num_rows,), factor, dtype=wide))


def matrix(graph: CSRGraph, dtype: torch.dtype, aggr: str | list[str] = "add", normalize: bool = True,
           improved: bool = False, add_self_loops: bool = True, explicit: bool = False) -> Matrix:  # fmt: skip
    """A for features of ``dtype``, with the symmetric GCN norm when ``normalize``.

    ``explicit``: all of it in ``val``, the self-loops too.
    """
    rows, dtype = graph.num_rows, torch.promote_types(dtype, torch.float32)
    explicit = explicit or isinstance(graph, EdgeList)
    if normalize and not explicit and is_one(aggr, "sum") and (graph.val is None or not graph.val.requires_grad):
        graph, scale, diag = graph.normed(improved, add_self_loops, dtype)
        return Matrix(graph, graph.val, scale, scale, diag, rows)
    if normalize:
        return Matrix(*normalized(graph, improved, add_self_loops, dtype), None, None, None, rows)
    val = torch.ones(graph.num_edges, dtype=dtype, device=graph.device) if explicit and graph.val is None else graph.val
    return Matrix(graph, val, None, None, None, rows)


def multiply(a: Matrix, x: Tensor | CompressedRows, aggr: str | list[str] = "add") -> Tensor:
    """A x, reduced over the edges of every row; of several reductions the results side by side."""
    if not isinstance(aggr, str):
        return torch.cat([multiply(a, x, each) for each in aggr], -1)
    if a.batch > 1:
        n, width = x.size(0) // a.batch, x.size(1)
        y = multiply(a._replace(batch=1), x.reshape(n, a.batch * width), aggr)
        return y.view(y.size(0) * a.batch, width)
    graph, val, row_scale, col_scale, diag, rows, _ = a
    reduce = REDUCTIONS[aggr]
    if isinstance(x, CompressedRows) and (reduce in ("max", "min") or graph.num_cols != x.size(0)):
        x = x.to_dense()
    x = x if graph.num_cols == x.size(0) else pad_rows(x, graph.num_cols)
    if isinstance(graph, EdgeList):
        return exported.multiply(a, x, reduce)[:rows]
    grad, val = needs_grad(x), None if val is None else val.to(x.dtype)
    transpose = graph.transpose() if grad else (None, None, None)
    args = graph.crow, graph.col, val, row_scale, col_scale, diag, *transpose, reduce
    if isinstance(x, CompressedRows):
        cspans = graph.spans(True)[1] if grad else None
        return torch.ops.sparsegnn.maxk_spmm(x.values, x.index, x.width, *args, x.group, cspans)
    y = spmm(x, *args, grad or (val is not None and needs_grad(val)), *graph.spans(grad))[0]
    return y if graph.num_rows == rows else y[:rows]


def propagate(a: Matrix, x: Tensor | CompressedRows, aggr: str | list[str], hops: int) -> Tensor | CompressedRows:
    """A^hops x."""
    for _ in range(hops):
        x = multiply(a, x, aggr)
    return x


def narrower(x: Tensor | CompressedRows, outputs: int) -> bool:
    """Whether A x is no wider than A (x W) for ``outputs`` columns of W^T: of compressed rows by what they keep."""
    return x.values.size(1) <= outputs if isinstance(x, CompressedRows) else aggregate_first(x, outputs)


def transform_hops(layer: str, a: Matrix, x: Tensor | CompressedRows, linear: torch.nn.Module, outputs: int,
                   aggr: str | list[str], hops: int = 1) -> Tensor:  # fmt: skip
    """``linear(A^hops x)``, at the narrower of the two widths where that is the same; nobody else's."""
    first = narrower(x, outputs) or not commutes(aggr)
    if hops and not first and (y := product(linear, dense(x))) is not None:
        y = propagate(a, y, aggr, hops)
        return y if linear.bias is None else plus(y, linear.bias)
    if hops:
        refuse_sparse(layer, x)
    return fresh(linear, dense(propagate(a, x, aggr, hops)))


def aggregate_transform(graph: CSRGraph, x: Tensor | CompressedRows, linear: torch.nn.Module, bias: Tensor | None,
                        act: str | None, dropout: float, seed: Tensor | None, *, aggr: str = "add",
                        normalize: bool = True, improved: bool = False,
                        add_self_loops: bool = True) -> Tensor | None:  # fmt: skip
    """``dropout(act(linear(A x) + bias))`` in one op, or None where that is not possible or not faster."""
    if not isinstance(x, Tensor) or not isinstance(linear, SparseLinear) or isinstance(graph, EdgeList):
        return None
    if not fused(x, graph.num_edges, linear.out_features, linear.values.numel()):
        return None
    constant = graph.val is None or not graph.val.requires_grad
    if not is_one(aggr, "sum") or not constant or not is_plain(linear) or not linear.fusible:
        return None
    dtype = torch.promote_types(x.dtype, torch.float32)
    graph, scale, diag = graph.normed(improved, add_self_loops, dtype) if normalize else (graph, None, None)
    transpose = graph.transpose() if needs_grad(x) else (None, None, None)
    val = None if graph.val is None else graph.val.to(x.dtype)
    weight = (linear.values, bias, linear.crow, linear.col, linear.ccol, linear.row, linear.perm)
    matrix = (graph.crow, graph.col, val, scale, scale, diag, *transpose)
    return spmm_linear(x, *matrix, *weight, act or "none", float(dropout), seed)


def normalized(graph: CSRGraph, improved: bool, add_self_loops: bool, dtype: torch.dtype) -> tuple[CSRGraph, Tensor]:
    """The graph with its self-loops, and the GCN norm as edge weights, differentiable in the graph's weights; in a
    compiled region it may be padded."""
    structure, val = graph, graph.val
    if add_self_loops:
        structure, slot = graph.layer_loops()
        val = extend(val, slot, 2.0 if improved else 1.0)
    val = torch.ones(structure.num_edges, dtype=dtype, device=graph.device) if val is None else val.to(dtype)
    if isinstance(structure, EdgeList):
        return structure, exported.norm(structure, val)
    deg = torch.ops.sparsegnn.csr_degrees(structure.crow, val)
    present = deg != 0
    scale = torch.where(present, torch.where(present, deg, 1).pow(-0.5), 0)[:, None]
    with torch.autocast(graph.device.type, enabled=False):
        norm = torch.ops.sparsegnn.sddmm(scale, scale, structure.crow, structure.col, *structure.transpose())
    return structure, val * norm


def needs_grad(x: Tensor | CompressedRows) -> bool:
    return x.requires_grad and torch.is_grad_enabled()
