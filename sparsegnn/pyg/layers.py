"""Layers of PyG in another order: aggregation at the narrower of two widths, with what follows it in the same pass."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from sparsegnn.nn import inner
from sparsegnn.nn.aggregate import multiply
from sparsegnn.nn.appnp import is_constant, steps
from sparsegnn.nn.inner import finish, is_plain, transform
from sparsegnn.nn.linear import SparseLinear
from sparsegnn.ops.spmm_gcn import aggregate_first
from sparsegnn.pyg import attention, relations
from sparsegnn.pyg.cache import is_edge_list
from sparsegnn.pyg.norms import remembered
from sparsegnn.pyg.overrides import is_layer
from sparsegnn.pyg.products import product_of, pyg, reduction_of
from sparsegnn.pyg.propagate import Matrix, NotOurs, check_conv, is_ours, matrix, source_of


def of(kind: type):
    """What computes layers of this class, or None where PyG's own forward does, with its parts on the kernels."""
    layer, function = _layers().get(kind.forward, (None, None))
    return function if layer is not None and is_layer(kind, layer) else None


@cache
def _layers() -> dict:
    nn = pyg()
    inner.FORWARDS.add(nn.Linear.forward)
    functions = {nn.GCNConv: gcn, nn.SAGEConv: sage, nn.GraphConv: graph_conv, nn.GINConv: gin, nn.APPNP: appnp,
                 nn.ChebConv: relations.cheb, nn.RGCNConv: relations.rgcn, nn.GATConv: attention.gat,
                 nn.GATv2Conv: attention.gatv2}  # fmt: skip
    for layer, function in functions.items():
        function.__qualname__ = f"{layer.__name__}.forward"  # for Python's errors about arguments
    return {layer.forward: (layer, function) for layer, function in functions.items()}


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
    """(A x) W + b or A (x W) + b; a bias that a user gave ``lin`` is a part of what is aggregated."""
    reduce = _check(conv, x, edge_index)
    if not (_dense(conv.lin) or (isinstance(conv.lin, SparseLinear) and is_plain(conv.lin))):
        raise NotOurs("its lin is more than a product")
    m = _normed(conv, x, edge_index, edge_weight, reduce, conv.improved)
    if conv.lin.bias is not None or not aggregate_first(x, conv.out_channels):
        return finish(m.product(conv.lin(x), reduce), conv.bias, None, 0.0, None)
    x = m.product(x, reduce)
    if _dense(conv.lin):
        return functional.linear(x, conv.lin.weight, conv.bias)
    return transform(conv.lin, x, conv.bias, None, 0.0, None)


def _normed(conv, x, edge_index, edge_weight, reduce: str, improved: bool = False) -> Matrix:
    """The matrix that a layer with PyG's ``gcn_norm`` multiplies with; ``cached`` as PyG has it."""
    if conv.normalize and conv._cached_edge_index is not None:
        edge_index, edge_weight = conv._cached_edge_index
    elif conv.normalize:
        options = x.size(conv.node_dim), improved, conv.add_self_loops, conv.flow, x.dtype
        edge_index, edge_weight = remembered(edge_index, edge_weight, *options)
        if conv.cached:
            conv._cached_edge_index = edge_index, edge_weight
    if edge_weight is not None and edge_weight.dtype != x.dtype:
        raise NotOurs("edge weights of another dtype")
    return matrix(conv, edge_index, edge_weight, x, conv._check_input(edge_index, (x.size(0),) * 2), reduce)


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


def gin(conv, x, edge_index, size=None):
    """nn of A x + (1 + eps) x, in one pass over the neighbours."""
    reduce = _check(conv, x, edge_index)
    if reduce != "sum" or (conv.eps.requires_grad and torch.is_grad_enabled()):
        raise NotOurs("a learned eps, or another reduction")
    m = matrix(conv, edge_index, None, x, conv._check_input(edge_index, size or (x.size(0),) * 2), reduce)
    if m.graph.shape != (x.size(0), x.size(0)):
        raise NotOurs("sizes other than those of the features")
    return conv.nn(m.product(x, reduce, root=1 + conv.eps))


def appnp(conv, x, edge_index, edge_weight=None):
    """K times (1 - alpha) A x + alpha h; the first factor is in the matrix, and with a constant one all is one node."""
    reduce = _check(conv, x, edge_index)
    if conv.dropout > 0 and conv.training:
        raise NotOurs("dropout of edges")
    a = _normed(conv, x, edge_index, edge_weight, reduce).times(x.dtype, 1 - conv.alpha)
    if conv.K > 1 and is_constant(a, x, reduce):
        return steps(a, x.contiguous(), conv.alpha, conv.K)
    start = x = x.contiguous()
    for _ in range(conv.K):
        x = multiply(a, x, reduce).add_(start, alpha=conv.alpha)
    return x
