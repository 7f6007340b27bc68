"""What layers share that multiply by the matrix of a graph with as many sources as targets."""

from __future__ import annotations

from torch import Tensor, nn

from sparsegnn.graph import CSRGraph
from sparsegnn.nn.aggregate import Matrix, commutes, matrix, multiply
from sparsegnn.nn.inputs import FLOWS, check_aggregation, check_number, graph_of
from sparsegnn.nn.kept import Given, KeptAggregate


class Propagation(nn.Module):
    """Base of layers that are called with features, a graph and maybe edge weights.

    ``cached``: the graph of the first call is converted and normalised, and used for all later ones.
    """

    def __init__(self, aggr: str, flow: str, normalize: bool = True, add_self_loops: bool = True,
                 improved: bool = False, cached: bool = False):  # fmt: skip
        super().__init__()
        check_aggregation(type(self).__name__, aggr, flow)
        self.aggr, self.flow, self.cached = aggr, flow, cached
        self.normalize, self.add_self_loops, self.improved = normalize, add_self_loops, improved
        self._cached_graph: CSRGraph | None = None
        self._cached_of = Given(None)
        self._kept = KeptAggregate()

    def _forget(self) -> None:
        self._cached_graph = None
        self._kept.clear()

    def _graph(self, x: Tensor, edge_index: object, edge_weight: Tensor | None) -> CSRGraph:
        """The graph of a call, which has one node for every row of ``x``."""
        graph, n = self._cached_graph, x.size(0)
        if graph is None or not self._cached_of.fits(edge_index):
            if isinstance(edge_index, CSRGraph) and edge_weight is None and self.flow == FLOWS[0]:
                graph = edge_index
            else:
                graph = graph_of(type(self).__name__, x, x, edge_index, edge_weight, None, self.flow)
            if self.cached:
                self._cached_graph, self._cached_of = graph, Given(edge_index)
        if graph.shape != (n, n):
            raise ValueError(f"{type(self).__name__}: x must have one row per node of the graph {graph.shape}, "
                             f"got {list(x.shape)}")  # fmt: skip
        return graph

    def _matrix(self, graph: CSRGraph, x: Tensor, explicit: bool = False) -> Matrix:
        return matrix(graph, x.dtype, self.aggr, self.normalize, self.improved, self.add_self_loops, explicit)

    def _options(self) -> dict:
        names = ("normalize", "improved", "add_self_loops")
        return {name: getattr(self, name) for name in names}


class Teleport(Propagation):
    """Base of layers with (1 - alpha) A x + alpha h, where ``h`` is what ``x`` was made of."""

    def __init__(self, alpha: float, aggr: str, flow: str, normalize: bool, add_self_loops: bool, cached: bool):
        super().__init__(aggr, flow, normalize, add_self_loops, cached=cached)
        self.alpha = check_number(type(self).__name__, "alpha", alpha)

    def _teleporting(self, graph: CSRGraph, x: Tensor, explicit: bool = False) -> Matrix:
        """(1 - alpha) A, where that can be in it."""
        a = self._matrix(graph, x, explicit)
        return a.times(1 - self.alpha, x.dtype) if commutes(self.aggr) else a

    def _multiply(self, a: Matrix, x: Tensor) -> Tensor:
        """(1 - alpha) A x."""
        y = multiply(a, x, self.aggr)
        return y if commutes(self.aggr) else y * (1 - self.alpha)
