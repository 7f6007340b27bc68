"""Dynamic sparse training with exploration and exploitation (Huang et al., DAC 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn import pattern as patterns
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_int, check_number
from sparsegnn.controllers.sparse.exploring import Exploring
from sparsegnn.nn import SparseLinear


@register("dst-ee")
class DSTEE(Exploring):
    """RigL that prefers weights that were seldom tried: it grows where ``|g| + c ln(t) / (N + eps)`` is highest.

    ``t`` is the step, ``N`` in how many rounds between updates the weight has existed (255 at most are counted). The
    gradient is that which the optimizer sees: unscaled, of the mean over processes, clipped. (The authors' code adds
    the bonus to the gradient before it takes the magnitude, so that a negative gradient cancels it.)

    Args:
        model, optimizer, update_every, start_at, stop_at, drop_fraction, sparsity, distribution, seed: as for
            :class:`Rewiring`.
        c: weight of exploration, in the unit of a gradient; at least 0. 0 is RigL.
        eps: what a weight that was never tried has for N; positive.
        decay: factor of ``c`` every ``decay_every`` steps, in (0, 1].
        decay_every: these steps.
    """

    paper = "Huang et al., DAC 2023"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, update_every: int = 100,
                 start_at: int = 0, stop_at: int | None = None, drop_fraction: float | Callable[[int], float] = 0.5,
                 c: float = 1e-3, eps: float = 1.0, decay: float = 1.0, decay_every: int = 1000,
                 sparsity: float | None = None, distribution: str | Mapping[str, float] = "erk",
                 seed: int = 0):  # fmt: skip
        op, least = self._name, torch.finfo(torch.float32).tiny
        self.c = check_number(op, "c", c, 0, 1e30)
        self.eps, self.decay = check_number(op, "eps", eps, least, 1e30), check_number(op, "decay", decay, least, 1)
        self.decay_every = check_int(op, "decay_every", decay_every, 1)
        super().__init__(model, optimizer, update_every=update_every, start_at=start_at, stop_at=stop_at, seed=seed,
                         drop_fraction=drop_fraction, sparsity=sparsity, distribution=distribution)  # fmt: skip

    def begin(self) -> None:
        super().begin()
        # tensors, which a replay of a recorded update reads anew
        self._bonus = {name: torch.zeros((), device=x.values.device) for name, x in self.layers.items()}
        self._sums: dict[str, Tensor] = {}  # of the gradients of each layer, as the optimizer sees them

    def grow_scores(self, name: str, layer: SparseLinear) -> Tensor | None:
        gradient = super().grow_scores(name, layer)
        if gradient is None:
            return None
        gradient = gradient.float()
        bonus = self._bonus[name] * self._unit(name, layer, gradient) / (self.counter(name) + self.eps)
        height, width = layer.block
        return gradient + bonus.repeat_interleave(height, 0).repeat_interleave(width, 1)

    @torch.no_grad()
    def update(self) -> None:
        if self._static is None:
            self._set_bonus(self.step)
        super().update()

    def prepare(self, step: int) -> None:
        super().prepare(step)
        self._set_bonus(step)

    def before_step(self) -> None:
        super().before_step()
        for name, layer in self.layers.items():
            if layer.probe is not None and layer.values.grad is not None:
                self._sums[name] = layer.values.grad.abs().sum(dtype=torch.float32) / self.gradient_scale()

    # --- inner works ---

    def _set_bonus(self, step: int) -> None:
        c = self.c * self.decay ** (step // self.decay_every) * math.log(max(step, 1))
        for name, layer in self.layers.items():
            self._bonus[name] = self._bonus[name].to(layer.values.device).fill_(c)

    def _unit(self, name: str, layer: SparseLinear, gradient: Tensor) -> Tensor | float:
        """How much larger the dense gradient is than what the optimizer sees: by the scale of a GradScaler, say."""
        if name not in self._sums:
            return 1.0
        ratio = patterns.gather(gradient, *layer.pattern(), layer.structure).sum() / self._sums[name]
        differs = ratio.isfinite() & (ratio > 0) & ((ratio - 1).abs() > 0.01)  # else it is rounding
        return ratio.where(differs, 1.0)
