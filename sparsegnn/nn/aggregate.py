"""A x for a graph layer: the GCN norm or none, as scales or edge weights; A x W^T as one op."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsegnn.graph import CSRGraph, extend
from sparsegnn.nn.inner import is_plain
from sparsegnn.nn.linear import SparseLinear
from sparsegnn.nn.loops import pad_rows
from sparsegnn.nn.maxk import CompressedRows, dense
from sparsegnn.ops._fused import fused
from sparsegnn.ops.spmm import apply as spmm
from sparsegnn.ops.spmm_linear import apply as spmm_linear

REDUCTIONS = {"add": "sum", "sum": "sum", "mean": "mean", "max": "max", "min": "min"}


def aggregate(graph: CSRGraph, x: Tensor | CompressedRows, aggr: str = "add", normalize: bool = True,
              improved: bool = False, add_self_loops: bool = True, root: Tensor | None = None) -> Tensor:  # fmt: skip
    """A x, reduced over the edges of every row; A has the symmetric GCN norm when ``normalize``.

    Without it, a sum may take ``root`` times the row itself along, a constant of one element.
    """
    scale, diag = None, None if root is None else root.expand(graph.num_rows)
    reduce, val, rows = REDUCTIONS[aggr], graph.val, graph.num_rows
    if isinstance(x, CompressedRows) and reduce in ("max", "min"):
        x = x.to_dense()
    dtype = torch.promote_types(x.dtype, torch.float32)
    if normalize and reduce == "sum" and (val is None or not val.requires_grad):
        graph, scale, diag = graph.normed(improved, add_self_loops, dtype)
        val = graph.val
    elif normalize:
        graph, val = normalized(graph, improved, add_self_loops, dtype)
        x = x if graph.num_cols == x.size(0) else pad_rows(dense(x), graph.num_cols)
    transpose = graph.transpose() if needs_grad(x) else (None, None, None)
    val = None if val is None else val.to(x.dtype)
    if isinstance(x, CompressedRows):
        matrix = graph.crow, graph.col, val, scale, scale, diag
        return torch.ops.sparsegnn.maxk_spmm(x.values, x.index, x.width, *matrix, *transpose, reduce, x.group)
    need_arg = needs_grad(x) or (val is not None and needs_grad(val))
    y = spmm(x, graph.crow, graph.col, val, scale, scale, diag, *transpose, reduce, need_arg)[0]
    return y if graph.num_rows == rows else y[:rows]


def aggregate_transform(graph: CSRGraph, x: Tensor | CompressedRows, linear: torch.nn.Module, bias: Tensor | None,
                        act: str | None, dropout: float, seed: Tensor | None, *, aggr: str = "add",
                        normalize: bool = True, improved: bool = False,
                        add_self_loops: bool = True) -> Tensor | None:  # fmt: skip
    """``dropout(act(linear(A x) + bias))`` in one op, or None where that is not possible or not faster."""
    if not isinstance(x, Tensor) or not isinstance(linear, SparseLinear):
        return None
    if not fused(x, graph.num_edges, linear.out_features, linear.values.numel()):
        return None
    constant = graph.val is None or not graph.val.requires_grad
    if REDUCTIONS[aggr] != "sum" or not constant or not is_plain(linear) or not linear.fusible:
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
    deg = torch.ops.sparsegnn.csr_degrees(structure.crow, val)
    present = deg != 0
    scale = torch.where(present, torch.where(present, deg, 1).pow(-0.5), 0)[:, None]
    with torch.autocast(graph.device.type, enabled=False):
        norm = torch.ops.sparsegnn.sddmm(scale, scale, structure.crow, structure.col, *structure.transpose())
    return structure, val * norm


def needs_grad(x: Tensor | CompressedRows) -> bool:
    return x.requires_grad and torch.is_grad_enabled()
