"""One-shot magnitude pruning and retraining (Han et al., NeurIPS 2015)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sparsegnn.controllers.pruning.shrinking import Shrinking
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_int


@register("oneshot")
class OneShot(Shrinking):
    """Removes the smallest magnitudes once, at step ``start_at``, and trains the rest on.

    Args:
        start_at: the step that prunes, at least 1; half of the training is a good one.
        sparsity, distribution: as for :class:`Shrinking`.
        model, optimizer, seed: as for :class:`Controller` (nothing here is random).
    """

    paper = "Han et al., NeurIPS 2015"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.9,
                 distribution: str | Mapping[str, float] = "erk", start_at: int = 100, seed: int = 0):  # fmt: skip
        check_int(self._name, "start_at", start_at, 1)
        super().__init__(model, optimizer, sparsity=sparsity, distribution=distribution, update_every=1,
                         start_at=start_at, stop_at=start_at, seed=seed)  # fmt: skip

    @classmethod
    def recipe(cls, steps: int) -> dict:
        return {**super().recipe(steps), "start_at": max(1, steps // 2)}

    def due(self, step: int) -> bool:
        return step == self.start_at

    def counts(self) -> dict[str, int]:
        return self.counts_at(1.0)
