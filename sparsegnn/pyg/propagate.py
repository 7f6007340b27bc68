"""``propagate`` of a convolution that is a product with the adjacency, on this library's kernels."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsegnn.graph import CSRGraph
from sparsegnn.nn import aggregate
from sparsegnn.pyg.cache import graph_of, in_order, is_edge_list, is_sparse_matrix, is_wrapped, matrix_of
from sparsegnn.pyg.norms import norm_of
from sparsegnn.pyg.overrides import own_machinery
from sparsegnn.pyg.products import fused_of, product_of, pyg, reduction_of

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HOOKED = ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
HOOKS = tuple((name, f"_{name}_forward_pre_hooks", f"_{name}_forward_hooks") for name in HOOKED)
OWN = ("message", "aggregate", "update", "message_and_aggregate", "edge_update", "edge_updater", "explain_message",
       "_lift", "_collect", "__norm__")  # fmt: skip


class NotOurs(Exception):
    """PyG's own path has to run; says why."""


@dataclass
class Matrix:
    """A [targets, sources] with its weights ``val``, constant or learned ones, or the GCN ``norm`` of ``graph``."""

    graph: CSRGraph
    val: Tensor | None = None
    norm: tuple[bool, bool] | None = None  # (improved, add_self_loops)

    def product(self, x: Tensor, reduce: str, root: Tensor | None = None) -> Tensor:
        """A x, in the dtype that PyG's message has; ``root`` [] x of the node itself is summed along."""
        with torch.autocast(x.device.type, enabled=False) if _autocast(x) else nullcontext():
            return aggregate.multiply(self.times(x.dtype, root=root), x.contiguous(), reduce)

    def times(self, dtype: torch.dtype, factor: float = 1.0, root: Tensor | None = None) -> aggregate.Matrix:
        """factor A, as the kernels take it for features of ``dtype``."""
        graph, val, scale, diag = self.graph, self.val, None, None
        wide = torch.promote_types(dtype, torch.float32)
        if self.norm is not None:
            graph, scale, diag = graph.normed(*self.norm, wide)
            val = graph.val
        if root is not None:
            diag = root.to(wide).expand(graph.num_rows).contiguous()
        a = aggregate.Matrix(graph, val, scale, scale, diag, graph.num_rows)
        return a if factor == 1 else a.times(factor, dtype)


def _autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


def check_conv(conv) -> None:
    """NotOurs where someone listens or wants something else of ``conv`` than its result."""
    if conv._explain:
        raise NotOurs("explain")
    for name, before, after in HOOKS:
        if getattr(conv, before) or getattr(conv, after):
            raise NotOurs(f"a {name} hook")
    if conv._decomposed_layers != 1:
        raise NotOurs("decomposed_layers")
    own = vars(conv)
    for name in OWN:
        if name in own:
            raise NotOurs(f"its own {name}")
    base, kind = pyg().MessagePassing, type(conv)
    if kind.update is not base.update:
        raise NotOurs("its own update")
    if name := own_machinery(kind):
        raise NotOurs(f"its own {name}")


def is_ours(x) -> bool:
    """Whether the kernels take such a tensor."""
    kind = type(x) in (Tensor, torch.nn.Parameter)
    return kind and x.layout == torch.strided and x.dtype in FLOATS and x.device.type in ("cpu", "cuda")


def run(conv, edge_index, size, arguments: dict) -> Tensor:
    """``conv.propagate(edge_index, size=size, **arguments)``, or NotOurs."""
    check_conv(conv)
    if not is_edge_list(edge_index):
        return _run_fused(conv, edge_index, arguments)
    product, reduce = product_of(conv), reduction_of(conv)
    if product is None or type(conv).aggregate is not pyg().MessagePassing.aggregate:
        raise NotOurs("its message or aggregate is no product with the adjacency")
    if reduce is None:
        raise NotOurs(f"aggr={conv.aggr}")
    if arguments.get("edge_type_ptr") is not None:
        raise NotOurs("segments of edge types")
    sizes = conv._check_input(edge_index, size)
    if product.kind == "product":
        return _product(conv, product, reduce, edge_index, sizes, arguments)
    if reduce not in ("sum", "mean"):
        raise NotOurs(f"aggr={conv.aggr}")
    special = _difference if product.kind == "difference" else _gated
    return special(conv, product, reduce, edge_index, sizes, arguments)


def _product(conv, product, reduce, edge_index, sizes, arguments) -> Tensor:
    x = source_of(conv, arguments.get(product.features), sizes)
    weight = arguments.get(product.weight) if product.weight else None
    if weight is None and not product.optional:
        raise NotOurs("no edge weights")
    return wide(conv, matrix(conv, edge_index, weight, x, sizes, reduce, product.column), x, reduce, weight)


def matrix(conv, edge_index, weight, x: Tensor, sizes, reduce: str, column: bool = True) -> Matrix:
    """What the features ``x`` are multiplied with; ``sizes`` as PyG counts them, of sources and targets."""
    i, j = (1, 0) if conv.flow == "source_to_target" else (0, 1)
    rows, cols = sizes[i] if sizes[i] is not None else sizes[j], x.size(conv.node_dim)
    if weight is not None and (not is_ours(weight) or weight.device != x.device or is_wrapped(weight)):
        raise NotOurs("edge weights of another kind")
    norm = norm_of(edge_index, weight) if reduce == "sum" else None
    if norm is not None and norm.graph.shape == (rows, cols) and norm.flow == conv.flow:
        return Matrix(norm.graph, None, (norm.improved, norm.add_self_loops))
    if weight is not None:
        edges = edge_index.size(1)
        if weight.numel() != edges or (weight.dim() != 1 and not column):
            raise NotOurs("edge weights of another shape")
    try:
        graph = graph_of(edge_index, rows, cols, conv.flow == "target_to_source")
    except (TypeError, ValueError) as error:
        raise NotOurs(f"its edge_index: {error}") from None
    return Matrix(graph, None if weight is None else in_order(edge_index, graph, weight.reshape(-1)))


