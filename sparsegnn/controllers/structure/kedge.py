"""Kedge: stochastic HardKuma gates on edges (Rathee et al., arXiv 2106.12920; Bastings et al., ACL 2019)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_int, check_number
from sparsegnn.controllers.structure.edge_method import EdgeGates
from sparsegnn.controllers.structure.edges import check_fraction
from sparsegnn.graph import CSRGraph

LOW, HIGH = -0.1, 1.1  # between which s is stretched


@register("kedge")
class Kedge(EdgeGates):
    """Learns which edges to keep: each has a random gate z in [0, 1], 0 and 1 included, until ``stop_at``.

    z = min(1, max(0, s (r - l) + l)) with s ~ Kumaraswamy(a, b), (l, r) = (-0.1, 1.1); a and b are parameters of each
    edge (the paper has them from a network on the features of its ends). Edges pay ``penalty`` P(z != 0). Each step
    draws all gates anew, evaluation in between sees those of the next step. At ``stop_at`` the gates end: edges with
    E[z] > 0.5 stay, with the weights that they had, the graph is compacted, and training goes on with it.
    :meth:`finalize` refuses before that.

    Args:
        model, optimizer: as for :class:`Controller`. graph: as for :class:`EdgeMethod`.
        penalty: lambda, of each edge, in units of the loss.
        edge_sparsity: remove this fraction of the edges, those of lowest E[z], whatever it is; None: by E[z] > 0.5.
        edge_lr: learning rate of log a and log b (Adam).
        stop_at: step after which the gates end. seed: of the samples.
    """

    paper = "Rathee et al., 2021"
    dense_gradient_need = "never"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, graph: CSRGraph | None = None,
                 edge_sparsity: float | None = None, penalty: float = 1e-4, edge_lr: float = 0.01,
                 stop_at: int = 1000, seed: int = 0):  # fmt: skip
        op = self._name
        self.edge_sparsity = None if edge_sparsity is None else check_fraction(op, "edge_sparsity", edge_sparsity)
        self.rate, self.edge_lr = check_number(op, "penalty", penalty, 0, 1e30), edge_lr
        super().__init__(model, optimizer, graph=graph, stop_at=check_int(op, "stop_at", stop_at, 1), seed=seed)

    @classmethod
    def recipe(cls, steps: int) -> dict:
        return {**super().recipe(steps), "edge_sparsity": 0.5, "stop_at": max(1, steps // 2)}

    def due(self, step: int) -> bool:
        return step == self.stop_at

    def update(self) -> None:
        """End the gates: keep the edges that are more open than closed."""
        self.learn()
        self.harden()

    @torch.no_grad()
    def harden(self) -> None:
        if self._open:
            openness = mean(self.gate.theta)
            n = max(1, int((openness > 0.5).sum()))
            n = n if self.edge_sparsity is None else self.edges.count(self.edge_sparsity)
            index = self.edges.best(openness, n)
            self.edges.keep(index)
            self.gate.keep(index)
            self.close()

    def finalize(self) -> nn.Module:
        """End the method, whose gates have ended."""
        if self._open:
            raise RuntimeError(
                f"{self._name}: finalize() must come after step {self.stop_at}, which ends the gates, got step "
                f"{self.step}: ending them now would change the function; detach() leaves the gates as they are"
            )
        return super().finalize()

    def first_theta(self, weights: Tensor) -> Tensor:
        return torch.stack([torch.full_like(weights, 1.0), torch.full_like(weights, -0.7)])  # E[z] = 0.88

    def show(self) -> None:
        device = self.graph.device
        uniform = torch.rand(self.edges.total, generator=self.generator("gates", device), device=device)
        self._uniform = uniform[self.edges.alive].clamp_(1e-6, 1 - 1e-6).to(self.gate.theta)
        super().show()

    def gates(self, theta: Tensor) -> Tensor:
        return sample(theta, self._uniform)

    def penalty(self, theta: Tensor) -> Tensor:
        return self.rate * open_probability(theta).sum()


def sample(theta: Tensor, uniform: Tensor) -> Tensor:
    """z of the parameters log a, log b [2, n], by the inverse of the distribution of s; differentiable in them."""
    a, b = theta.exp()
    s = (1 - (1 - uniform) ** (1 / b)) ** (1 / a)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(theta: Tensor, above: float = 0.0) -> Tensor:
    """P(z > above), for 0 that z != 0: P(s > t) = (1 - t^a)^b."""
    a, b = theta.exp()
    return (1 - ((above - LOW) / (HIGH - LOW)) ** a) ** b


def mean(theta: Tensor) -> Tensor:
    """E[z], the integral of P(z > x) over [0, 1], by Gauss and Legendre's rule."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    return sum(
        w / 2 * open_probability(theta, (x + 1) / 2) for x, w in zip(nodes.tolist(), weights.tolist(), strict=True)
    )
