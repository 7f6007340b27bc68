"""FastGAT: an effective-resistance sparsifier of the graph (Srinivasa et al., 2020; Spielman and Srivastava, 2008)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_names, check_number, check_tensors
from sparsegnn.controllers.structure.edge_method import EdgeMethod
from sparsegnn.controllers.structure.edges import Edges, check_fraction
from sparsegnn.controllers.structure.resistance import effective_resistance
from sparsegnn.graph import CSRGraph

CONSTANT = 0.16  # of q = C n ln n / epsilon^2, as in PyGSP, whose sparsifier FastGAT uses


@register("fastgat")
class FastGAT(EdgeMethod):
    """Samples edges in proportion to weight times effective resistance, once, when it is made; needs no gradients.

    ``q`` draws with replacement, with probabilities p_e ~ w_e R_e; an edge drawn c times gets the weight
    c w_e / (q p_e), so that the Laplacian keeps its expectation. Bridges, whose w_e R_e is 1, are drawn most.

    Args:
        model, optimizer: as for :class:`Controller`. graph: as for :class:`EdgeMethod`; symmetric.
        edge_sparsity: fraction of the undirected edges that are removed, exact: draws go on until the others were
            drawn. Ignored with ``epsilon``.
        epsilon: q = 0.16 n ln(n) / epsilon^2 instead, for a Laplacian within 1 +- epsilon; as many edges stay as that
            takes.
        weighted: give the edges these weights. False keeps the weights of the graph; layers such as GAT see no weights.
        projections: random projections beyond 4000 nodes, see :func:`effective_resistance`.
        seed: of the sample.
    """

    paper = "Srinivasa et al., 2020"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, graph: CSRGraph | None = None,
                 edge_sparsity: float = 0.5, epsilon: float | None = None, weighted: bool = False,
                 projections: int = 200, seed: int = 0):  # fmt: skip
        self.edge_sparsity = check_fraction(self._name, "edge_sparsity", edge_sparsity)
        if epsilon is not None and check_number(self._name, "epsilon", epsilon, 0, 1e30) == 0:
            raise ValueError(f"{self._name}: epsilon must be above 0, got {epsilon}")
        self.epsilon, self.weighted, self.projections = epsilon, bool(weighted), projections
        super().__init__(model, optimizer, graph=graph, seed=seed)

    def begin(self) -> None:
        resistance = effective_resistance(self.graph, projections=self.projections, seed=self.seed)
        super().begin()
        n = None if self.epsilon is not None else self.edges.count(self.edge_sparsity)
        draws = 0 if n else math.ceil(CONSTANT * self.graph.num_rows * math.log(self.graph.num_rows) / self.epsilon**2)
        kept, self.weight = sample(self.edges, resistance, self.generator("edges", step=0), n, draws)
        self._show(self.edges.alive[kept])

    def due(self, step: int) -> bool:
        return False

    @property
    def settled_at(self) -> int:
        return 0

    def extra_state(self) -> dict:
        return {**super().extra_state(), "weight": self.weight.clone()}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        super().read_state(state)
        alive = self.edges.check_alive(check_names(self._name, "edges", state, ["alive"]))
        like = {"weight": self.weight.new_empty(alive.numel())}
        weight = check_tensors(self._name, "fastgat", {"fastgat": {"weight": state["weight"]}}, like)["weight"]

        def apply() -> None:
            self.weight = weight
            self._show(alive)

        return apply

    def _show(self, alive: Tensor) -> None:
        self.edges.restore(alive)
        if self.weighted:
            dtype = torch.get_default_dtype() if self.edges.base.val is None else self.edges.base.val.dtype
            self.graph.val = self.edges.spread(self.weight).to(dtype)
            self.graph.write_(self.graph.val)


def sample(edges: Edges, resistance: Tensor, generator: torch.Generator, n: int | None, draws: int) -> tuple:
    """``(kept, factor)``: positions in ``edges.alive`` that were drawn, and what their weights are multiplied by.

    ``n`` distinct ones, or those of so many ``draws``. Draws are the events of a Poisson process with the rates p_e:
    the first ``n`` edges that have one are those that drawing until ``n`` distinct ones gives, without the loop.
    """
    weight = edges.weights(torch.float64).cpu()
    leverage = torch.zeros(edges.total, dtype=torch.float64)
    leverage[edges.pair[edges.pair >= 0].cpu()] = resistance.cpu()[edges.pair.cpu() >= 0]
    p = (weight * leverage).clamp_(min=1e-300)
    p /= p.sum()
    if n is None:
        found = torch.searchsorted(p.cumsum(0), torch.rand(draws, generator=generator, dtype=torch.float64))
        count = found.clamp_(max=p.numel() - 1).bincount(minlength=p.numel()).double()
    else:
        first = torch.empty_like(p).exponential_(generator=generator) / p
        order = first.argsort()[:n]
        count = torch.zeros_like(p)
        count[order] = 1 + torch.poisson(p[order] * (first[order[-1]] - first[order]), generator=generator)
    kept = count.nonzero().view(-1)
    factor = count[kept] / (count.sum() * p[kept])
    return kept.to(edges.graph.device), factor.to(edges.graph.device)
