"""Gradual magnitude pruning (Zhu and Gupta, 2017)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sparsegnn.controllers.pruning.shrinking import Ramp
from sparsegnn.controllers.registry import register


@register("gmp")
class GradualMagnitude(Ramp):
    """Removes the smallest magnitudes step by step, along a cubic, until ``sparsity`` is reached at ``stop_at``.

    Args:
        model, optimizer, update_every, seed: as for :class:`Controller` (nothing here is random).
        sparsity, distribution: as for :class:`Shrinking`.
        start_at: first step that prunes. stop_at: last one; the default is ``start_at + 20 * update_every``.
    """

    paper = "Zhu and Gupta, 2017"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.9,
                 distribution: str | Mapping[str, float] = "erk", start_at: int = 0, update_every: int = 100,
                 stop_at: int | None = None, seed: int = 0):  # fmt: skip
        super().__init__(model, optimizer, sparsity=sparsity, distribution=distribution, start_at=start_at,
                         update_every=update_every, stop_at=stop_at, seed=seed)  # fmt: skip

    def counts(self) -> dict[str, int]:
        return self.counts_at(self.share(self.step))
