"""``gcn_norm`` once per graph: the forward of PyG's layers runs as it is, with one that remembers in its place.

What it returns is PyG's, so whatever a layer does with it stays right. That the weights are the norm of a graph is
remembered beside them: a product with them then needs one number per node, and none per edge.
"""

from __future__ import annotations

import sys
import types
import weakref
from functools import cache

import torch
from torch import Tensor

from sparsegnn.graph import CSRGraph
from sparsegnn.pyg.cache import MEMORY, Result, graph_of, is_edge_list, is_sparse_matrix, state_of


class Norm:
    """The weights of an edge list are the GCN norm of ``graph``."""

    def __init__(self, edges: Tensor, graph: CSRGraph, improved: bool, add_self_loops: bool, flow: str):
        self.edges, self.graph, self.flow = weakref.ref(edges), graph, flow
        self.improved, self.add_self_loops = improved, add_self_loops


def norm_of(edge_index, weight) -> Norm | None:
    """The norm that ``weight`` is for ``edge_index``, if :func:`remembered` made both and they are unchanged."""
    if weight is None or weight.requires_grad:
        return None
    found = MEMORY.of(weight).get(("norm",))
    if found is None or found.value.edges() is not edge_index or found.states != (state_of(edge_index),):
        return None
    return found.value


@cache
def with_memory(function):
    """``function``, a forward of PyG's, with a ``gcn_norm`` that remembers."""
    module = sys.modules["torch_geometric.nn.conv.gcn_conv"]
    code = getattr(function, "__code__", None)
    names = () if code is None else code.co_names
    swapped = {n: remembered for n in names if function.__globals__.get(n) is module.gcn_norm}
    if not swapped:
        return function
    parts = function.__name__, function.__defaults__, function.__closure__
    twin = types.FunctionType(code, {**function.__globals__, **swapped}, *parts)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def remembered(edge_index, edge_weight=None, num_nodes=None, improved=False, add_self_loops=True,
               flow="source_to_target", dtype=None):  # fmt: skip
    """PyG's ``gcn_norm``, once for an edge list and constant weights that do not change."""
    gcn_norm = sys.modules["torch_geometric.nn.conv.gcn_conv"].gcn_norm
    options = num_nodes, improved, add_self_loops, flow, dtype
    if not is_edge_list(edge_index) and not is_sparse_matrix(edge_index):
        return gcn_norm(edge_index, edge_weight, *options)

    def make():
        return gcn_norm(edge_index, edge_weight, *options)

    weights = (edge_weight,) if isinstance(edge_index, Tensor) else (edge_weight, _values(edge_index))
    learned = any(w is not None and w.requires_grad for w in weights) or getattr(edge_index, "requires_grad", False)
    if isinstance(edge_index, Tensor) and edge_index.layout == torch.strided:
        if learned:
            return _with_kept_edges(edge_index, make(), options)
        return _recorded(edge_index, edge_weight, options, make)
    if learned:
        return make()
    return MEMORY.get(edge_index, ("gcn_norm", *options), make, edge_weight)


def _values(adj) -> Tensor | None:
    return adj.storage.value()


def _with_kept_edges(edge_index: Tensor, made: tuple, options: tuple) -> tuple:
    """Weights that are learned are new at every call; the edges that belong to them are not."""
    edges, weight = made
    if edges is edge_index:
        return made
    return MEMORY.get(edge_index, ("looped", options[0], options[2]), lambda: edges), weight


def _recorded(edge_index: Tensor, edge_weight: Tensor | None, options: tuple, make):
    def with_norm():
        edges, weight = make()
        _record(edge_index, edge_weight, edges, weight, options)
        kept = None if edges is edge_index else edges  # what is kept of a tensor must not hold it
        return kept, weight, (state_of(edges), state_of(weight))

    key = ("gcn_norm", *options)
    edges, weight, made = MEMORY.get(edge_index, key, with_norm, edge_weight)
    edges = edge_index if edges is None else edges
    if made != (state_of(edges), state_of(weight)):  # someone has written to what a layer was given
        return make()
    return edges, weight


def _record(edge_index, edge_weight, edges, weight, options) -> None:
    num_nodes, improved, add_self_loops, flow, _ = options
    if num_nodes is None or not weight.is_floating_point():
        return
    try:
        graph = graph_of(edge_index, num_nodes, num_nodes, flow == "target_to_source")
        if edge_weight is not None:
            graph = graph.weighted(edge_weight.detach().reshape(-1).to(weight.dtype))
    except (TypeError, ValueError):  # an edge list that is PyG's to judge
        return
    norm = Norm(edges, graph, improved, add_self_loops, flow)
    MEMORY.of(weight)["norm",] = Result(norm, (state_of(edges),))
