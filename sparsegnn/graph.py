"""CSRGraph: one graph, both directions, GCN norm; made once, outside of compiled regions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsegnn import graph_formats as formats
from sparsegnn.graph_formats import check_weight, fail

Csr = tuple[Tensor, Tensor, Tensor]


@dataclass(eq=False, repr=False)
class CSRGraph:
    """The matrix A[target, source] of a graph as compressed rows, and what is derived from it, lazily.

    Make one with :meth:`from_edge_index`, :meth:`from_csr` or :meth:`from_any`, which check their input; the
    constructor trusts it. Treat it as immutable: derived tensors are kept.

    Attributes:
        crow: int32 ``[M + 1]``, first slot of every row (target).
        col: int32 ``[E]``, source of every slot, ascending within rows; duplicates are allowed.
        val: ``[E]`` edge weights in slot order, or None.
        num_cols: N, the number of sources.
        perm: int32 ``[E]``, position of every slot in the edge list that the graph was made from; None: the same.
    """

    crow: Tensor
    col: Tensor
    val: Tensor | None
    num_cols: int
    perm: Tensor | None = None
    _structure: dict = field(default_factory=dict)  # derived from crow and col; shared by copies with other weights
    _norms: dict = field(default_factory=dict)

    # --- making one ---

    @classmethod
    def from_edge_index(
        cls, edge_index: Tensor, num_nodes: int | tuple[int, int] | None = None, edge_weight: Tensor | None = None
    ) -> CSRGraph:
        """From ``edge_index`` [2, E], int32 or int64: row 0 the sources, row 1 the targets, in any order.

        Args:
            num_nodes: number of nodes, or ``(M, N)`` = (targets, sources) when bipartite; None: largest index + 1.
            edge_weight: ``[E]``, floating point, in the order of ``edge_index``; differentiable.
        """
        formats.check_edge_index(edge_index)
        rows, cols = formats.size_of(num_nodes, edge_index)
        crow, col, perm = formats.sort_edges(edge_index, rows, cols)
        check_weight("edge_weight", edge_weight, col)
        return cls(crow, col, None if edge_weight is None else edge_weight.index_select(0, perm), cols, perm)

    @classmethod
    def from_csr(cls, crow: Tensor, col: Tensor, val: Tensor | None = None, num_cols: int | None = None) -> CSRGraph:
        """From compressed rows of A[target, source]; ``num_cols`` None: as many as rows."""
        crow, col = formats.check_csr(crow, col, num_cols)
        check_weight("val", val, col)
        return cls(crow, col, val, crow.numel() - 1 if num_cols is None else num_cols)

    @classmethod
    def from_any(cls, obj, num_nodes: int | tuple[int, int] | None = None) -> CSRGraph:
        """From a PyG ``Data`` or ``EdgeIndex``, a ``[2, E]`` tensor, or a matrix A[target, source] (PyG's ``adj_t``):
        ``torch_sparse.SparseTensor``, ``torch.sparse``, scipy. A CSRGraph is returned as it is."""
        graph = obj if isinstance(obj, cls) else formats.convert(cls, obj, num_nodes)
        if num_nodes is not None and graph.shape != formats.size_of(num_nodes, graph.col):
            fail(f"num_nodes must be the graph's {graph.shape}", num_nodes)
        return graph

    # --- what it is ---

    @property
    def num_rows(self) -> int:
        return self.crow.shape[0] - 1

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_rows, self.num_cols

    @property
    def num_edges(self) -> int:
        return self.col.shape[0]

    @property
    def device(self) -> torch.device:
        return self.crow.device

    def __repr__(self) -> str:
        weight = "None" if self.val is None else str(self.val.dtype).removeprefix("torch.")
        return f"CSRGraph({self.num_rows}x{self.num_cols}, edges={self.num_edges}, val={weight}, device={self.device})"

    # --- what follows from it ---

    def rows(self) -> Tensor:
        """int64 row of every slot; made anew at each call."""
        rows = torch.arange(self.num_rows, device=self.device)
        return torch.repeat_interleave(rows, self.crow.diff().long(), output_size=self.num_edges)

    def transpose(self) -> Csr:
        """``(ccol, row, perm)`` of the transpose; ``ccol`` and ``row`` are ``crow`` and ``col`` when A is symmetric."""
        return self._structure.get("transpose") or keep(self._structure, "transpose", self._transpose())

    def _transpose(self) -> Csr:
        ccol, row, perm = torch.ops.sparsegnn.csr_transpose(self.crow, self.col, self.num_cols)
        square = self.num_rows == self.num_cols and not torch.compiler.is_compiling()
        if square and torch.equal(ccol, self.crow) and torch.equal(row, self.col):
            return self.crow, self.col, perm
        return ccol, row, perm

    def weighted(self, edge_weight: Tensor | None) -> CSRGraph:
        """The same graph with these weights, ``[E]`` in the order of the edges that it was made from."""
        check_weight("edge_weight", edge_weight, self.col)
        val = edge_weight if edge_weight is None or self.perm is None else edge_weight.index_select(0, self.perm)
        return CSRGraph(self.crow, self.col, val, self.num_cols, self.perm, self._structure)

    def gcn_norm(
        self, improved: bool = False, add_self_loops: bool = True, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor | None]:
        """The GCN norm D^-1/2 (A + L) D^-1/2 without an edge array: ``(scale, diag)``, constants.

        ``scale`` [M] is D^-1/2 (0 where a degree is 0), for rows and columns; ``diag`` [M] is what L adds, or None.
        As PyG's ``gcn_norm`` on an edge list: L gives every node one self-loop; the last of those that a node has
        keeps its weight; others weigh 1, or 2 when ``improved`` and the graph has weights (without, PyG adds 1).
        """
        key = f"{improved} {add_self_loops} {dtype}"
        return self._norms.get(key) or keep(self._norms, key, self._gcn_norm(improved, add_self_loops, dtype))

    def _gcn_norm(self, improved: bool, add_self_loops: bool, dtype: torch.dtype):
        self._check_square("gcn_norm")
        degrees = torch.ops.sparsegnn.csr_degrees
        val = None if self.val is None else self.val.detach().to(dtype)
        deg, diag = degrees(self.crow, val).to(dtype), None
        if add_self_loops:
            slot, row, last = self._loops()
            weight = (slot >= 0).to(dtype) if val is None else torch.where(slot >= 0, val[slot.clamp(min=0)], 0)
            kept = 1.0 if val is None or not self.num_edges else val[last.clamp(min=0)]
            fill = 2.0 if improved and val is not None else 1.0
            diag = torch.where(last < 0, fill, kept).to(dtype)
            diag = diag.index_put((row,), -weight, accumulate=True)  # deterministic, unlike index_add
            deg = deg + diag
        scale = deg.pow(-0.5)
        return scale.masked_fill(scale == float("inf"), 0), diag

    def _loops(self) -> Csr:
        """Slots of self-loops, their rows, and the last such slot of every row, or -1."""
        row = self.rows()
        is_loop = row == self.col
        if torch.compiler.is_compiling():  # sizes must not depend on data: all slots, -1 for those that are none
            slot = torch.where(is_loop, torch.arange(self.num_edges, device=self.device), -1)
        else:
            slot = torch.nonzero(is_loop).view(-1)
            row = row[slot]
        return slot, row, slot.new_full((self.num_rows,), -1).scatter_reduce(0, row, slot, "amax")

    def looped(self) -> tuple[CSRGraph, Tensor]:
        """The graph with exactly one self-loop per node, and where its edges come from.

        Returns ``(graph, slot)``: ``slot`` [E'] int64 is the slot here, or a number from E on for a new loop; of
        several loops of a node the last stays. Without values.
        """
        return self._structure.get("looped") or keep(self._structure, "looped", self._looped())

    def _looped(self) -> tuple[CSRGraph, Tensor]:
        self._check_square("add_self_loops")
        if torch.compiler.is_compiling():
            raise RuntimeError("CSRGraph: graph must have its self-loops before torch.compile, got none: "
                               "call graph.looped() once, or run the model once")  # fmt: skip
        rows, (slot, _, last) = self.rows(), self._loops()
        dropped = torch.zeros(self.num_edges, dtype=torch.bool, device=self.device)
        dropped[slot] = True
        dropped[last[last >= 0]] = False
        kept = torch.nonzero(~dropped).view(-1)
        new = torch.nonzero(last < 0).view(-1)
        target, source = torch.cat([rows[kept], new]), torch.cat([self.col[kept].long(), new])
        origin = torch.cat([kept, self.num_edges + torch.arange(new.numel(), device=self.device)])
        crow, col, order = torch.ops.sparsegnn.csr_from_edges(target, source, *self.shape)
        origin = origin[order]
        perm = origin if self.perm is None else torch.cat([self.perm.long(), new + self.num_edges])[origin]
        return CSRGraph(crow, col, None, self.num_cols, perm.int()), origin

    def add_self_loops(self, fill_value: float = 1.0) -> CSRGraph:
        """The graph with exactly one self-loop per node; loops that exist keep their weight, new ones get this.

        In its ``perm`` the new loops are numbered behind the edges that the graph was made from.
        """
        graph, slot = self.looped()
        val = self.val
        if val is None and fill_value != 1.0:
            val = torch.ones(self.num_edges, device=self.device)
        return CSRGraph(graph.crow, graph.col, extend(val, slot, fill_value), self.num_cols, graph.perm)

    def remove_self_loops(self) -> CSRGraph:
        """The graph without self-loops."""
        rows = self.rows()
        kept = torch.nonzero(rows != self.col).view(-1)
        crow, col, order = torch.ops.sparsegnn.csr_from_edges(rows[kept], self.col[kept].long(), *self.shape)
        perm = kept[order].int() if self.perm is None else self.perm[kept][order]
        return CSRGraph(crow, col, None if self.val is None else self.val[kept][order], self.num_cols, perm)

    def _check_square(self, what: str) -> None:
        if self.num_rows != self.num_cols:
            fail(f"graph must be square for {what}", self.shape)

    # --- moving it ---

    def to(self, device: torch.device | str) -> CSRGraph:
        """The same graph, with all that was derived, on ``device``."""
        device, moved = torch.device(device), {}

        def move(t: Tensor) -> Tensor:  # once per tensor: an aliased transpose stays aliased
            return moved.setdefault(id(t), t.to(device)) if id(t) not in moved else moved[id(t)]

        return self if self.device == device else pytree.tree_map_only(Tensor, move, self)


def keep(cache: dict, key: str, value):
    if not torch.compiler.is_compiling():  # a compiled region does not write to its inputs
        cache[key] = value
    return value


def extend(val: Tensor | None, slot: Tensor, fill_value: float) -> Tensor | None:
    """Values of the edges ``slot`` of :meth:`CSRGraph.looped`; differentiable."""
    if val is None:
        return None
    return torch.cat([val, val.new_full((1,), fill_value)]).index_select(0, slot.clamp(max=val.numel()))


FIELDS = ("crow", "col", "val", "perm", "_structure", "_norms")


def _flatten(graph: CSRGraph):
    return [getattr(graph, name) for name in FIELDS], graph.num_cols


def _flatten_with_keys(graph: CSRGraph):
    return [(pytree.GetAttrKey(name), getattr(graph, name)) for name in FIELDS], graph.num_cols


def _unflatten(children, num_cols: int) -> CSRGraph:
    crow, col, val, perm, *derived = children
    return CSRGraph(crow, col, val, num_cols, perm, *derived)


pytree.register_pytree_node(
    CSRGraph,
    _flatten,
    _unflatten,
    serialized_type_name="sparsegnn.CSRGraph",
    flatten_with_keys_fn=_flatten_with_keys,
)
