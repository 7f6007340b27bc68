"""GATConv and GATv2Conv of PyG on the fused kernels: the forward of this library's layer, on PyG's parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsegnn.nn import GATConv, GATv2Conv
from sparsegnn.nn.inner import is_plain
from sparsegnn.pyg.cache import graph_of, is_edge_list, is_sparse_matrix, matrix_of
from sparsegnn.pyg.products import pyg, reduction_of
from sparsegnn.pyg.propagate import NotOurs, check_conv, is_ours


class _Made:
    def _given(self, graph, *sizes):
        return graph


class _GAT(_Made, GATConv):
    def _edge_scores(self, attr: Tensor) -> Tensor:
        if type(self.lin_edge) is not pyg().Linear or not is_plain(self.lin_edge):
            return super()._edge_scores(attr)
        folded = self.lin_edge.weight.unflatten(0, (self.heads, -1)) * self.att_edge[0, :, :, None]
        return attr @ folded.sum(1).t()


class _GATv2(_Made, GATv2Conv):
    pass


def gat(conv, x, edge_index, edge_attr=None, size=None, return_attention_weights=None):
    return _attend(conv, _GAT, x, edge_index, edge_attr, size, return_attention_weights)


def gatv2(conv, x, edge_index, edge_attr=None, return_attention_weights=None):
    return _attend(conv, _GATv2, x, edge_index, edge_attr, None, return_attention_weights)


def _attend(conv, ours, x, edge_index, edge_attr, size, weights) -> Tensor:
    check_conv(conv)
    if reduction_of(conv) != "sum" or conv.node_dim != 0:
        raise NotOurs(f"aggr={conv.aggr}, or another node_dim")
    if weights:
        raise NotOurs("return_attention_weights")
    source, target = x if isinstance(x, (tuple, list)) else (x, x)
    if not all(is_ours(t) and t.dim() == 2 for t in (source, target) if t is not None) or source is None:
        raise NotOurs("features of another kind")
    if edge_attr is not None and not is_ours(edge_attr):
        raise NotOurs("edge_attr of another kind")
    n = source.size(0)
    m = target.size(0) if target is not None else n if size is None else size[1]
    if size is not None and tuple(size) != (n, m):
        raise NotOurs("sizes other than those of the features")
    try:
        graph = _graph(conv, edge_index, edge_attr, m, n)
        view = ours.__new__(ours)
        object.__setattr__(view, "__dict__", vars(conv))  # the same parameters, settings and mode
        y = ours.forward(view, x, graph, edge_attr, *((size,) if ours is _GAT else ()))
    except (TypeError, ValueError) as error:
        raise NotOurs(str(error)) from None
    if torch.is_autocast_enabled(y.device.type):
        att = conv.att_src if ours is _GAT else conv.att  # of a replica, no parameter
        y = y.to(torch.promote_types(y.dtype, att.dtype))  # as the scores of PyG's are
    return y


def _graph(conv, edge_index, edge_attr, m: int, n: int):
    flip = conv.flow != "source_to_target"
    if flip and m != n:
        raise NotOurs("flow of a bipartite graph")
    if is_edge_list(edge_index):
        conv._check_input(edge_index, None)
        return graph_of(edge_index, m, n, flip)
    if not is_sparse_matrix(edge_index) or conv.lin_edge is not None or edge_attr is not None:
        raise NotOurs("edge features of a sparse matrix, or edges of another kind")
    if isinstance(edge_index, Tensor) and edge_index.requires_grad:
        raise NotOurs("a torch.sparse matrix with a gradient")
    conv._check_input(edge_index, None)
    graph, _ = matrix_of(edge_index)
    return graph if graph.val is None else graph.weighted(None)
