"""GATv2Conv: attention whose scores depend on both ends at once (Brody, Alon, Yahav, arXiv 2105.14491)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn.nn import explained, messages
from sparsegnn.nn.attention import AttentionConv
from sparsegnn.nn.loops import pad_rows
from sparsegnn.ops import gatv2


class GATv2Conv(AttentionConv):
    """Drop-in for PyG's ``GATv2Conv``: same arguments, same ``state_dict`` keys when dense, same results to rounding.

    Args:
        in_channels: width of ``x`` (-1: that of the first input), or of ``(source, target)`` features.
        out_channels, heads: width and number of the attention heads.
        concat: concatenate the heads; else average them.
        negative_slope: of the leaky ReLU inside the scores.
        dropout: probability that an attention weight is dropped in training.
        add_self_loops: replace the self-loops of the graph by exactly one per node.
        edge_dim: width of ``edge_attr``; None: no edge features. With it ``lin_edge`` makes ``heads * out_channels``
            numbers per edge.
        fill_value: edge features of the self-loops: a number, a tensor ``[edge_dim]``, or how to reduce those of the
            edges into the node: ``"add"``, ``"mean"``, ``"min"``, ``"max"`` or ``"mul"``.
        bias, residual: learn additive biases (of ``lin_l`` and ``lin_r`` too), and a linear skip connection ``res``.
        share_weights: one transform, ``lin_l``, for sources and targets.
        sparsity: fraction of the weights that do not exist in the transforms of ``x`` (``lin_l``, ``lin_r``, ``res``).
        pattern: where those weights may be, see :class:`SparseLinear`.
        options: ``flow`` and other arguments of :class:`Convolution`; ``aggr`` must be a sum.
    """

    def __init__(self, in_channels: int | tuple[int, int], out_channels: int, heads: int = 1, concat: bool = True,
                 negative_slope: float = 0.2, dropout: float = 0.0, add_self_loops: bool = True,
                 edge_dim: int | None = None, fill_value: float | Tensor | str = "mean", bias: bool = True,
                 share_weights: bool = False, residual: bool = False, *, sparsity: float = 0.0,
                 pattern: str = "unstructured", **options):  # fmt: skip
        super().__init__(in_channels, out_channels, heads, concat, negative_slope, dropout, add_self_loops, edge_dim,
                         fill_value, residual, sparsity, pattern, **options)  # fmt: skip
        self.share_weights = share_weights
        self.lin_l = self._linear(self._channels()[0], bias)
        self.lin_r = self.lin_l if share_weights else self._linear(self._channels()[1], bias)
        self.att = nn.Parameter(torch.empty(1, self.heads, self.out_channels))
        self._complete(bias)

    def forward(self, x: Tensor | tuple[Tensor, Tensor], edge_index: object, edge_attr: Tensor | None = None,
                return_attention_weights: bool | None = None):  # fmt: skip
        """Features of the target nodes after one step of attention.

        Args:
            x: ``[N, in_channels]``, or ``(x_source [N, .], x_target [M, .])`` of a bipartite graph.
            edge_index: a :class:`CSRGraph` (which keeps what is derived from it), or anything that
                ``CSRGraph.from_any`` takes, which is converted at every call.
            edge_attr: ``[E, edge_dim]`` in the order of the edges that the graph was made from; differentiable.
            return_attention_weights: True for PyG's own result, ``(out, (edge_index, weights))``, by PyG's own path.

        Returns:
            ``[M, heads * out_channels]``, or ``[M, out_channels]`` without ``concat``.
        """
        if return_attention_weights:
            return messages.of(self).forward(x, edge_index, edge_attr, return_attention_weights)
        if edge_attr is not None and self.lin_edge is None:
            raise ValueError("GATv2Conv: edge_attr must be None without edge_dim, got features")
        x_src, x_dst = self._features(x)
        if x_dst is None:
            raise ValueError("GATv2Conv: x must hold the features of the targets too, got None")
        shape = (-1, self.heads, self.out_channels)
        res = None if self.res is None else self.res(x_dst)
        h_src = self.lin_l(x_src).view(shape)
        h_dst = h_src if self.share_weights and x_dst is x_src else self.lin_r(x_dst).view(shape)
        given = self._given(edge_index, h_dst.size(0), h_src.size(0))
        attend = self._attend(gatv2, explained.gatv2, given)
        graph, attr = self._edges(edge_index, given, edge_attr)
        edge = None if attr is None else self.lin_edge(attr).view(shape).to(h_src.dtype)
        m, h_dst = h_dst.size(0), pad_rows(h_dst, graph.num_rows)
        h_src = h_dst if h_src is h_dst else pad_rows(h_src, graph.num_cols)
        y = attend(graph, h_src, h_dst, self.att[0], edge, **self._options(h_src.device))
        y = y if graph.num_rows == m else y[:m]
        y = y.flatten(1) if self.concat else y.mean(1)
        y = y if res is None else y + res
        return y if self.bias is None else y + self.bias.to(y.dtype)  # in the dtype of autocast
