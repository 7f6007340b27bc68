"""gcn: one graph convolution, of spmm and sparse_linear in the cheaper order, or as one op where that is faster."""

import torch
from torch import Tensor

from sparsegnn.ops._fused import fused
from sparsegnn.ops._library import check, check_epilogue, check_like, check_pattern_device


def gcn(graph, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, pattern: tuple[Tensor, ...] | None = None,
        act: str = "none", dropout: float = 0.0, seed: Tensor | None = None, improved: bool = False,
        add_self_loops: bool = True) -> Tensor:  # fmt: skip
    """``dropout(act(L x W.T + bias))`` with L the symmetric GCN norm of the graph (:meth:`CSRGraph.gcn_norm`).

    Args:
        graph: a square :class:`sparsegnn.CSRGraph` of N nodes, with constant weights or none.
        x: ``[N, K]``, float32, float64, bfloat16 or float16 (fp32 accumulation).
        weight: ``[M, K]``; with ``pattern``, the ``[nnz]`` values of a sparse one.
        bias: ``[M]`` or None.
        pattern: ``(crow, col, ccol, row, perm)`` of the sparse weight, as :func:`sparse_linear` takes it.
        act, dropout, seed: as for :func:`sparse_linear`.
        improved, add_self_loops: as for :meth:`CSRGraph.gcn_norm`.

    Returns:
        ``[N, M]``. Aggregation runs on the narrower side; where it comes first and the weight is sparse, the epilogue
        is part of the product, and on CUDA both may be one kernel (``spmm_linear``).
    """
    check("gcn", "x", x, (graph.num_rows, "K"), graph)
    sparse = pattern is not None
    outputs, inputs = (t.numel() - 1 for t in (pattern[0], pattern[2])) if sparse else weight.shape
    check("gcn", "x", x, (graph.num_rows, inputs))
    check("gcn", "weight", weight, (pattern[1].numel(),) if sparse else (outputs, inputs), x)
    check_pattern_device("gcn", x.device, *(pattern or ()))
    if bias is not None:
        check("gcn", "bias", bias, (outputs,), x)
    if not torch.is_autocast_enabled(x.device.type):
        check_like("gcn", "weight", weight, x)
    check_epilogue("gcn", act, dropout, seed, x.device)
    if graph.val is not None and graph.val.requires_grad:
        raise ValueError("gcn: graph must have constant weights, got some that require a gradient")
    if aggregate_first(x, outputs):
        if sparse and fused(x, graph.num_edges, outputs, weight.numel()):
            matrix, _ = _matrix(graph, x, improved, add_self_loops)
            return torch.ops.sparsegnn.spmm_linear(x, *matrix, weight, bias, *pattern, act, dropout, seed)
        x = _aggregate(graph, x, improved, add_self_loops)
        if sparse:
            return torch.ops.sparsegnn.sparse_linear(x, weight, bias, *pattern, act, dropout, seed)
        return _finish(torch.nn.functional.linear(x, weight, bias), None, act, dropout, seed)
    product = torch.ops.sparsegnn.sparse_linear(x, weight, None, *pattern) if sparse else x @ weight.t()
    return _finish(_aggregate(graph, product, improved, add_self_loops), bias, act, dropout, seed)


def _aggregate(graph, x, improved, add_self_loops):
    matrix, spans = _matrix(graph, x, improved, add_self_loops)
    return torch.ops.sparsegnn.spmm(x, *matrix, "sum", False, *spans)[0]


def _matrix(graph, x, improved, add_self_loops):
    """L and its transpose as spmm takes them, and its spans."""
    graph, scale, diag = graph.normed(improved, add_self_loops, torch.promote_types(x.dtype, torch.float32))
    grad = x.requires_grad and torch.is_grad_enabled()
    transpose = graph.transpose() if grad else (None, None, None)
    val = None if graph.val is None else graph.val.to(x.dtype)
    return (graph.crow, graph.col, val, scale, scale, diag, *transpose), graph.spans(grad)


def aggregate_first(x: Tensor, outputs: int) -> bool:
    """A (x W) = (A x) W: aggregate at the narrower of the two widths.

    The backward pass aggregates again, at the same width; except when aggregation comes first and x needs no gradient,
    as in a first layer. So it counts as two passes over the edges against one.
    """
    passes = 2 if x.requires_grad and torch.is_grad_enabled() else 1
    return x.layout == torch.strided and passes * x.size(1) <= 2 * outputs


def _finish(y, bias, act, dropout, seed):
    """The epilogue, in one pass over ``y``, which is nobody else's."""
    bias = None if bias is None else bias.to(y.dtype)  # in the dtype of autocast
    if act == "none" and dropout == 0:
        return y if bias is None else y.add_(bias)
    return torch.ops.sparsegnn.act_dropout(y, bias, act, dropout, seed)
