"""The edges of a graph as what a method keeps or removes: in pairs where the graph is undirected."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsegnn.controllers.settings import check_number, shown
from sparsegnn.graph import CSRGraph
from sparsegnn.pattern import top

#: graph -> the controller that changes it
_owners: weakref.WeakKeyDictionary[CSRGraph, weakref.ref] = weakref.WeakKeyDictionary()


class Edges:
    """The units of ``graph`` that are left, and the way to have fewer of them: the graph itself shrinks, in place.

    A unit is an undirected edge, both directions of it, where the structure and the weights of the graph are
    symmetric; else one directed edge. Self-loops are no units and always stay. Parallel edges are units of their own.

    Attributes:
        base: the graph as it was; its tensors are shared, so nothing is copied.
        pair: int64 [E of base], unit of every slot; -1 of self-loops.
        alive: int64, ascending: the units that are left. All that methods hold per unit is in this order.
        place: int64 [E now], where in ``alive`` the unit of every slot is; the length of that for self-loops.
        weight: [E now] what the weights of the base are there, or None.
    """

    def __init__(self, op: str, graph: CSRGraph, order: torch.Generator):
        self.op, self.graph = op, graph
        self.base = CSRGraph(graph.crow, graph.col, graph.val, graph.num_cols, graph.perm, graph._structure,
                             num_given=graph.num_given)  # fmt: skip
        self.pair, self.undirected = pairs(graph)
        self.total = int(self.pair.max()) + 1 if self.pair.numel() else 0
        if self.total == 0:
            raise ValueError(f"{op}: graph must have an edge that is no self-loop, got {graph}")
        self.shuffle(order)
        self.alive, self.place = torch.arange(self.total, device=graph.device), self.pair % (self.total + 1)
        self.weight = graph.val

    def __len__(self) -> int:
        return self.alive.numel()

    def shuffle(self, generator: torch.Generator) -> None:
        """Draw the order that breaks ties, the same way always."""
        self.order = torch.randperm(self.total, generator=generator).to(self.graph.device)

    def count(self, sparsity: float) -> int:
        """Units that are left at this sparsity, at least one."""
        return max(1, round((1 - sparsity) * self.total))

    def best(self, score: Tensor, n: int) -> Tensor:
        """Where in ``alive``, ascending, the ``n`` highest scores [units] are; ties are broken at random, by the seed.

        Not by position: nodes that come late in the graph would lose all their edges.
        """
        rank = self.order[self.alive].argsort()
        return rank[top(score[rank], n)].sort().values

    def keep(self, index: Tensor) -> None:
        """Remove all units but these, ascending positions in ``alive``; the others have the weights of the base."""
        self.restore(self.alive[index])

    def restore(self, alive: Tensor) -> None:
        """Have these units of the base, ascending, whichever are there now."""
        kept = torch.ones(self.total + 1, dtype=torch.bool, device=alive.device)  # the last: self-loops
        kept[:-1] = False
        kept[alive] = True
        slots = kept[self.pair].nonzero().view(-1)
        self.graph.assign_(self.base.subset(slots) if slots.numel() < self.pair.numel() else self.base)
        unit = self.pair[slots]
        self.alive, self.weight = alive, self.graph.val
        self.place = torch.where(unit < 0, alive.numel(), torch.searchsorted(alive, unit))

    def spread(self, values: Tensor) -> Tensor:
        """[E now] weights of the base times one number per unit, 1 for self-loops."""
        factor = torch.cat([values, values.new_ones(1)])[self.place]
        return factor if self.weight is None else factor * self.weight.to(factor.dtype)

    def gather(self, gradient: Tensor) -> Tensor:
        """[units] the gradient of ``values`` from that of ``spread(values)``: sums over both directions."""
        gradient = gradient if self.weight is None else gradient * self.weight.to(gradient.dtype)
        return gradient.new_zeros(len(self) + 1).index_add_(0, self.place, gradient)[:-1]

    def weights(self, dtype: torch.dtype) -> Tensor:
        """[units] those of the base."""
        slot = self.pair.new_zeros(self.total + 1)
        slot[self.pair] = torch.arange(self.pair.numel(), device=slot.device)
        slot = slot[self.alive]
        return torch.ones_like(slot, dtype=dtype) if self.base.val is None else self.base.val[slot].to(dtype)

    def check_alive(self, state: Mapping) -> Tensor:
        """``state["alive"]`` of a checkpoint, on the device of the graph."""
        got, expected = state["alive"], f"int64 numbers that ascend within [0, {self.total})"
        if not isinstance(got, Tensor) or got.dtype != torch.int64 or got.dim() != 1 or got.is_meta:
            raise TypeError(f"{self.op}: state['edges']['alive'] must be {expected}, got {type(got).__name__}")
        got = got.to(self.graph.device, copy=True)
        if not got.numel() or got[0] < 0 or got[-1] >= self.total or (got.diff() <= 0).any():
            raise ValueError(f"{self.op}: state['edges']['alive'] must be {expected}, got {shown(got.tolist())}; "
                             "the graph must be the one that the checkpoint's method began with")  # fmt: skip
        return got


def pairs(graph: CSRGraph) -> tuple[Tensor, bool]:
    """``(unit, undirected)``: int64 [E] the unit of every slot, numbered from 0 in their order, -1 of self-loops."""
    slot = torch.arange(graph.num_edges, device=graph.device)
    partner, undirected = slot, graph.num_rows == graph.num_cols
    if undirected:
        ccol, row, perm = graph.transpose()
        partner = perm.long()
        undirected = torch.equal(ccol, graph.crow) and torch.equal(row, graph.col)
        undirected = undirected and (graph.val is None or torch.equal(graph.val, graph.val[partner]))
    first = torch.minimum(slot, partner) if undirected else slot
    loop = graph.rows() == graph.col if graph.num_rows == graph.num_cols else torch.zeros_like(slot, dtype=torch.bool)
    unit = torch.full_like(slot, -1)
    unit[~loop] = torch.unique(first[~loop], return_inverse=True)[1]
    return unit, undirected


def check_fraction(op: str, name: str, value) -> float:
    """``value`` if it is a fraction in [0, 1) of what shall be removed."""
    if check_number(op, name, value, 0, 1) == 1:
        raise ValueError(f"{op}: {name} must be below 1, got {value}")
    return float(value)


def check_graph(op: str, graph: object) -> CSRGraph:
    """``graph`` if it is a CSRGraph with constant weights that no other controller changes."""
    if not isinstance(graph, CSRGraph):
        raise TypeError(f"{op}: graph must be the CSRGraph that the model is called with, got {type(graph).__name__}: "
                        "CSRGraph.from_any() makes one")  # fmt: skip
    owner = _owners[graph]() if graph in _owners else None
    if owner is not None and owner.attached:
        raise ValueError(f"{op}: graph must be one that no other controller changes, got that of {owner}; detach() "
                         "that one first (in a notebook, before the cell is run again)")  # fmt: skip
    if graph.device.type == "meta":
        raise ValueError(f"{op}: graph must hold data, got one on meta")
    if graph.val is not None and graph.val.requires_grad:
        raise ValueError(f"{op}: graph must have constant weights, got some that require a gradient: pass "
                         "graph.weighted(weights.detach())")  # fmt: skip
    return graph


def own(graph: CSRGraph, controller) -> None:
    """From now on ``controller`` changes the graph."""
    _owners[graph] = weakref.ref(controller)
