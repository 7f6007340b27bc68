"""Attention in plain PyTorch: under an explainer's mask of the edges, which weighs what the softmax has made, and where
a model is exported."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sparsegnn.graph import CSRGraph
from sparsegnn.nn.exported import EdgeList, summed

Graph = CSRGraph | EdgeList


def gat(graph: Graph, x: Tensor, a_src: Tensor, a_dst: Tensor, a_edge: Tensor | None = None, *, mask: Tensor | None,
        negative_slope: float, dropout: float, seed: Tensor | None, bias: Tensor | None) -> Tensor:  # fmt: skip
    """:func:`sparsegnn.ops.gat` with ``mask`` [E]."""
    if a_src.dim() == 3:
        a_src, a_dst = (x * a_src).sum(-1), (x * a_dst).sum(-1)
    score = a_src[graph.col] + a_dst[graph.rows()]
    score = score if a_edge is None else score + a_edge
    y = _weighed(graph, F.leaky_relu(score, negative_slope), x, mask, dropout)
    return y if bias is None else y + bias.view(y.shape[1:])


def gatv2(graph: Graph, x_src: Tensor, x_dst: Tensor, att: Tensor, edge: Tensor | None = None, *, mask: Tensor | None,
          negative_slope: float, dropout: float, seed: Tensor | None) -> Tensor:  # fmt: skip
    """:func:`sparsegnn.ops.gatv2` with ``mask`` [E]."""
    z = x_src[graph.col] + x_dst[graph.rows()]
    z = z if edge is None else z + edge
    return _weighed(graph, (F.leaky_relu(z, negative_slope) * att).sum(-1), x_src, mask, dropout)


def _weighed(graph: Graph, logit: Tensor, x: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    rows, m = graph.rows(), graph.num_rows
    lowest = logit.new_full((m, logit.size(1)), float("-inf"))
    top = lowest.scatter_reduce(0, rows[:, None].expand_as(logit), logit.detach(), "amax")
    alpha = (logit - top[rows]).exp()
    alpha = F.dropout(alpha / summed(alpha, rows, m)[rows], dropout, dropout > 0)
    alpha = alpha if mask is None else alpha * mask[:, None].to(alpha.dtype)
    return summed(alpha[:, :, None] * x[graph.col], rows, m).to(x.dtype)
