"""Layers of PyG that may aggregate at the narrower of two widths, and two that make their edges at every call."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from sparsegnn.nn.inner import finish, is_plain, transform
from sparsegnn.nn.linear import SparseLinear
from sparsegnn.ops.spmm_gcn import aggregate_first
from sparsegnn.pyg.cache import MEMORY
from sparsegnn.pyg.norms import remembered
from sparsegnn.pyg.products import product_of, pyg, reduction_of
from sparsegnn.pyg.propagate import NotOurs, check_conv, is_edge_list, is_ours, matrix, source_of


def of(forward):
    """What computes a layer with this ``forward``, or None where PyG's own does, with its parts on the kernels."""
    return _layers().get(forward)


@cache
def _layers() -> dict:
    nn = pyg()
    return {nn.GCNConv.forward: gcn, nn.SAGEConv.forward: sage, nn.GraphConv.forward: graph_conv,
            nn.ChebConv.forward: cheb, nn.RGCNConv.forward: rgcn}  # fmt: skip


def _check(conv, x, edge_index) -> str:
    """The reduction, where the layer is PyG's as it is and a product may be taken before or after."""
    check_conv(conv)
    reduce = reduction_of(conv)
    if not is_ours(x) or x.dim() != 2 or not is_edge_list(edge_index) or conv.node_dim not in (-2, 0):
        raise NotOurs("features or edges of another kind")
    if reduce not in ("sum", "mean") or product_of(conv) is None or torch.is_autocast_enabled(x.device.type):
        raise NotOurs(f"aggr={conv.aggr}")
    return reduce


def _dense(layer) -> bool:
    """Whether a layer is PyG's dense one, and nothing else."""
    return type(layer) is pyg().Linear and is_plain(layer)


def gcn(conv, x, edge_index, edge_weight=None):
    """(A x) W + b or A (x W) + b."""
    reduce = _check(conv, x, edge_index)
    if not (_dense(conv.lin) or (isinstance(conv.lin, SparseLinear) and is_plain(conv.lin))):
        raise NotOurs("its lin is more than a product")
    if conv.normalize and conv._cached_edge_index is not None:
        edge_index, edge_weight = conv._cached_edge_index
    elif conv.normalize:
        options = x.size(conv.node_dim), conv.improved, conv.add_self_loops, conv.flow, x.dtype
        edge_index, edge_weight = remembered(edge_index, edge_weight, *options)
        if conv.cached:
            conv._cached_edge_index = edge_index, edge_weight
    if edge_weight is not None and edge_weight.dtype != x.dtype:
        raise NotOurs("edge weights of another dtype")
    m = matrix(conv, edge_index, edge_weight, x, conv._check_input(edge_index, (x.size(0),) * 2), reduce)
    if not aggregate_first(x, conv.out_channels):
        return finish(m.product(conv.lin(x), reduce), conv.bias, None, 0.0, None)
    x = m.product(x, reduce)
    if _dense(conv.lin):
        return functional.linear(x, conv.lin.weight, conv.bias)
    return transform(conv.lin, x, conv.bias, None, 0.0, None)


def sage(conv, x, edge_index, size=None):
    y = _narrow(conv, conv.lin_l, x, edge_index, None, size, not conv.project)
    target = x[1] if isinstance(x, (tuple, list)) else x
    if conv.root_weight and target is not None:
        y = y + conv.lin_r(target)
    return functional.normalize(y, p=2.0, dim=-1) if conv.normalize else y


def graph_conv(conv, x, edge_index, edge_weight=None, size=None):
    y = _narrow(conv, conv.lin_rel, x, edge_index, edge_weight, size, True)
    target = x[1] if isinstance(x, (tuple, list)) else x
    return y if target is None else y + conv.lin_root(target)


def _narrow(conv, linear, x, edge_index, edge_weight, size, gains: bool) -> Tensor:
    """``linear(A x)`` as A (x W) + b; NotOurs where that is not narrower: then PyG's own order is the one."""
    pair = x if isinstance(x, (tuple, list)) else (x, x)
    reduce = _check(conv, pair[0], edge_index)
    if not gains or not _dense(linear) or aggregate_first(pair[0], conv.out_channels):
        raise NotOurs("nothing to gain")
    sizes = conv._check_input(edge_index, size)
    source = source_of(conv, tuple(pair), sizes)
    if edge_weight is not None and edge_weight.dtype != source.dtype:
        raise NotOurs("edge weights of another dtype")
    m = matrix(conv, edge_index, edge_weight, source, sizes, reduce)
    return finish(m.product(functional.linear(source, linear.weight), reduce), linear.bias, None, 0.0, None)


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