def source_of(conv, x, sizes) -> Tensor:
    """The features of the sources, with the sizes that follow."""
    if isinstance(x, (tuple, list)) and len(x) == 2:
        for dim, part in enumerate(x):
            if isinstance(part, Tensor):
                conv._set_size(sizes, dim, part)
        x = x[0]
    elif isinstance(x, Tensor):
        conv._set_size(sizes, 0 if conv.flow == "source_to_target" else 1, x)
    if not is_ours(x):
        raise NotOurs("features of another kind")
    return x


def target_of(conv, x, sizes) -> Tensor:
    if not is_ours(x):
        raise NotOurs("features of another kind")
    conv._set_size(sizes, 1 if conv.flow == "source_to_target" else 0, x)
    return x


def wide(conv, matrix: Matrix, x: Tensor, reduce: str, weight: Tensor | None) -> Tensor:
    """The product along the nodes' dimension, whatever the other dimensions are, as one wide aggregation."""
    if weight is not None and weight.dtype != x.dtype:
        x = x.to(torch.promote_types(x.dtype, weight.dtype))
    dim = conv.node_dim + (x.dim() if conv.node_dim < 0 else 0)
    if x.dim() == 2 and dim == 0:
        return matrix.product(x, reduce)
    if x.dim() < 2 or not 0 <= dim < x.dim() or (weight is not None and dim != x.dim() - 2):
        raise NotOurs(f"features of {x.dim()} dimensions along node_dim={conv.node_dim}")
    moved = x.movedim(dim, 0)
    y = matrix.product(moved.flatten(1), reduce)
    return y.unflatten(1, moved.shape[1:]).movedim(0, dim).contiguous()


def _difference(conv, product, reduce, edge_index, sizes, arguments) -> Tensor:
    """Reduction of (a_j - b_i) w: that of a_j w, less b_i times that of w."""
    a, weight = source_of(conv, arguments[product.features], sizes), arguments.get(product.weight)
    b = target_of(conv, arguments[product.target], sizes)
    if a.dim() != 2 or b.dim() != 2:
        raise NotOurs("features of more than two dimensions")
    m = matrix(conv, edge_index, weight, a, sizes, reduce)
    ones = a.new_ones(a.size(0), 1)
    return wide(conv, m, a, reduce, weight) - b * wide(conv, m, ones, reduce, weight)


def _gated(conv, product, reduce, edge_index, sizes, arguments) -> Tensor:
    """Reduction of (k_i + q_j) v_j, where the gate is no function."""
    act = conv.act
    if type(act) is not torch.nn.Identity or act._forward_hooks or act._forward_pre_hooks:
        raise NotOurs("its gate is not linear")
    if arguments.get("edge_attr") is not None:
        raise NotOurs("edge_attr")
    v, q = (source_of(conv, arguments[name], sizes) for name in (product.features, product.gate))
    k = target_of(conv, arguments[product.target], sizes)
    if not v.dim() == q.dim() == k.dim() == 2:
        raise NotOurs("features of more than two dimensions")
    m = matrix(conv, edge_index, None, v, sizes, reduce)
    return k * m.product(v, reduce) + m.product(q * v, reduce)


def _run_fused(conv, adj, arguments: dict) -> Tensor:
    """With a SparseTensor or torch.sparse matrix, as PyG's ``message_and_aggregate``."""
    sparse = isinstance(adj, Tensor)
    if not is_sparse_matrix(adj):
        raise NotOurs("an edge_index of another kind")
    if not conv.fuse:
        raise NotOurs("a sparse matrix where nothing is fused")
    fused = fused_of(conv)
    if fused is None:
        raise NotOurs("its message_and_aggregate is no product with the adjacency")
    reduce = {"add": "sum"}.get(conv.aggr, conv.aggr)
    if reduce not in ("sum", "mean", "max", "min"):
        raise NotOurs(f"aggr={conv.aggr}")
    conv._check_input(adj, None)
    x = arguments.get(fused.features)
    x = x[0] if fused.pair and isinstance(x, (tuple, list)) else x
    if not is_ours(x) or x.dim() != 2:
        raise NotOurs("features of another kind")
    if sparse and (adj.requires_grad or adj.dim() != 2 or adj.dense_dim()):
        raise NotOurs("a torch.sparse matrix with a gradient, or of vectors")
    try:
        graph, val = matrix_of(adj)
    except (TypeError, ValueError) as error:
        raise NotOurs(f"its adjacency: {error}") from None
    if graph.device != x.device or graph.num_cols != x.size(0):
        raise NotOurs("an adjacency of another size")
    val = val if sparse or fused.valued else None
    if val is not None and (val.dim() != 1 or val.dtype != x.dtype):
        raise NotOurs("values of another dtype or shape")
    return Matrix(graph, val).product(x, reduce)
