"""What follows from an edge list, kept while it lives and is not changed: its CSRGraph, its norm, its weights in order.

PyG hands the same ``edge_index`` to every layer at every step; a conversion costs more than an aggregation. An object
is the same if it is the same object, unchanged since (version counters and addresses tell; writes through ``.data`` or
numpy do not). One table for the process, so that the layers of a model, and its copies, share.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree

from sparsegnn.graph import CSRGraph
from sparsegnn.graph_formats import outside_modes

#: objects that are remembered at a time, and results for each that depend on a second object, as an edge weight
OBJECTS, RESULTS = 256, 64


class Kept:
    """One object of the table; ``made`` holds what follows from it."""

    __slots__ = ("ref", "state", "made")

    def __init__(self, ref, state):
        self.ref, self.state, self.made = ref, state, OrderedDict()


class Result:
    """Something that was made of an object and of ``others``, in these states."""

    __slots__ = ("value", "states", "refs")

    def __init__(self, value, states=(), refs=()):
        self.value, self.states, self.refs = value, states, refs

    def alive(self, others=None) -> bool:
        """Whether the others are there, and are these."""
        there = [ref() for ref in self.refs]
        return all(o is not None for o in there) and (
            others is None or all(a is b for a, b in zip(there, (o for o in others if o is not None), strict=True))
        )


class Memory:
    """Of all threads; what two of them make at once is made twice."""

    def __init__(self):
        self._kept: OrderedDict[int, Kept] = OrderedDict()
        self._lock = threading.RLock()  # a tensor may die while its own thread holds it

    def of(self, obj) -> OrderedDict:
        """What is kept for ``obj`` as it is now; of an object whose changes cannot be noticed, an empty table."""
        key, state = id(obj), state_of(obj)
        if state is None:
            return OrderedDict()
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept.ref() is not obj or kept.state != state:
                kept = self._kept[key] = Kept(weakref.ref(obj, lambda ref: self._forget(key, ref)), state)
            self._kept.move_to_end(key)
            if len(self._kept) > OBJECTS:
                self._kept.popitem(last=False)
            return kept.made

    def get(self, obj, key: tuple, make: Callable, *others):
        """``make()``, or what it returned for these ``others`` (tensors or None) in the same state; without tape."""
        made, states = self.of(obj), tuple(state_of(o) for o in others if o is not None)
        key = (*key, *map(id, others))
        found = made.get(key)
        if found is not None and found.states == states and found.alive(others):
            return found.value
        value = outside_modes(make)()
        if None not in states and not _is_fake(value):
            result = Result(value, states, tuple(weakref.ref(o) for o in others if o is not None))
            with self._lock:
                for gone in [k for k, kept in list(made.items()) if not kept.alive()]:
                    made.pop(gone, None)
                made[key] = result
                if len(made) > RESULTS:
                    made.popitem(last=False)
        return value

    def clear(self) -> None:
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)

    def _forget(self, key: int, ref) -> None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None and kept.ref is ref:
                self._kept.pop(key, None)


MEMORY = Memory()


def _is_fake(value) -> bool:
    """Whether something was made while the program was only traced."""
    return any(isinstance(t, FakeTensor) for t in pytree.tree_leaves(value))


def state_of(obj):
    """What changes when ``obj`` is written to, or None where that cannot be seen."""
    if not isinstance(obj, Tensor):  # torch_sparse.SparseTensor
        storage = obj.storage
        parts = (storage._row, storage._col, storage._value)
        parts = [p if p is not None else storage._rowptr for p in parts[:2]] + [p for p in parts[2:] if p is not None]
        states = tuple(state_of(p) for p in parts)
        return None if None in states else (tuple(map(id, parts)), obj.sparse_sizes(), states)
    tensor = obj.as_tensor() if hasattr(obj, "as_tensor") else obj  # PyG's EdgeIndex
    if tensor.is_inference() or is_wrapped(tensor):
        return None
    return tensor._version, tensor.data_ptr() if tensor.layout == torch.strided else 0, tensor.shape


def is_wrapped(t: Tensor) -> bool:
    """Whether a transform of torch.func sees ``t``: then nothing may be kept of it."""
    return torch._C._functorch.is_functorch_wrapped_tensor(t)


def is_edge_list(edge_index) -> bool:
    """A plain [2, E], or PyG's EdgeIndex."""
    if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
        return False
    if type(edge_index) is Tensor:
        return not is_wrapped(edge_index)
    return type(edge_index).__name__ == "EdgeIndex" and hasattr(edge_index, "as_tensor")


def is_sparse_matrix(adj) -> bool:
    """A SparseTensor of torch_sparse, or a sparse matrix of torch."""
    if isinstance(adj, Tensor):
        return adj.layout in (torch.sparse_csr, torch.sparse_coo, torch.sparse_csc)
    return type(adj).__name__ == "SparseTensor" and hasattr(adj, "storage")


def graph_of(edge_index: Tensor, rows: int, cols: int, flip: bool = False) -> CSRGraph:
    """The graph of an edge list, from row 0 to row 1, or the other way when ``flip``; without weights."""

    def make():
        edges = edge_index.as_tensor() if hasattr(edge_index, "as_tensor") else edge_index
        return CSRGraph.from_edge_index(edges.flip(0) if flip else edges, (rows, cols))

    return MEMORY.get(edge_index, ("graph", rows, cols, flip), make)


def matrix_of(adj) -> tuple[CSRGraph, Tensor | None]:
    """The graph of a sparse matrix A[target, source], and its values in the order of the graph."""
    if isinstance(adj, Tensor):
        graph = MEMORY.get(adj, ("graph",), lambda: CSRGraph.from_any(adj))
        return graph, graph.val
    crow, col, val = adj.csr()
    graph = MEMORY.get(adj, ("graph",), lambda: CSRGraph.from_csr(crow, col, None, adj.sparse_size(1)))
    return graph, val


def in_order(edge_index: Tensor, graph: CSRGraph, weight: Tensor) -> Tensor:
    """``weight`` [E], given in the order of ``edge_index``, in the order of its ``graph``; differentiable."""

    def make():
        return graph, weight.index_select(0, graph.perm)  # the graph too, or another may get its id

    if weight.requires_grad and torch.is_grad_enabled():
        return make()[1]
    return MEMORY.get(edge_index, ("values", id(graph)), make, weight)[1]
