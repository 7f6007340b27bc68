"""Two layers of PyG that make new edges at every call: here once per graph."""

from __future__ import annotations

from torch import Tensor

from sparsegnn.pyg.cache import MEMORY, is_edge_list
from sparsegnn.pyg.propagate import NotOurs, check_conv, is_ours


def cheb(conv, x, edge_index, edge_weight=None, batch=None, lambda_max=None):
    """PyG's, with the Laplacian kept per graph."""
    check_conv(conv)
    others = edge_weight, batch, lambda_max if isinstance(lambda_max, Tensor) else None
    if not is_edge_list(edge_index) or not is_ours(x) or any(t is not None and t.requires_grad for t in others):
        raise NotOurs("a Laplacian that is learned, or of another kind")
    given = None if isinstance(lambda_max, Tensor) else lambda_max
    key = "laplacian", x.size(conv.node_dim), conv.normalization, given, x.dtype

    def make():
        options = conv.normalization, lambda_max
        return conv.__norm__(edge_index, x.size(conv.node_dim), edge_weight, *options, dtype=x.dtype, batch=batch)

    edge_index, norm = MEMORY.get(edge_index, key, make, *others)
    before, now = x, x
    out = conv.lins[0](x)
    for k, linear in enumerate(conv.lins[1:]):
        after = conv.propagate(edge_index, x=now, norm=norm)
        before, now = now, after if k == 0 else 2.0 * after - before
        out = out + linear(now)
    return out if conv.bias is None else out + conv.bias


def rgcn(conv, x, edge_index, edge_type=None):
    """PyG's, with the edges of every relation kept per graph."""
    check_conv(conv)
    source, target = x if isinstance(x, (tuple, list)) else (x, x)
    if conv.num_blocks is not None or not is_edge_list(edge_index) or type(edge_type) is not Tensor:
        raise NotOurs("blocks, or edges of another kind")
    if not is_ours(source) or not is_ours(target) or _segments():
        raise NotOurs("features of another kind, or segments of edge types")

    def make():
        return [edge_index[:, edge_type == i] for i in range(conv.num_relations)]

    parts = MEMORY.get(edge_index, ("relations", conv.num_relations), make, edge_type)
    weight = conv.weight
    if conv.num_bases is not None:
        shape = conv.num_relations, conv.in_channels_l, conv.out_channels
        weight = (conv.comp @ weight.view(conv.num_bases, -1)).view(shape)
    size, out = (source.size(0), target.size(0)), target.new_zeros(target.size(0), conv.out_channels)
    for edges, w in zip(parts, weight, strict=True):
        if edges.size(1):
            out = out + conv.propagate(edges, x=source, edge_type_ptr=None, size=size) @ w
    if conv.root is not None:
        out = out + target @ conv.root
    return out if conv.bias is None else out + conv.bias


def _segments() -> bool:
    import torch_geometric

    return torch_geometric.typing.WITH_SEGMM and torch_geometric.backend.use_segment_matmul is not False
