"""CSRGraph: one graph, both directions, GCN norm; made once, outside of compiled regions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sparsegnn import graph_formats as formats
from sparsegnn import graph_spans
from sparsegnn.graph_formats import check_weight, fail, outside_modes

Csr = tuple[Tensor, Tensor, Tensor]


@dataclass(eq=False, repr=False)
class CSRGraph:
    """The matrix A[target, source] of a graph as compressed rows, and what is derived from it, lazily.

    Make one with :meth:`from_edge_index`, :meth:`from_csr` or :meth:`from_any`, which check their input; the
    constructor trusts it. Do not write to its tensors: what is derived of them is kept. :meth:`assign_` and
    :meth:`write_` change a graph in place, and whoever holds it sees that.

    Attributes:
        crow: int32 ``[M + 1]``, first slot of every row (target).
        col: int32 ``[E]``, source of every slot, ascending within rows; duplicates are allowed.
        val: ``[E]`` edge weights in slot order, or None.
        num_cols: N, the number of sources.
        perm: int32 ``[E]``, position of every slot in the edge list that the graph was made from; None: the same.
        num_given: length of that list; None: E.
    """

    crow: Tensor
    col: Tensor
    val: Tensor | None
    num_cols: int
    perm: Tensor | None = None
    _structure: dict = field(default_factory=dict)  # derived from crow and col; shared by copies with other weights
    _norms: dict = field(default_factory=dict)
    num_given: int | None = None
    version: int = 0  # changes with the graph: what was derived at another one must not be used

    # --- making one ---

    @classmethod
    @outside_modes
    def from_edge_index(
        cls, edge_index: Tensor, num_nodes: int | tuple[int, int] | None = None, edge_weight: Tensor | None = None
    ) -> CSRGraph:
        """From ``edge_index`` [2, E], int32 or int64: row 0 the sources, row 1 the targets, in any order.

        Args:
            num_nodes: number of nodes, or ``(M, N)`` = (targets, sources) when bipartite; None: largest index + 1,
                as long as that takes memory in proportion to the edges.
            edge_weight: ``[E]`` or ``[E, 1]``, floating point, in the order of ``edge_index``; differentiable.
        """
        formats.check_edge_index(edge_index)
        rows, cols = formats.size_of(num_nodes, edge_index)
        edge_weight = formats.flat_weight(edge_weight)
        crow, col, perm = formats.sort_edges(edge_index, rows, cols)
        check_weight("edge_weight", edge_weight, col)
        graph = cls(crow, col, None if edge_weight is None else edge_weight.index_select(0, perm), cols, perm)
        if torch.compiler.is_compiling():
            graph._structure["inside"] = True
        return graph

    @classmethod
    @outside_modes
    def from_csr(cls, crow: Tensor, col: Tensor, val: Tensor | None = None, num_cols: int | None = None) -> CSRGraph:
        """From compressed rows of A[target, source]; ``num_cols`` None: as many as rows.

        Copied: later writes to these arrays do not reach the graph. Only a ``val`` that needs a gradient is the
        caller's own.
        """
        formats.check_csr(crow, col, num_cols)
        check_weight("val", val, col)
        num_cols = crow.numel() - 1 if num_cols is None else formats.count("num_cols", num_cols)
        return cls(formats.int32_copy(crow), formats.int32_copy(col), own(val), num_cols)

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
    def given(self) -> int:
        """Length of the edge list that ``perm`` counts in."""
        return self.num_edges if self.num_given is None else self.num_given

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
        return self._structure.get("transpose") or self._keep("transpose", self._transpose)

    def _transpose(self) -> Csr:
        ccol, row, perm = torch.ops.sparsegnn.csr_transpose(self.crow, self.col, self.num_cols)
        square = self.num_rows == self.num_cols and not torch.compiler.is_compiling()
        if square and torch.equal(ccol, self.crow) and torch.equal(row, self.col):
            return self.crow, self.col, perm
        return ccol, row, perm

    def spans(self, transpose: bool = False) -> tuple[Tensor | None, Tensor | None]:
        """The spans of the rows and, with ``transpose``, of the sources, as CUDA kernels walk them: ``[S, 2]`` int32.

        None on other devices and of small graphs, and where a compiled region or a CUDA graph that is being recorded
        would have to make them: kernels then walk the rows as they come, to the same results.
        """
        if self.device.type not in graph_spans.DEVICES:
            return None, None
        rows, cols = self._structure.get("spans", (None, None))
        if (rows is None or (transpose and cols is None)) and self._may_make_spans():
            rows, cols = self._keep("spans", lambda: self._spans(transpose))
        return rows, cols if transpose else None

    def _may_make_spans(self) -> bool:
        if torch.compiler.is_compiling() or type(self.crow) is not Tensor:
            return False
        recording = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        return self.num_edges >= graph_spans.LEAST_EDGES and not recording

    def _spans(self, transpose: bool) -> tuple[Tensor, Tensor | None]:
        rows, _ = self._structure.get("spans", (None, None))
        rows = graph_spans.row_spans(self.crow, self.num_edges) if rows is None else rows
        if not transpose:
            return rows, None
        ccol = self.transpose()[0]
        return rows, rows if ccol is self.crow else graph_spans.row_spans(ccol, self.num_edges)

    @outside_modes
    def weighted(self, edge_weight: Tensor | None) -> CSRGraph:
        """The same graph with these weights, in the order of the edge list that it was made from, ``[num_given]``.

        Of a graph whose self-loops were removed that is the list with them; where self-loops were added, behind the
        list comes one weight per node, which counts where its loop is new.
        """
        edge_weight = formats.flat_weight(edge_weight)
        check_weight("edge_weight", edge_weight, self.col, self.given)
        ordered = edge_weight is None or self.perm is None
        val = own(edge_weight) if ordered else edge_weight.index_select(0, self.perm)
        return CSRGraph(self.crow, self.col, val, self.num_cols, self.perm, self._structure, num_given=self.num_given)

    def gcn_norm(
        self, improved: bool = False, add_self_loops: bool = True, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor | None]:
        """The GCN norm D^-1/2 (A + L) D^-1/2 without an edge array: ``(scale, diag)``, constants.

        ``scale`` [M] is D^-1/2 (0 where a degree is 0), for rows and columns; ``diag`` [M] is what L adds, or None.
        As PyG's ``gcn_norm`` on an edge list: L gives every node one self-loop; the last of those that a node has
        keeps its weight; others weigh 1, or 2 when ``improved`` and the graph has weights (without, PyG adds 1).
        Where a node has several, sums over A and ``diag`` cancel: there use :meth:`normed`.
        """
        graph, scale, diag = self.normed(improved, add_self_loops, dtype)
        if graph is self or not add_self_loops:
            return scale, diag
        key = f"{improved} {dtype} whole"
        if (diag := self._norms.get(key)) is None:
            diag = keep(self._norms, key, lambda: self._canceling(improved, dtype), self)
        return scale, diag

    def _canceling(self, improved: bool, dtype: torch.dtype) -> Tensor:
        """The loops that L leaves, less all those of A."""
        slot, row, last = self._loops()
        wide = torch.ones_like(self.col, dtype=torch.float64) if self.val is None else self.val.detach().double()
        fill = 2.0 if improved and self.val is not None else 1.0
        kept = torch.where(last < 0, fill, torch.cat([wide, wide.new_zeros(1)])[last])
        return kept.index_put((row,), -wide[slot], accumulate=True).to(dtype)  # deterministic

    def normed(
        self, improved: bool = False, add_self_loops: bool = True, dtype: torch.dtype = torch.float32
    ) -> tuple[CSRGraph, Tensor, Tensor | None]:
        """``(graph, scale, diag)`` of :meth:`gcn_norm`, of a graph with at most one self-loop per node, this one if
        it is: nothing is summed that ``diag`` has to take away again."""
        key = f"{improved} {add_self_loops} {dtype}"
        found = self._norms.get(key)
        if found is None:
            cache = {} if self.val is not None and self.val.requires_grad else self._norms  # an optimizer changes it
            found = keep(cache, key, lambda: self._normed(improved, add_self_loops, dtype), self)
        graph, scale, diag = found
        return self if graph is None else graph, scale, diag

    def _normed(self, improved: bool, add_self_loops: bool, dtype: torch.dtype):
        """As :meth:`normed`, with None for this graph, which must not hold itself."""
        self._check_square("gcn_norm")
        graph, val, diag = None, None if self.val is None else self.val.detach(), None
        fill = 2.0 if improved and val is not None else 1.0
        if add_self_loops and torch.compiler.is_compiling():  # sizes must not depend on data: weigh them 0
            loop, slot, last = self._fixed_loops()
            surplus = loop & (slot != last.index_select(0, self.col))
            val = torch.where(surplus, 0, torch.ones_like(self.col, dtype=dtype) if val is None else val)
            graph = CSRGraph(self.crow, self.col, val, self.num_cols, self.perm, self._structure)
            diag = torch.where(last < 0, fill, 0.0).to(dtype)
        elif add_self_loops:
            slot, _, last = self._loops()
            new = last < 0
            if slot.numel() > self.num_rows - int(new.sum()):
                looped, slot = self.looped()
                val = extend(val, slot, fill)
                graph = CSRGraph(looped.crow, looped.col, val, self.num_cols, None, looped._structure)
            else:
                diag = torch.where(new, fill, 0.0).to(dtype)
        crow = self.crow if graph is None else graph.crow
        deg = torch.ops.sparsegnn.csr_degrees(crow, None if val is None else val.to(dtype)).to(dtype)
        scale = (deg if diag is None else deg + diag).pow(-0.5)
        return graph, scale.masked_fill(scale == float("inf"), 0), diag

    def _loops(self) -> Csr:
        """Slots of self-loops, their rows, and the last such slot of every row, or -1."""
        row = self.rows()
        slot = torch.nonzero(row == self.col).view(-1)
        row = row[slot]
        return slot, row, slot.new_full((self.num_rows,), -1).scatter_reduce(0, row, slot, "amax")

    def _fixed_loops(self) -> Csr:
        """Whether a slot is a self-loop, all slots, and the last of :meth:`_loops`; of sizes that no data decides."""
        row, slot = self.rows(), torch.arange(self.num_edges, device=self.device)
        loop = row == self.col
        last = slot.new_full((self.num_rows,), -1).scatter_reduce(0, row, torch.where(loop, slot, -1), "amax")
        return loop, slot, last

    def looped(self) -> tuple[CSRGraph, Tensor]:
        """The graph with exactly one self-loop per node, and where its edges come from.

        Returns ``(graph, slot)``: ``slot`` [E'] int64 is the slot here, or a number from E on for a new loop; of
        several loops of a node the last stays. Without values.
        """
        return self._structure.get("looped") or self._keep("looped", self._looped)

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
        given = self.given
        if given + self.num_rows >= formats.LIMIT:
            fail("graph must have fewer than 2^31 - 1 edges and nodes for add_self_loops", given + self.num_rows)
        perm = torch.cat([kept if self.perm is None else self.perm[kept].long(), new + given])[order].int()
        return CSRGraph(crow, col, None, self.num_cols, perm, num_given=given + self.num_rows), origin[order]

    def padded_loops(self) -> tuple[CSRGraph, Tensor]:
        """:meth:`looped` with a size that depends on no data, for compiled regions; its shape is ``(M + 1, N + 1)``,
        the last row holds the edges that are none. Of any shape: loops for the nodes that are source and target."""
        (m, n), e = self.shape, self.num_edges
        (loop, slot, last), both = self._fixed_loops(), torch.arange(min(m, n), device=self.device)
        last = last[: min(m, n)]
        target = torch.cat([torch.where(loop, m, self.rows()), both])
        source = torch.cat([torch.where(loop, n, self.col.long()), both])
        origin = torch.cat([torch.where(loop, e, slot), torch.where(last < 0, e, last)])
        crow, col, order = torch.ops.sparsegnn.csr_from_edges(target, source, m + 1, n + 1)
        return CSRGraph(crow, col, None, n + 1), origin[order]

    def layer_loops(self) -> tuple[CSRGraph, Tensor]:
        """:meth:`looped`, or :meth:`padded_loops` of what a compiled region makes and forgets."""
        square = self.num_rows == self.num_cols
        if torch.compiler.is_compiling() and "looped" not in self._structure:
            if not square or "inside" in self._structure:
                return self.padded_loops()
        return self.looped()

    @outside_modes
    def add_self_loops(self, fill_value: float = 1.0) -> CSRGraph:
        """The graph with exactly one self-loop per node; loops that exist keep their weight, new ones get this.

        In its ``perm`` the new loop of node i is number i behind the edges that the graph was made from.
        """
        graph, slot = self.looped()
        val = self.val
        if val is None and fill_value != 1.0:
            val = torch.ones(self.num_edges, device=self.device)
        val = extend(val, slot, fill_value)
        return CSRGraph(graph.crow, graph.col, val, self.num_cols, graph.perm, num_given=graph.num_given)

    @outside_modes
    def remove_self_loops(self) -> CSRGraph:
        """The graph without self-loops; its ``perm`` still counts in the list with them."""
        return self.subset(torch.nonzero(self.rows() != self.col).view(-1))

    @outside_modes
    def subset(self, slots: Tensor) -> CSRGraph:
        """The graph of the edges ``slots`` alone, int64, ascending; its ``perm`` still counts in the list with all."""
        perm = slots.int() if self.perm is None else self.perm[slots]
        val = None if self.val is None else self.val[slots]
        crow = torch.searchsorted(slots, self.crow.long()).int()
        return CSRGraph(crow, self.col[slots], val, self.num_cols, perm, num_given=self.given)

    # --- changing it ---

    def assign_(self, other: CSRGraph) -> None:
        """Become ``other``, of the same shape, whose tensors are shared: layers that hold this graph use its edges.

        Copies of this graph, those of :meth:`weighted` too, stay what they were. Derived tensors are made again.
        """
        if self.shape != other.shape or self.device != other.device:
            fail(f"other must have the shape {self.shape} on {self.device}", f"{other.shape} on {other.device}")
        derived = self._structure
        for name in SAVED:
            setattr(self, name, getattr(other, name))
        self._structure, self._norms, self.version = other._structure, {}, self.version + 1
        if "transpose" in derived:  # a compiled region keeps nothing
            self.transpose()
        if "spans" in derived:
            self.spans(derived["spans"][1] is not None)
        if "looped" in derived:
            looped, _ = self.looped()
            if "transpose" in derived["looped"][0]._structure:
                looped.transpose()

    @torch.no_grad()
    def write_(self, val: Tensor) -> None:
        """Copy other weights [E] into ``val``, in place, which may be a leaf that requires a gradient."""
        self.val.copy_(val)
        self._norms, self.version = {}, self.version + 1

    def _keep(self, key: str, make: Callable):
        """What follows from the edges alone."""
        return keep(self._structure, key, make, (self.crow, self.col, self.perm))

    def _check_square(self, what: str) -> None:
        if self.num_rows != self.num_cols:
            fail(f"graph must be square for {what}", self.shape)

    # --- moving it ---

    def __getstate__(self) -> dict:
        return {name: getattr(self, name) for name in SAVED}  # what is derived would have to be checked when loaded

    def __setstate__(self, state: dict) -> None:
        """Checks what is loaded, which may come from an untrusted file: ``torch.load(weights_only=True)`` takes it."""
        crow, col, val, num_cols, perm, num_given = (state.get(name) for name in SAVED)
        formats.check_loaded(crow, col, val, num_cols, perm, num_given)
        self.__init__(crow, col, val, num_cols, perm, num_given=num_given)

    def __deepcopy__(self, memo: dict) -> CSRGraph:
        return pytree.tree_map_only(Tensor, lambda t: copy.deepcopy(t, memo), self)

    @outside_modes
    def to(self, device: torch.device | str) -> CSRGraph:
        """The same graph, with all that was derived, on ``device``."""
        device, moved = torch.device(device), {}

        def move(t: Tensor) -> Tensor:  # once per tensor: an aliased transpose stays aliased
            return moved.setdefault(id(t), t.to(device)) if id(t) not in moved else moved[id(t)]

        return self if self.device == device else pytree.tree_map_only(Tensor, move, self)


def keep(cache: dict, key: str, make: Callable, of):
    """``make()`` of the tensors in ``of``, for ``cache``."""
    value = outside_modes(lambda of: make())(of)
    plain = all(type(t) is Tensor for t in pytree.tree_leaves(value) if isinstance(t, Tensor))  # no fakes
    if plain and not torch.compiler.is_compiling():  # a compiled region does not write to its inputs
        cache[key] = value
    return value


def own(val: Tensor | None) -> Tensor | None:
    """Constant weights, apart from the caller's memory."""
    return val if val is None or val.requires_grad else val.clone(memory_format=torch.contiguous_format)


def extend(val: Tensor | None, slot: Tensor, fill_value: float) -> Tensor | None:
    """Values of the edges ``slot`` of :meth:`CSRGraph.looped`; differentiable."""
    if val is None:
        return None
    return torch.cat([val, val.new_full((1,), fill_value)]).index_select(0, slot.clamp(max=val.numel()))


SAVED = ("crow", "col", "val", "num_cols", "perm", "num_given")
FIELDS = ("crow", "col", "val", "perm", "_structure", "_norms")


def _flatten(graph: CSRGraph):
    context = graph.num_cols if graph.num_given is None else [graph.num_cols, graph.num_given]
    return [getattr(graph, name) for name in FIELDS], context


def _flatten_with_keys(graph: CSRGraph):
    children, context = _flatten(graph)
    return list(zip(map(pytree.GetAttrKey, FIELDS), children, strict=True)), context


def _unflatten(children, context) -> CSRGraph:
    crow, col, val, perm, *derived = children
    num_cols, num_given = context if isinstance(context, list) else (context, None)
    return CSRGraph(crow, col, val, num_cols, perm, *derived, num_given)


pytree.register_pytree_node(
    CSRGraph,
    _flatten,
    _unflatten,
    serialized_type_name="sparsegnn.CSRGraph",
    flatten_with_keys_fn=_flatten_with_keys,
)
torch.serialization.add_safe_globals([CSRGraph])
