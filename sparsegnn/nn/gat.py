"""GATConv: x'_i = sum_j alpha_ij W x_j, alpha the softmax of learned scores (Veličković et al., arXiv 1710.10903)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn.nn import explained, messages
from sparsegnn.nn.attention import AttentionConv
from sparsegnn.nn.inner import Linear, is_plain
from sparsegnn.nn.loops import pad_rows
from sparsegnn.ops import gat


class GATConv(AttentionConv):
    """Drop-in for PyG's ``GATConv``: same arguments, same ``state_dict`` keys when dense, same results to rounding.

    Args:
        in_channels: width of ``x`` (-1: that of the first input), or of ``(source, target)`` features.
        out_channels, heads: width and number of the attention heads.
        concat: concatenate the heads; else average them.
        negative_slope: of the leaky ReLU of the scores.
        dropout: probability that an attention weight is dropped in training.
        add_self_loops: replace the self-loops of the graph by exactly one per node.
        edge_dim: width of ``edge_attr``; None: no edge features.
        fill_value: edge features of the self-loops: a number, a tensor ``[edge_dim]``, or how to reduce those of the
            edges into the node: ``"add"``, ``"mean"``, ``"min"``, ``"max"`` or ``"mul"``.
        bias, residual: learn an additive bias, and a linear skip connection ``res``.
        sparsity: fraction of the weights that do not exist in the transforms of ``x`` (``lin``, ``res``).
        pattern: where those weights may be, see :class:`SparseLinear`.
        options: ``flow`` and other arguments of :class:`Convolution`; ``aggr`` must be a sum.
    """

    def __init__(self, in_channels: int | tuple[int, int], out_channels: int, heads: int = 1, concat: bool = True,
                 negative_slope: float = 0.2, dropout: float = 0.0, add_self_loops: bool = True,
                 edge_dim: int | None = None, fill_value: float | Tensor | str = "mean", bias: bool = True,
                 residual: bool = False, *, sparsity: float = 0.0, pattern: str = "unstructured",
                 **options):  # fmt: skip
        super().__init__(in_channels, out_channels, heads, concat, negative_slope, dropout, add_self_loops, edge_dim,
                         fill_value, residual, sparsity, pattern, **options)  # fmt: skip
        in_channels, out_channels, heads = self.in_channels, self.out_channels, self.heads
        self.lin = self.lin_src = self.lin_dst = None
        if isinstance(in_channels, (tuple, list)):
            self.lin_src, self.lin_dst = (self._linear(width) for width in in_channels)
        else:
            self.lin = self._linear(in_channels)
        self.att_src = nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_channels))
        self.register_parameter(
            "att_edge", None if edge_dim is None else nn.Parameter(torch.empty(1, heads, out_channels))
        )
        self._complete(bias)

    def forward(self, x: Tensor | tuple[Tensor, Tensor | None], edge_index: object, edge_attr: Tensor | None = None,
                size: tuple[int, int] | None = None, return_attention_weights: bool | None = None):  # fmt: skip
        """Features of the target nodes after one step of attention.

        Args:
            x: ``[N, in_channels]``, or ``(x_source [N, .], x_target [M, .] or None)`` of a bipartite graph.
            edge_index: a :class:`CSRGraph` (which keeps what is derived from it), or anything that
                ``CSRGraph.from_any`` takes, which is converted at every call.
            edge_attr: ``[E, edge_dim]`` in the order of the edges that the graph was made from; differentiable.
            size: ``(N, M)``, where it does not follow from ``x`` or an adjacency matrix.
            return_attention_weights: True for PyG's own result, ``(out, (edge_index, weights))``, by PyG's own path.

        Returns:
            ``[M, heads * out_channels]``, or ``[M, out_channels]`` without ``concat``.
        """
        if return_attention_weights:
            return messages.of(self).forward(x, edge_index, edge_attr, size, return_attention_weights)
        x_src, x_dst = self._features(x)
        res = self.res(x_dst) if self.res is not None and x_dst is not None else None
        h_src = (self.lin or self.lin_src)(x_src)
        n, m = size or (x_src.size(0), None if x_dst is None else x_dst.size(0))
        given = self._given(edge_index, m, n)
        m, attend = given.num_rows, self._attend(gat, explained.gat, given)
        if self.lin is not None and x_dst is x_src and n == m:  # the op makes the scores
            a_src, a_dst = self.att_src, self.att_dst
        else:
            a_src, a_dst = h_src @ self._spread(self.att_src), None
            if x_dst is not None:
                a_dst = (self.lin or self.lin_dst)(x_dst) @ self._spread(self.att_dst)
            a_dst = a_src.new_zeros(m, self.heads) if a_dst is None else a_dst
        graph, attr = self._edges(edge_index, given, edge_attr)
        a_edge = None if attr is None else self._edge_scores(attr).to(a_src.dtype)
        h_src = h_src.view(-1, self.heads, self.out_channels)
        if graph.num_cols != n:
            h_src = pad_rows(h_src, n + 1)
            if a_src.dim() == 2:
                a_src, a_dst = pad_rows(a_src, n + 1), pad_rows(a_dst, m + 1)
        y = attend(graph, h_src, a_src, a_dst, a_edge,
                   bias=self.bias if self.concat else None, **self._options(x_src.device))  # fmt: skip
        y = y if graph.num_rows == m else y[:m]
        y = y.flatten(1) if self.concat else y.mean(1)
        y = y if res is None else y + res
        return y if self.concat or self.bias is None else y + self.bias.to(y.dtype)  # in the dtype of autocast

    def _spread(self, att: Tensor) -> Tensor:
        """[heads * out_channels, heads]: with it the scores are a product, and nothing of size N x H x C is stored."""
        return (att[0, :, :, None] * torch.eye(self.heads, dtype=att.dtype, device=att.device)[:, None]).flatten(0, 1)

    def _edge_scores(self, attr: Tensor) -> Tensor:
        """[E, heads]: lin_edge and att_edge folded into one map."""
        if type(self.lin_edge) is not Linear or not is_plain(self.lin_edge):
            return (self.lin_edge(attr).view(-1, self.heads, self.out_channels) * self.att_edge).sum(2)
        folded = self.lin_edge.weight.unflatten(0, (self.heads, -1)) * self.att_edge[0, :, :, None]
        return attr @ folded.sum(1).t()
