"""out[e] = dot(a[row(e)], b[col[e]]): one value per edge, or per nonzero weight."""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsegnn.ops._autograd import inverted, recorded, register_autograd
from sparsegnn.ops._library import check, check_like, define, rows_of


def reference(a, b, crow, col, ccol, row, perm):
    """The same in plain PyTorch: what the tests compare with, and what runs when nothing is compiled."""
    acc = torch.promote_types(a.dtype, torch.float32)
    return (a.to(acc)[rows_of(crow, col.numel())] * b.to(acc)[col.long()]).sum(1).to(a.dtype)


def fake(a, b, crow, col, ccol, row, perm):
    return a.new_empty(col.size(0))


op = define(
    "sddmm(Tensor a, Tensor b, Tensor crow, Tensor col, Tensor? ccol, Tensor? row, Tensor? perm) -> Tensor",
    reference,
    fake,
    cast=("a", "b"),
)


def setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def backward(ctx, dout):
    a, b, crow, col, ccol, row, perm = ctx.saved_tensors
    spmm, da, db = torch.ops.sparsegnn.spmm, None, None
    if ctx.needs_input_grad[0]:
        da = spmm(b, crow, col, dout, None, None, None, ccol, row, perm, "sum")[0]
    if ctx.needs_input_grad[1]:
        back = inverted(perm) if recorded() else None
        db = spmm(a, ccol, row, dout.index_select(0, perm), None, None, None, crow, col, back, "sum")[0]
    return da, db, None, None, None, None, None


register_autograd(op, backward, setup_context)


@register_flop_formula(torch.ops.sparsegnn.sddmm)
def _(a, b, crow, col, *args, out_shape=None, **kwargs) -> int:
    return 2 * col[0] * a[1]  # arguments are shapes


def sddmm(graph, a: Tensor, b: Tensor) -> Tensor:
    """Dot products of the two ends of every edge.

    Args:
        graph: a :class:`sparsegnn.CSRGraph` of shape ``(M, N)``.
        a: ``[M, K]`` features of the targets, float32, float64, bfloat16 or float16 (fp32 accumulation).
        b: ``[N, K]`` features of the sources, the dtype of ``a``.

    Returns:
        ``[E]`` in the order of the graph's ``col``; differentiable in ``a`` and ``b``.
    """
    check("sddmm", "a", a, (graph.num_rows, "K"), graph)
    check("sddmm", "b", b, (graph.num_cols, a.size(1)))
    check_like("sddmm", "b", b, a, "a")
    transpose = graph.transpose() if b.requires_grad else (None, None, None)
    return op(a, b, graph.crow, graph.col, *transpose)
