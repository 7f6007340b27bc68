"""Alternating compressed and decompressed training (Peste et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sparsegnn.controllers.optimizers import fresh, slots
from sparsegnn.controllers.pruning.shrinking import Shrinking
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_flag, check_int


@register("ac-dc")
class ACDC(Shrinking):
    """Dense to step ``start_at``, then in turns sparse and dense, and sparse from ``stop_at`` on.

    A phase is ``update_every`` steps long; the last dense one goes on to ``stop_at``, for less than three times as
    long. Compression keeps the largest magnitudes, decompression lets all weights exist, the new ones from zero with
    the optimizer state of new weights. Sparse phases run sparse kernels, dense ones dense kernels.

    Args:
        start_at: the first step that compresses, at least 1. stop_at: the last one.
        update_every: steps of a phase.
        reset_state: whether every change gives all weights the optimizer state of new ones (momentum from zero).
        sparsity, distribution: of the sparse phases, as for :class:`Shrinking`; the paper's is ``"global"``.
        model, optimizer, seed: as for :class:`Controller` (nothing here is random).
    """

    paper = "Peste et al., NeurIPS 2021"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.9,
                 distribution: str | Mapping[str, float] = "erk", reset_state: bool = False, update_every: int = 100,
                 start_at: int = 100, stop_at: int | None = None, seed: int = 0):  # fmt: skip
        self.reset_state = check_flag(self._name, "reset_state", reset_state)
        check_int(self._name, "start_at", start_at, 1)
        super().__init__(model, optimizer, sparsity=sparsity, distribution=distribution, update_every=update_every,
                         start_at=start_at, stop_at=stop_at, seed=seed)  # fmt: skip

    def begin(self) -> None:
        super().begin()
        if self.stop_at < (least := self.start_at + 2 * self.update_every):
            raise ValueError(f"{self._name}: stop_at must be at least start_at + 2 update_every = {least}, a sparse "
                             f"and a dense phase, got {self.stop_at}")  # fmt: skip

    @classmethod
    def recipe(cls, steps: int) -> dict:
        """As 10, 5 and 85 of the paper's 100 epochs, but a quarter of the steps for the last phase."""
        every, stop = max(1, steps // 20), max(3, round(0.75 * steps))
        return {"update_every": every, "start_at": max(1, min(steps // 10, stop - 2 * every)), "stop_at": stop}

    def due(self, step: int) -> bool:
        turn, rest = divmod(step - self.start_at, self.update_every)
        cycles = (self.stop_at - self.start_at) // (2 * self.update_every)
        return step == self.stop_at or (rest == 0 and 0 <= turn < 2 * cycles)

    def update(self) -> None:
        compress = self.step == self.stop_at or (self.step - self.start_at) // self.update_every % 2 == 0
        if compress:
            super().update()
        else:
            self.check_movable()
            for name, layer in self.layers.items():
                if layer.values.requires_grad:
                    self.expand(name)
        if self.reset_state:
            for layer in self.layers.values():
                start = fresh(self._name, self.optimizer, layer.values)
                for key, slot in slots(self._name, self.optimizer, layer.values).items():
                    slot.fill_(start[key])

    def counts(self) -> dict[str, int]:
        return self.counts_at(1.0)
