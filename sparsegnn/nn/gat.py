"""GATConv: x'_i = sum_j alpha_ij W x_j, alpha the softmax of learned scores (Veličković et al., arXiv 1710.10903)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn.graph import CSRGraph
from sparsegnn.nn.inner import check_features, glorot_, inner_linear
from sparsegnn.nn.loops import FILLS, fill_loops, with_loops
from sparsegnn.ops import gat


class GATConv(nn.Module):
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
    """

    def __init__(self, in_channels: int | tuple[int, int], out_channels: int, heads: int = 1, concat: bool = True,
                 negative_slope: float = 0.2, dropout: float = 0.0, add_self_loops: bool = True,
                 edge_dim: int | None = None, fill_value: float | Tensor | str = "mean", bias: bool = True,
                 residual: bool = False, *, sparsity: float = 0.0, pattern: str = "unstructured"):  # fmt: skip
        super().__init__()
        if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
            raise ValueError(f"GATConv: heads must be an int of at least 1, got {heads!r}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"GATConv: dropout must be in [0, 1], got {dropout}")
        if isinstance(fill_value, str) and fill_value not in FILLS:
            raise ValueError(f"GATConv: fill_value must be a number or one of {', '.join(FILLS)}, got {fill_value!r}")
        self.in_channels, self.out_channels, self.heads, self.concat = in_channels, out_channels, heads, concat
        self.negative_slope, self.dropout = negative_slope, dropout
        self.add_self_loops, self.edge_dim, self.fill_value, self.residual = (
            add_self_loops, edge_dim, fill_value, residual)  # fmt: skip
        wide, total = heads * out_channels, out_channels * (heads if concat else 1)
        shared = not isinstance(in_channels, (tuple, list))
        self.lin = self.lin_src = self.lin_dst = self.lin_edge = self.res = None
        if shared:
            self.lin = inner_linear("GATConv", in_channels, wide, sparsity, pattern)
        else:
            self.lin_src = inner_linear("GATConv", in_channels[0], wide, sparsity, pattern)
            self.lin_dst = inner_linear("GATConv", in_channels[1], wide, sparsity, pattern)
        self.att_src = nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_channels))
        self.register_parameter("att_edge", None)
        if edge_dim is not None:
            self.lin_edge = inner_linear("GATConv", edge_dim, wide, 0.0, "unstructured")
            self.att_edge = nn.Parameter(torch.empty(1, heads, out_channels))
        if residual:
            self.res = inner_linear("GATConv", in_channels if shared else in_channels[1], total, sparsity, pattern)
        self.register_parameter("bias", nn.Parameter(torch.empty(total)) if bias else None)
        self._reset_attention()

    def reset_parameters(self) -> None:
        """New weights, at the same places when sparse."""
        for linear in (self.lin, self.lin_src, self.lin_dst, self.lin_edge, self.res):
            if linear is not None:
                linear.reset_parameters()
                if not isinstance(linear, nn.LazyLinear):
                    glorot_(linear)
        self._reset_attention()

    def _reset_attention(self) -> None:
        for att in (self.att_src, self.att_dst, self.att_edge):
            if att is not None:
                bound = (6 / (self.heads + self.out_channels)) ** 0.5
                nn.init.uniform_(att, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor | tuple[Tensor, Tensor | None], edge_index: object, edge_attr: Tensor | None = None,
                size: tuple[int, int] | None = None, return_attention_weights: None = None) -> Tensor:  # fmt: skip
        """Features of the target nodes after one step of attention.

        Args:
            x: ``[N, in_channels]``, or ``(x_source [N, .], x_target [M, .] or None)`` of a bipartite graph.
            edge_index: a :class:`CSRGraph` (which keeps what is derived from it), or anything that
                ``CSRGraph.from_any`` takes, which is converted at every call.
            edge_attr: ``[E, edge_dim]`` in the order of the edges that the graph was made from; differentiable.
            size: ``(N, M)``, where it does not follow from ``x``.

        Returns:
            ``[M, heads * out_channels]``, or ``[M, out_channels]`` without ``concat``.
        """
        if return_attention_weights:
            raise ValueError("GATConv: return_attention_weights must be None, got "
                             f"{return_attention_weights}: the fused kernel never stores the weights")  # fmt: skip
        x_src, x_dst = x if isinstance(x, (tuple, list)) else (x, x)
        channels = self.in_channels if self.lin is None else (self.in_channels, self.in_channels)
        for value, width in ((x_src, channels[0]), (x_dst, channels[1])):
            if value is not None:
                check_features("GATConv", value, width)
        res = self.res(x_dst) if self.res is not None and x_dst is not None else None
        h_src = (self.lin or self.lin_src)(x_src)
        if self.lin is not None and x_dst is x_src:
            scores = h_src @ torch.cat([self._spread(self.att_src), self._spread(self.att_dst)], 1)
            a_src, a_dst = scores.split(self.heads, 1)
        else:
            a_src, a_dst = h_src @ self._spread(self.att_src), None
            if x_dst is not None:
                a_dst = (self.lin or self.lin_dst)(x_dst) @ self._spread(self.att_dst)
        n, m = size or (x_src.size(0), x_src.size(0) if x_dst is None else x_dst.size(0))
        a_dst = a_src.new_zeros(m, self.heads) if a_dst is None else a_dst
        graph, a_edge = self._graph(edge_index, edge_attr, n, m, a_src.dtype)
        seed, dropout = None, self.dropout if self.training else 0.0
        if dropout > 0:
            seed = torch.randint(0, 2**63 - 1, (1,), device=x_src.device)
        y = gat(graph, h_src.view(-1, self.heads, self.out_channels), a_src, a_dst, a_edge,
                negative_slope=self.negative_slope, dropout=dropout, seed=seed)  # fmt: skip
        y = y.flatten(1) if self.concat else y.mean(1)
        y = y if res is None else y + res
        return y if self.bias is None else y + self.bias.to(y.dtype)  # in the dtype of autocast

    def _spread(self, att: Tensor) -> Tensor:
        """[heads * out_channels, heads]: with it the scores are a product, and nothing of size N x H x C is stored."""
        return (att[0, :, :, None] * torch.eye(self.heads, dtype=att.dtype, device=att.device)[:, None]).flatten(0, 1)

    def _graph(self, edge_index: object, attr: Tensor | None, n: int, m: int, dtype: torch.dtype):
        """The graph, with its self-loops, and the scores of its edge features in slot order."""
        graph = CSRGraph.from_any(edge_index, (m, n))
        if self.lin_edge is None:
            attr = None
        elif attr is None:
            attr = graph.val
        elif attr.size(0) != graph.num_edges:
            raise ValueError(f"GATConv: edge_attr must have {graph.num_edges} rows, got {list(attr.shape)}")
        else:
            attr = attr if graph.perm is None else attr[graph.perm]
        attr = attr if attr is None or attr.dim() == 2 else attr.view(-1, 1)
        if self.add_self_loops:
            base, (graph, slot) = graph, with_loops(graph)
            attr = None if attr is None else fill_loops(base, graph, slot, attr, self.fill_value)
        if attr is None:
            return graph, None
        folded = self.lin_edge.weight.unflatten(0, (self.heads, -1)) * self.att_edge[0, :, :, None]
        return graph, (attr @ folded.sum(1).t()).to(dtype)
