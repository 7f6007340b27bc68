"""What the attention layers share: their arguments, self-loops with edge features, and what follows the attention."""

from __future__ import annotations

from functools import partial
from numbers import Integral

import torch
from torch import Tensor, nn

from sparsegnn.graph import CSRGraph
from sparsegnn.nn.checks import check_features, check_size
from sparsegnn.nn.convolution import Convolution
from sparsegnn.nn.exported import EdgeList, graph_of
from sparsegnn.nn.inner import glorot_, inner_linear
from sparsegnn.nn.inputs import turned, widths_of
from sparsegnn.nn.loops import FILLS, fill_loops, with_loops
from sparsegnn.nn.reductions import is_one


class AttentionConv(Convolution):
    """Base of :class:`GATConv` and :class:`GATv2Conv`."""

    node_dim = 0

    def __init__(self, in_channels, out_channels, heads, concat, negative_slope, dropout, add_self_loops, edge_dim,
                 fill_value, residual, sparsity, pattern, aggr="add", flow="source_to_target", **options):  # fmt: skip
        super().__init__(aggr, flow, options)
        op = type(self).__name__
        if not is_one(self.aggr, "sum"):
            raise ValueError(f"{op}: aggr must be 'add' or 'sum', which attention weighs, got {self.aggr!r}: for "
                             f"others use torch_geometric.nn.{op}")  # fmt: skip
        if isinstance(heads, bool) or not isinstance(heads, Integral) or heads < 1:
            raise ValueError(f"{op}: heads must be an int of at least 1, got {heads!r}")
        widths = widths_of(op, in_channels)
        in_channels = widths if isinstance(in_channels, (tuple, list)) else widths[0]
        out_channels, heads = check_size(op, "out_channels", out_channels, 1), int(heads)
        edge_dim = None if edge_dim is None else check_size(op, "edge_dim", edge_dim, -1)
        if not 0 <= dropout <= 1:
            raise ValueError(f"{op}: dropout must be in [0, 1], got {dropout}")
        if isinstance(fill_value, str) and fill_value not in FILLS:
            raise ValueError(f"{op}: fill_value must be a number or one of {', '.join(FILLS)}, got {fill_value!r}")
        self.in_channels, self.out_channels, self.heads, self.concat = in_channels, out_channels, heads, concat
        self.negative_slope, self.dropout = negative_slope, dropout
        self.add_self_loops, self.edge_dim, self.fill_value, self.residual = (
            add_self_loops, edge_dim, fill_value, residual)  # fmt: skip
        self._sparse = dict(sparsity=sparsity, pattern=pattern)
        self.lin_edge = self.res = None

    def _complete(self, bias: bool) -> None:
        """What follows the layer's own parameters, in PyG's order."""
        op, total = type(self).__name__, self.out_channels * (self.heads if self.concat else 1)
        if self.edge_dim is not None:
            self.lin_edge = inner_linear(op, self.edge_dim, self.heads * self.out_channels, 0.0, "unstructured")
        if self.residual:
            self.res = inner_linear(op, self._channels()[1], total, **self._sparse)
        self.register_parameter("bias", nn.Parameter(torch.empty(total)) if bias else None)
        self._reset_attention()

    def _channels(self) -> tuple[int, int]:
        """Widths of the source and of the target features."""
        many = isinstance(self.in_channels, (tuple, list))
        return tuple(self.in_channels) if many else (self.in_channels, self.in_channels)

    def _linear(self, in_channels: int, bias: bool = False) -> nn.Module:
        op, wide = type(self).__name__, self.heads * self.out_channels
        return inner_linear(op, in_channels, wide, bias=bias, **self._sparse)

    def reset_parameters(self) -> None:
        """New weights, at the same places when sparse."""
        for linear in self.children():
            linear.reset_parameters()
            if not isinstance(linear, nn.LazyLinear):
                glorot_(linear)
        self._reset_attention()

    def _reset_attention(self) -> None:
        for name, att in self.named_parameters(recurse=False):
            if name.startswith("att"):
                bound = (6 / (self.heads + self.out_channels)) ** 0.5
                nn.init.uniform_(att, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _features(self, x) -> tuple[Tensor, Tensor | None]:
        """Checked features of sources and targets."""
        pair = x if isinstance(x, (tuple, list)) else (x, x)
        for value, width in zip(pair, self._channels(), strict=True):
            if value is not None:
                check_features(type(self).__name__, value, width)
        return pair

    def _given(self, edge_index: object, m: int | None, n: int) -> CSRGraph:
        """The graph of a call, with ``m`` targets and ``n`` sources; None: as many targets as a matrix says, or as
        there are sources."""
        op = type(self).__name__
        edge_index = turned(op, edge_index, m in (None, n)) if self.flow == "target_to_source" else edge_index
        edges = isinstance(edge_index, Tensor) and edge_index.layout == torch.strided
        if m is not None or edges:
            return graph_of(edge_index, (n if m is None else m, n))
        graph = graph_of(edge_index)
        if graph.num_cols != n:
            raise ValueError(f"{op}: x must have one row per source of the graph {graph.shape}, got {n}")
        return graph

    def _attend(self, fused, plain, given: CSRGraph):
        """The attention of a call: ``plain`` PyTorch where a mask of the edges acts, or a model is exported."""
        if not self.explain and not isinstance(given, EdgeList):
            return fused
        return partial(plain, mask=self._mask(given, self.add_self_loops) if self.explain else None)

    def _edges(self, edge_index: object, graph: CSRGraph, attr: Tensor | None) -> tuple[CSRGraph, Tensor | None]:
        """The graph, with its self-loops, and its edge features [E, edge_dim] in slot order."""
        if self.lin_edge is None:
            attr = None
        elif attr is None:
            self._no_features(edge_index, graph)
        elif attr.size(0) != graph.given:
            op, got = type(self).__name__, list(attr.shape)
            raise ValueError(f"{op}: edge_attr must have {graph.given} rows, got {got}")
        else:
            attr = attr if graph.perm is None else attr[graph.perm]
        attr = attr if attr is None or attr.dim() == 2 else attr.view(-1, 1)
        if self.add_self_loops:
            base, (graph, slot) = graph, with_loops(graph)
            attr = None if attr is None else fill_loops(base, graph, slot, attr, self.fill_value)
        return graph, attr

    def _no_features(self, edge_index: object, graph: CSRGraph) -> None:
        """As in PyG, the values of an adjacency are weights, which attention does not use; where PyG takes no such
        adjacency, someone may mean them as edge features."""
        known = isinstance(edge_index, Tensor) or (hasattr(edge_index, "sparse_sizes") and not self.add_self_loops)
        if graph.val is not None and not known:
            raise ValueError(f"{type(self).__name__}: edge_attr must be given with edge_dim where the graph has "
                             "weights, which are no features, got None (graph.weighted(None) has none)")  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}"

    def _options(self, device: torch.device) -> dict:
        """What the op takes besides tensors; a new seed at every call that drops."""
        dropout = self.dropout if self.training else 0.0
        seed = torch.randint(0, 2**63 - 1, (1,), device=device) if dropout > 0 else None
        return dict(negative_slope=self.negative_slope, dropout=dropout, seed=seed)
