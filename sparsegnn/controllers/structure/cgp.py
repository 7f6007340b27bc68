"""CGP: comprehensive graph gradual pruning of edges, features and weights (Liu et al., TNNLS 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn.controllers.pruning.shrinking import Ramp
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_number
from sparsegnn.controllers.sparse.rewiring import Rewiring
from sparsegnn.controllers.structure.channels import Channels
from sparsegnn.controllers.structure.edge_method import EdgeGates
from sparsegnn.controllers.structure.edges import check_fraction
from sparsegnn.graph import CSRGraph


@register("cgp")
class CGP(EdgeGates, Ramp, Rewiring):
    """Prunes edges, feature channels and weights under one clock, along cubics that end at ``stop_at`` (GraNet).

    Edges have gates sigmoid(theta), theta ~ N(0, 1), which multiply their weights; feature channels gates
    sigmoid(phi), phi = 1, folded into the columns of the layer that reads them (:class:`Channels`). At each update the
    lowest gates go, then the smallest magnitudes of all layers; then ``drop_fraction`` of the weights that are left are
    dropped and as many grown where the dense gradient of this step is largest. Gates stay trained to the end and part
    of the function.

    Unlike the public code: gates are scored by their value, not by |theta|; both directions of an edge have one gate;
    gates that are gone do not return, as they have no gradient; weights grow by |gradient|, which needs a dense one at
    updates only, not by Adam's momentum of weights that do not exist.

    Args:
        model, optimizer, distribution, update_every, start_at, stop_at, seed: as for :class:`Shrinking`.
        graph: as for :class:`EdgeMethod`.
        sparsity: of the weights.
        edge_sparsity: of the undirected edges.
        feature_sparsity: of the features that the first layer of the model reads; 0: they have no gates. Weights of
            channels that are gone count as removed.
        drop_fraction: of the weights, moved at the first update, less later along a cosine.
        edge_lr, feature_lr: learning rates of the gates (Adam).
    """

    paper = "Liu et al., TNNLS 2023"
    target = "edges, features, weights"
    dense_gradient_need = "at updates"
    patterns = Ramp.patterns
    start = "dense"
    moves_weights = True
    needs_dense_gradient = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, graph: CSRGraph | None = None,
                 sparsity: float = 0.9, edge_sparsity: float = 0.5, feature_sparsity: float = 0.5,
                 distribution: str | Mapping[str, float] = "global", drop_fraction: float = 0.2,
                 edge_lr: float = 0.01, feature_lr: float = 0.01, update_every: int = 20, start_at: int = 0,
                 stop_at: int | None = None, seed: int = 0):  # fmt: skip
        op = self._name
        self.edge_sparsity = check_fraction(op, "edge_sparsity", edge_sparsity)
        self.feature_sparsity = check_fraction(op, "feature_sparsity", feature_sparsity)
        self.edge_lr, self.feature_lr = edge_lr, check_number(op, "feature_lr", feature_lr, 0, 1e30)
        self._churn = drop_fraction
        super().__init__(model, optimizer, graph=graph, sparsity=sparsity, distribution=distribution,
                         update_every=update_every, start_at=start_at, stop_at=stop_at, seed=seed)  # fmt: skip

    @classmethod
    def recipe(cls, steps: int) -> dict:
        return {"update_every": max(1, steps // 20), "stop_at": max(1, steps // 2)}

    def begin(self) -> None:
        self._fraction = self._churn
        first = next(iter(self.layers))
        self.channels = None
        if self.feature_sparsity:
            self.channels = Channels(self._name, self.layers[first], self.feature_lr)
        self.first = first
        super().begin()

    def first_theta(self, weights: Tensor) -> Tensor:
        drawn = torch.randn(weights.numel(), generator=self.generator("edges", step=0), dtype=weights.dtype)
        return drawn.to(weights.device)[None]

    def gates(self, theta: Tensor) -> Tensor:
        return theta[0].sigmoid()

    @torch.no_grad()
    def update(self) -> None:
        """Prune edges, channels and weights to their counts, then move weights."""
        self.check_movable()
        self.learn()
        share = self.share(self.step)
        self.keep_edges(self.edges.best(self.gate.theta[0], self.edges.count(share * self.edge_sparsity)))
        if self.channels is not None:
            slots = self.channels.shrink(self.channels.count(share * self.feature_sparsity))
            if slots is not None:
                self.keep(self.first, slots)
        self.prune(self.counts_at(share))
        for name, n in self.moves(self.step).items():
            gradient = self.dense_gradient(self.layers[name])
            if gradient is not None and self.layers[name].values.requires_grad:
                self.rewire(name, self.drop_scores(name, self.layers[name]), self.grow_scores(name, gradient), n)

    def grow_scores(self, name: str, gradient: Tensor) -> Tensor:
        score = gradient.abs()
        if self.channels is not None and name == self.first:
            score.masked_fill_(~self.channels.alive, -1)  # below all others
        return score

    def learn(self) -> None:
        super().learn()
        if self.channels is not None:
            self.channels.learn()

    def before_step(self) -> None:
        super().before_step()
        if self.channels is not None:
            self.channels.collect(self.gradient_scale())

    def skipped(self) -> None:
        super().skipped()
        if self.channels is not None:
            self.channels.forget()

    def extra_state(self) -> dict:
        return {**super().extra_state(), "features": {} if self.channels is None else self.channels.state()}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        rest = super().read_state(state)
        features = (lambda: None) if self.channels is None else self.channels.read("features", state)

        def apply() -> None:
            rest()
            features()

        return apply
