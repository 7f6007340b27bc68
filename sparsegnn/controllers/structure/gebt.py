"""GEBT: graph early-bird tickets (You et al., AAAI 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn.controllers.pruning.shrinking import Shrinking, survivors
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_int, check_number, check_tensors
from sparsegnn.controllers.stability import MaskStability
from sparsegnn.controllers.structure.edge_method import EdgeGates
from sparsegnn.controllers.structure.edges import check_fraction
from sparsegnn.graph import CSRGraph


@register("gebt")
class GEBT(EdgeGates, Shrinking):
    """Trains weights and edge values A until what would be pruned of both no longer changes, then prunes it, once.

    Until then A, one number >= 0 per undirected edge, 1 at first, follows the loss and ``rho`` |A + U - Z|^2, where
    every ``update_every`` steps Z becomes A + U without its lowest magnitudes and U grows by A - Z (ADMM). Masks are
    the highest |A| and the highest |w|; when their distance to the last ``window`` masks is below ``eta``
    (:class:`MaskStability`), or at ``stop_at``, the graph and the layers are pruned in place. The edges that are left
    have the weights that they had before, the weights of the layers are inherited, and training goes on.

    Args:
        model, optimizer, distribution: as for :class:`Shrinking`.
        graph: as for :class:`EdgeMethod`.
        sparsity: of the weights.
        edge_sparsity: of the undirected edges.
        update_every: steps between masks, an epoch.
        start_at: no mask before this step.
        stop_at: prune then if the masks have not settled; the default is ``start_at + 20 * update_every``.
        eta: the masks have settled when their distance, over its first value, is below this.
        window: masks that a mask is compared with.
        rho: weight of the ADMM term, the mean over the edges.
        edge_lr: learning rate of A (Adam).
        seed: of the order of edges of equal |A|.
    """

    paper = "You et al., AAAI 2022"
    target = "edges, weights"
    patterns = Shrinking.patterns
    start = "dense"
    moves_weights = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, graph: CSRGraph | None = None,
                 sparsity: float = 0.9, edge_sparsity: float = 0.5, distribution: str | Mapping[str, float] = "global",
                 update_every: int = 1, start_at: int = 5, stop_at: int | None = None, eta: float = 0.1,
                 window: int = 3, rho: float = 1e-3, edge_lr: float = 1e-3, seed: int = 0):  # fmt: skip
        op = self._name
        self.edge_sparsity = check_fraction(op, "edge_sparsity", edge_sparsity)
        self.rho, self.edge_lr = check_number(op, "rho", rho, 0, 1e30), edge_lr
        self.stability, self.found_at = MaskStability(eta, window, op), 0
        super().__init__(model, optimizer, graph=graph, sparsity=sparsity, distribution=distribution,
                         update_every=update_every, start_at=start_at, stop_at=stop_at, seed=seed)  # fmt: skip

    @classmethod
    def recipe(cls, steps: int) -> dict:
        return {"update_every": 1, "start_at": min(5, steps // 4), "stop_at": max(1, steps // 4)}

    def first_theta(self, weights: Tensor) -> Tensor:
        self.dual, self.target_values = torch.zeros_like(weights), torch.ones_like(weights)
        return torch.ones_like(weights)[None]

    def gates(self, theta: Tensor) -> Tensor:
        return theta[0].clamp(min=0)  # degrees must not become negative

    def penalty(self, theta: Tensor) -> Tensor:
        return self.rho * (self.gates(theta) + self.dual - self.target_values).square().mean()

    def due(self, step: int) -> bool:
        return not self.found_at and (step == self.stop_at or super().due(step))

    @property
    def settled_at(self) -> int:
        return self.found_at or self.stop_at

    @torch.no_grad()
    def update(self) -> None:
        """Draw the masks; where they have settled, prune."""
        self.check_movable()
        self.learn()
        values, n, counts = self.gates(self.gate.theta), self.edges.count(self.edge_sparsity), self.counts_at(1.0)
        self.target_values = torch.where(self._mask(values + self.dual, n), values + self.dual, 0)
        self.dual = self.dual + values - self.target_values
        edges, weights = self._mask(values, n), [self._weights(name, n) for name, n in counts.items()]
        settled = self.stability.stop_when(edges, torch.cat(weights))
        if settled or self.step >= self.stop_at:
            self.prune(counts)
            kept = edges.nonzero().view(-1)
            self.edges.keep(kept)
            self.gate.keep(kept)
            self.dual, self.target_values = self.dual[kept], self.target_values[kept]
            self.found_at = self.step
            self.close()

    def _mask(self, values: Tensor, n: int) -> Tensor:
        kept = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
        kept[self.edges.best(values.abs(), n)] = True
        return kept

    def _weights(self, name: str, n: int) -> Tensor:
        """[positions] on the device of the graph: those that pruning now would keep."""
        layer = self.layers[name]
        kept = torch.ones(layer.col.numel(), dtype=torch.bool, device=layer.col.device)
        if n < layer.values.numel() and layer.values.requires_grad:
            kept.zero_()[survivors(layer, layer.per_position(self.scores(name, layer)), n)] = True
        return kept.to(self.graph.device)

    def extra_state(self) -> dict:
        admm = {"dual": self.dual.clone(), "target": self.target_values.clone()}
        return {**super().extra_state(), "admm": admm, "found_at": self.found_at, "stability": self.stability.state()}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        rest, op = super().read_state(state), self._name
        found_at = check_int(op, "state['found_at']", state["found_at"], 0)
        like = self.dual.new_empty(state["edges"]["alive"].numel())
        admm = check_tensors(op, "admm", state, {"dual": like, "target": like})
        entries = self.edges.total + sum(x.grid[0] * x.grid[1] for x in self.layers.values())
        masks = self.stability.read("stability", state, entries, self.graph.device)

        def apply() -> None:
            self.found_at, self.dual, self.target_values = found_at, admm["dual"], admm["target"]
            masks()
            rest()

        return apply
