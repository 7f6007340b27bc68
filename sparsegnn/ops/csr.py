"""Compressed rows: from an edge list by a stable sort, their transpose, and row sums.

A graph is the matrix A[target, source]: ``crow[M+1]``, ``col[E]`` ascending within rows (duplicates stay).
The transpose is ``ccol[N+1], row[E], perm[E]``, where ``perm[t]`` is the slot in (crow, col) of entry t. With
``check=False`` a GPU is not asked whether a column is out of range, for which the host must wait.
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import register_autograd
from sparsegnn.ops._library import define, rows_of


def from_edges_reference(target, source, num_rows, num_cols, check=True):
    """The same in plain PyTorch: tested against, and run where nothing is compiled."""
    for index, size in ((target, num_rows), (source, num_cols)) if check else ():
        if index.numel() and (index.min() < 0 or index.max() >= size):
            raise RuntimeError(f"csr_from_edges: indices must be in [0, {num_rows}) and [0, {num_cols})")
    perm = torch.argsort(target.long() * max(num_cols, 1) + source, stable=True)
    count = torch.zeros(num_rows + 1, dtype=torch.int64, device=target.device)
    count.index_add_(0, target.long() + 1, torch.ones_like(target, dtype=torch.int64))
    return count.cumsum(0).int(), source[perm].int(), perm.int()


def from_edges_fake(target, source, num_rows, num_cols):
    return tuple(target.new_empty(n, dtype=torch.int32) for n in (num_rows + 1, target.size(0), target.size(0)))


from_edges = define(
    "csr_from_edges(Tensor target, Tensor source, SymInt num_rows, SymInt num_cols) -> (Tensor, Tensor, Tensor)",
    from_edges_reference,
    from_edges_fake,
)


def transpose_reference(crow, col, num_cols, check=True):
    return from_edges_reference(col, rows_of(crow, col.numel()).int(), num_cols, crow.numel() - 1, check)


def transpose_fake(crow, col, num_cols, check=True):
    return tuple(col.new_empty(n) for n in (num_cols + 1, col.size(0), col.size(0)))


transpose = define(
    "csr_transpose(Tensor crow, Tensor col, SymInt num_cols, bool check=True) -> (Tensor, Tensor, Tensor)",
    transpose_reference,
    transpose_fake,
)


def degrees_reference(crow, val):
    if val is None:
        return crow.diff().float()
    acc = val.double() if val.dtype == torch.float64 else val.float()
    return acc.new_zeros(crow.numel() - 1).index_add(0, rows_of(crow, val.numel()), acc)


def degrees_fake(crow, val):
    dtype = torch.float64 if val is not None and val.dtype == torch.float64 else torch.float32
    return crow.new_empty(crow.size(0) - 1, dtype=dtype)


degrees = define("csr_degrees(Tensor crow, Tensor? val) -> Tensor", degrees_reference, degrees_fake)


def setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])
    ctx.edges, ctx.dtype = (inputs[1].size(0), inputs[1].dtype) if inputs[1] is not None else (0, None)


def backward(ctx, dy):
    (crow,) = ctx.saved_tensors
    return None, dy[rows_of(crow, ctx.edges)].to(ctx.dtype)


register_autograd(degrees, backward, setup_context)


@register_flop_formula(torch.ops.sparsegnn.csr_degrees)
def _(crow, val=None, *args, out_shape=None, **kwargs) -> int:
    return val[0] if val else 0  # arguments are shapes; sorting has no floating-point operations
