"""What layers share that multiply by the matrix of a graph with as many sources as targets."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from sparsegnn.graph import CSRGraph
from sparsegnn.nn.aggregate import Matrix, commutes, multiply
from sparsegnn.nn.batches import Lead
from sparsegnn.nn.checks import check_number
from sparsegnn.nn.convolution import FLOWS, Convolution
from sparsegnn.nn.exported import exporting
from sparsegnn.nn.exported import graph_of as listed
from sparsegnn.nn.inputs import graph_of
from sparsegnn.nn.kept import Given, KeptAggregate
from sparsegnn.nn.reductions import refuse_several


class Propagation(Convolution):
    """Base of layers that are called with features, a graph and maybe edge weights.

    ``cached``: the graph of the first call is converted and normalised, and used for all later ones.
    """

    def __init__(self, aggr, flow: str, options: Mapping, normalize: bool = True, add_self_loops: bool = True,
                 improved: bool = False, cached: bool = False):  # fmt: skip
        super().__init__(aggr, flow, options)
        self.cached, self.normalize, self.add_self_loops, self.improved = cached, normalize, add_self_loops, improved
        self._cached_graph: CSRGraph | None = None
        self._cached_of = Given(None)
        self._kept = KeptAggregate()

    def _forget(self) -> None:
        self._cached_graph = None
        self._kept.clear()

    def _graph(self, x: Tensor, edge_index: object, edge_weight: Tensor | None, lead: Lead = ()) -> CSRGraph:
        """The graph of a call, which has one node for every row of ``x``, or for as many as ``lead`` says."""
        graph, n = self._cached_graph, x.size(0) // math.prod(lead) if lead else x.size(0)
        recorded = exporting()
        if graph is None or not self._cached_of.fits(edge_index):
            if not recorded and isinstance(edge_index, CSRGraph) and edge_weight is None and self.flow == FLOWS[0]:
                graph = edge_index
            else:
                graph = graph_of(type(self).__name__, x, x, edge_index, edge_weight, None, self.flow, lead)
            if self.cached and not recorded:
                self._cached_graph, self._cached_of = graph, Given(edge_index)
        elif recorded:
            graph = listed(graph)
        if graph.shape != (n, n):
            raise ValueError(f"{type(self).__name__}: x must have one row per node of the graph {graph.shape}, "
                             f"got {[*lead, n, x.size(1)]}")  # fmt: skip
        return graph

    def _matrix(self, graph: CSRGraph, x: Tensor, lead: Lead = (), explicit: bool = False) -> Matrix:
        options = self.normalize, self.improved, self.add_self_loops
        return super()._matrix(graph, x, lead, explicit, options)

    def _options(self) -> dict:
        names = ("normalize", "improved", "add_self_loops")
        return {name: getattr(self, name) for name in names}


class Teleport(Propagation):
    """Base of layers with (1 - alpha) A x + alpha h, where ``h`` is what ``x`` was made of."""

    def __init__(self, alpha: float, aggr, flow: str, options: Mapping, normalize: bool, add_self_loops: bool,
                 cached: bool):  # fmt: skip
        super().__init__(aggr, flow, options, normalize, add_self_loops, cached=cached)
        refuse_several(type(self).__name__, self.aggr, "the result is added to what x was made of")
        self.alpha = check_number(type(self).__name__, "alpha", alpha)

    def _teleporting(self, graph: CSRGraph, x: Tensor, lead: Lead, explicit: bool = False) -> Matrix:
        """(1 - alpha) A, where that can be in it."""
        a = self._matrix(graph, x, lead, explicit)
        return a.times(1 - self.alpha, x.dtype) if commutes(self.aggr) else a

    def _multiply(self, a: Matrix, x: Tensor) -> Tensor:
        """(1 - alpha) A x."""
        y = multiply(a, x, self.aggr)
        return y if commutes(self.aggr) else y * (1 - self.alpha)
