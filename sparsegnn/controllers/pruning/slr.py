"""Surrogate Lagrangian relaxation (Gurevin et al., IJCAI 2021; for graphs: Peng et al., ICCD 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn.controllers.pruning.loss_change import LossChange
from sparsegnn.controllers.pruning.penalty import Penalty
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_int, check_number, check_positive


@register("slr")
class SLR(Penalty):
    """Train and prune; L moves by a stepsize of its own, and only where the Lagrangian has fallen.

    Every ``update_every`` steps, with W', Z' those at which L last moved: L moves by s (W - Z') if loss and penalty are
    below those of (W', Z'); then Z becomes the projection of W + L/rho, and L moves by s (W - Z) if the penalty is
    below that of Z'. At each move k grows by 1 and ``s *= alpha |W' - Z'| / |W - Z|``, with norms summed over layers,
    ``alpha = 1 - 1 / (M k^p)`` and ``p = 1 - 1 / k^r``. W' and Z' start as weights and projection at ``start_at``.

    A controller does not see the loss: its change since W' is the integral of its gradient along the path of all
    parameters of the optimizer (:class:`LossChange`), for which each step of this phase copies these and their
    gradients. The public code compares the means of two epochs instead, and takes W' for W from the first move on.

    Args:
        s0: the first stepsize s.
        M, r: how fast it falls.
        sparsity, distribution, rho, reset_state, update_every, start_at, stop_at: as for :class:`Penalty`.
        model, optimizer, seed: as for :class:`Controller` (nothing here is random).
    """

    paper = "Gurevin et al., IJCAI 2021; Peng et al., ICCD 2022"
    tensors = ("targets", "multipliers", "moved_weights", "moved_targets")

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.9,
                 distribution: str | Mapping[str, float] = "erk", rho: float = 0.01, s0: float = 0.01, M: float = 200.0,
                 r: float = 0.1, reset_state: bool = True, update_every: int = 100, start_at: int = 0,
                 stop_at: int | None = None, seed: int = 0):  # fmt: skip
        self.s, self.M = check_positive(self._name, "s0", s0), check_number(self._name, "M", M, 1, 1e30)
        self.r = check_positive(self._name, "r", r)
        self.k = 1
        super().__init__(model, optimizer, sparsity=sparsity, distribution=distribution, rho=rho,
                         reset_state=reset_state, start_at=start_at, update_every=update_every, stop_at=stop_at,
                         seed=seed)  # fmt: skip

    def begin(self) -> None:
        super().begin()
        self.loss_change = LossChange(self.optimizer)  # since the last move

    @classmethod
    def recipe(cls, steps: int) -> dict:
        return {**super().recipe(steps), "s0": 0.001}

    def observe(self) -> None:
        if not self.moved_weights:
            self.moved_weights = {name: w.clone() for name, w in self.weights.items()}
            self.moved_targets = self.targets
        self.loss_change.add(self.gradient_scale())

    def revise(self) -> None:
        weights, before = self.weights, {name: self.moved_weights[name] for name in self.weights}
        fallen = self._penalty(weights, self.moved_targets) - self._penalty(before, self.moved_targets)
        if self.k == 1 or fallen + float(self.loss_change.total) < 0:
            self._move(weights, self.moved_targets, self.targets)
        self.targets = self.project()
        if self._penalty(weights, self.targets) < self._penalty(weights, self.moved_targets):
            self._move(weights, self.targets, self.targets)

    def update(self) -> None:
        super().update()
        self.loss_change.forget()

    def _move(self, weights: Mapping[str, Tensor], targets: Mapping[str, Tensor], since: Mapping[str, Tensor]) -> None:
        """Let L follow the weights away from ``targets``; W' and Z' are ``weights`` and ``since`` from now on."""
        before = _distance({name: self.moved_weights[name] for name in weights}, self.moved_targets)
        now = _distance(weights, targets)
        alpha = 1 - 1 / (self.M * self.k ** (1 - self.k**-self.r))
        if before and now:
            self.s *= alpha * before / now
        self.k += 1
        for name, w in weights.items():
            self.multipliers[name] += self.s * (w - targets[name])
        self.moved_weights = {**self.moved_weights, **{name: w.clone() for name, w in weights.items()}}
        self.moved_targets = since
        self.loss_change.reset()

    def _penalty(self, weights: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> float:
        far = [weights[name] - targets[name] + self.multipliers[name] / self.rho for name in weights]
        return self.rho / 2 * sum(float(x.square().sum(dtype=torch.float64)) for x in far)

    def extra_state(self) -> dict:
        return {**super().extra_state(), "k": self.k, "s": self.s, "loss_change": self.loss_change.state()}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        shapes = {x.values: torch.Size([self.held[name]]) for name, x in self.layers.items()}
        tensors, change = super().read_state(state), self.loss_change.read(self._name, state, shapes)
        k, s = check_int(self._name, "k", state["k"], 1), check_positive(self._name, "s", state["s"])

        def apply() -> None:
            tensors()
            change()
            self.k, self.s = k, s

        return apply


def _distance(weights: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> float:
    return sum(float(torch.linalg.vector_norm(w - targets[name])) for name, w in weights.items())
