"""APPNP: x_k = (1 - alpha) D^-1/2 (A + I) D^-1/2 x_k-1 + alpha x, K times (Gasteiger et al.,
https://arxiv.org/abs/1810.05997)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsegnn.nn.aggregate import Matrix, needs_grad
from sparsegnn.nn.batches import Lead, batched, lead_of, rows_of
from sparsegnn.nn.checks import check_activation, check_features, check_hops
from sparsegnn.nn.exported import EdgeList
from sparsegnn.nn.maxk import dense
from sparsegnn.nn.products import plus, refuse_sparse
from sparsegnn.nn.propagation import Teleport
from sparsegnn.nn.reductions import is_one
from sparsegnn.ops._autograd import inverted, recorded, transformed


class APPNP(Teleport):
    """Drop-in for PyG's ``APPNP``: same arguments, same results to rounding.

    Args:
        K: number of steps.
        alpha: part of ``x`` in each of them.
        dropout: probability that, in training, an edge does not count in a step, nor, as in PyG, in those after it.
        cached: convert and normalise the graph of the first call, and use it for all later ones.
        add_self_loops: of every node to itself; where ``normalize``.
        normalize: the symmetric GCN norm.
        aggr, flow, options: see :class:`Convolution`; one reduction.
    """

    def __init__(self, K: int, alpha: float, dropout: float = 0.0, cached: bool = False, add_self_loops: bool = True,
                 normalize: bool = True, *, aggr="add", flow: str = "source_to_target", **options):  # fmt: skip
        super().__init__(alpha, aggr, flow, options, normalize, add_self_loops, cached)
        check_activation("APPNP", None, dropout)
        self.K, self.dropout = check_hops("APPNP", K), dropout

    def reset_parameters(self) -> None:
        """Forget what is cached."""
        self._forget()

    def forward(self, x: Tensor, edge_index: object, edge_weight: Tensor | None = None) -> Tensor:
        """Propagated features of the nodes.

        Args:
            x: ``[..., N, F]``, a tensor or :class:`CompressedRows`.
            edge_index: a :class:`CSRGraph`, or anything that ``CSRGraph.from_any`` takes.
            edge_weight: ``[E]`` or ``[E, 1]`` in the order of the edges that the graph was made from; differentiable.

        Returns:
            ``[..., N, F]``; ``x`` itself without steps.
        """
        check_features("APPNP", x, -1, compressed=True, batched=True)
        refuse_sparse("APPNP", x)
        if lead := lead_of("APPNP", x):
            return batched(self._forward(rows_of(x, lead), edge_index, edge_weight, lead), lead)
        return self._forward(x, edge_index, edge_weight)

    def _forward(self, x, edge_index: object, edge_weight: Tensor | None, lead: Lead = ()) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        graph, h = self._graph(x, edge_index, edge_weight, lead), dense(x)
        a = self._teleporting(graph, x, lead, explicit=dropout > 0)
        if dropout == 0 and x is h and self.K > 1 and is_constant(a, x, self.aggr):
            return steps(a, x, self.alpha, self.K)
        for _ in range(self.K):
            if dropout > 0:
                a = a._replace(val=F.dropout(a.val, dropout))
            x = plus(self._multiply(a, x), h, self.alpha)
        return dense(x)

    def extra_repr(self) -> str:
        return f"K={self.K}, alpha={self.alpha}"


def is_constant(a: Matrix, x: Tensor, aggr: str) -> bool:
    """Whether the gradient of ``x`` is all that is wanted of sums."""
    if not is_one(aggr, "sum") or not needs_grad(x) or torch.compiler.is_compiling() or transformed():
        return False
    if a.batch > 1 or isinstance(a.graph, EdgeList):
        return False
    return a.val is None or not a.val.requires_grad


def steps(a: Matrix, x: Tensor, alpha: float, K: int) -> Tensor:
    """``K`` steps a x + alpha h from x = h on, of sums with a constant ``a``, as one node of autograd."""
    val = None if a.val is None else a.val.to(x.dtype)
    ccol, row, perm = a.graph.transpose()
    spans, cspans = a.graph.spans(True)
    there = a.graph.crow, a.graph.col, val, a.row_scale, a.col_scale, a.diag, spans
    back = ccol, row, None if val is None else val.index_select(0, perm), a.col_scale, a.row_scale, a.diag, cspans
    return _Steps.apply(x, alpha, K, perm, *there, *back)


class _Steps(torch.autograd.Function):
    """All steps with a constant A. Their gradient is that of x alone, by the same steps with the transpose of A: where
    each step is a node, what flows to x is a tensor for every one."""

    @staticmethod
    def forward(ctx, h, alpha, steps, perm, *matrices):
        ctx.alpha, ctx.steps = alpha, steps
        ctx.save_for_backward(perm, *matrices)
        return _steps(h, alpha, steps, matrices[:7])

    @staticmethod
    def backward(ctx, dy):
        perm, *matrices = ctx.saved_tensors
        back = (*matrices[:2], inverted(perm)) if recorded() else None
        return _steps(dy, ctx.alpha, ctx.steps, matrices[7:], back), None, None, None, *[None] * 14


def _steps(h: Tensor, alpha: float, steps: int, a: tuple, back: tuple | None = None) -> Tensor:
    """With ``back``, the edges of the transpose, differentiable."""
    x, (*matrix, spans) = h, a
    for _ in range(steps):
        y = torch.ops.sparsegnn.spmm(x, *matrix, *(back or (None, None, None)), "sum", False, spans)[0]
        x = y.add_(h, alpha=alpha) if back is None else y.add(h, alpha=alpha)
    return x
