"""Train and prune: dense training, reweighting towards a sparse target, hard prune, masked retraining."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn.controllers.pruning.shrinking import Shrinking, survivors
from sparsegnn.controllers.settings import check_flag, check_int, check_positive, check_tensors


class Penalty(Shrinking):
    """Base of methods that pull each weight W towards a sparse target Z with a multiplier L: SLR and ADMM.

    Steps up to ``start_at`` train dense. From there to ``stop_at`` every step sees, beside the gradient of the loss,
    that of ``rho/2 |W - Z + L/rho|^2``, ``rho (W - Z) + L``, and every ``update_every`` steps :meth:`revise` changes Z,
    the projection of W + L/rho on the counts of ``sparsity`` and ``distribution``, and L. At ``stop_at`` the smallest
    magnitudes go, and the rest is retrained on sparse kernels.

    The loss of the training loop does not change: the gradient of the penalty is added between backward() and step(),
    so clipping by hand does not see it, and ``.grad`` holds it after the step. Layers that keep all of their weights
    are not pulled.

    Args:
        rho: weight of the penalty. Its gradient, rho |W|, must not be far above that of the loss, or Adam forgets the
            latter: 0.01 is good for 140 training nodes of Cora, 1e-5 for 11,000 of coauthor_cs.
        reset_state: whether the weights begin reweighting and retraining with the optimizer state of new ones, as the
            new optimizers of the public code do. Adam's second moment would else hold gradients of the penalty, far
            larger than those of the loss, and retraining stand still.
        update_every: steps between changes of Z and L: an epoch (one step, where a batch is the whole graph).
        start_at: first step that is followed by the penalty. stop_at: the step of the hard prune.
        sparsity, distribution: as for :class:`Shrinking`.
        model, optimizer, seed: as for :class:`Controller` (nothing here is random).
    """

    every_step = True
    tensors = ("targets", "multipliers")  # per weight, while there is a penalty

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.9,
                 distribution: str | Mapping[str, float] = "erk", rho: float = 0.01, reset_state: bool = True,
                 update_every: int = 100, start_at: int = 0, stop_at: int | None = None, seed: int = 0):  # fmt: skip
        self.rho = check_positive(self._name, "rho", rho)
        self.reset_state = check_flag(self._name, "reset_state", reset_state)
        super().__init__(model, optimizer, sparsity=sparsity, distribution=distribution, start_at=start_at,
                         update_every=update_every, stop_at=stop_at, seed=seed)  # fmt: skip

    def begin(self) -> None:
        super().begin()
        least = self.start_at + self.update_every + 1
        if self.stop_at < least:
            raise ValueError(f"{self._name}: stop_at must be at least start_at + update_every + 1 = {least}, or the "
                             f"multipliers never change, got {self.stop_at}")  # fmt: skip
        self.rounds = 0
        for key in self.tensors:
            setattr(self, key, {})
        self.held = {name: x.values.numel() for name, x in self.layers.items()}  # weights before the hard prune

    # --- to override ---

    def revise(self) -> None:
        """Change Z and L, for the weights as they are now."""
        raise NotImplementedError(f"{self._name} must define revise()")

    # --- for methods ---

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights that are pulled, as they are."""
        names = self.targets or [n for n, m in self.held.items() if self.final is None or self.final[n] < m]
        return {n: self.layers[n].values.detach() for n in names if self.layers[n].values.requires_grad}

    def project(self) -> dict[str, Tensor]:
        """The sparse weights nearest to W + L/rho."""
        near = {n: w + self.multipliers[n] / self.rho if n in self.multipliers else w for n, w in self.weights.items()}
        counts = self.counts_at(1.0, {n: near.get(n, x.values.detach()) for n, x in self.layers.items()})
        return {**self.targets, **{name: self._sparse(name, w, counts[name]) for name, w in near.items()}}

    def _sparse(self, name: str, weight: Tensor, n: int) -> Tensor:
        layer, target = self.layers[name], torch.zeros_like(weight)
        slots = survivors(layer, layer.per_position(weight.abs()), n)
        target.view(layer.col.numel(), -1)[slots] = weight.view(layer.col.numel(), -1)[slots]
        return target

    # --- what the frame calls ---

    def due(self, step: int) -> bool:
        return step == self.stop_at

    def before_step(self) -> None:
        if not self.start_at <= self.step < self.stop_at or self._was_skipped(self.optimizer):
            return
        if not self.targets:
            self._reset()
            self.multipliers = {name: torch.zeros_like(w) for name, w in self.weights.items()}
            self.targets = self.project()
        self.observe()
        if (self.step - self.start_at) // self.update_every > self.rounds:  # after a step that failed not once more
            self.rounds = (self.step - self.start_at) // self.update_every
            self.revise()
        scale = self.gradient_scale()
        for name, w in self.weights.items():
            values = self.layers[name].values
            pull = (w - self.targets[name]).mul_(self.rho).add_(self.multipliers[name]).mul_(scale)
            values.grad = pull if values.grad is None else values.grad.add_(pull)

    def observe(self) -> None:
        """Each step of the reweighting: the gradients are those of the loss alone."""

    def update(self) -> None:
        super().update()
        for key in self.tensors:
            setattr(self, key, {})
        self._reset()

    def _reset(self) -> None:
        if self.reset_state:
            for layer in self.layers.values():
                self.optimizer.state.pop(layer.values, None)  # which the next step makes anew

    def counts(self) -> dict[str, int]:
        return self.counts_at(1.0)

    @classmethod
    def recipe(cls, steps: int) -> dict:
        """Two thirds of the steps dense, a sixth reweighting, as 200, 50 and 50 epochs of the paper on Cora."""
        stop = max(2, round(5 / 6 * steps))
        return {"update_every": 1, "start_at": min(round(2 / 3 * steps), stop - 2), "stop_at": stop}

    def extra_state(self) -> dict:
        held = {key: {name: t.clone() for name, t in getattr(self, key).items()} for key in self.tensors}
        return {"rounds": self.rounds, **held}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        rounds, held = check_int(self._name, "rounds", state["rounds"], 0), state["targets"]
        known = [name for name in self.layers if isinstance(held, Mapping) and name in held]
        like = {name: self.layers[name].values.detach().new_empty(self.held[name]) for name in known}
        found = {key: check_tensors(self._name, key, state, like) for key in self.tensors}

        def apply() -> None:
            self.rounds = rounds
            for key, tensors in found.items():
                setattr(self, key, tensors)

        return apply
