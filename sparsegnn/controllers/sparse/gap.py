"""Scheduled grow and prune, GaP (Ma et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from sparsegnn.controllers.pruning.shrinking import Shrinking
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_int, check_names


@register("gap")
class GaP(Shrinking):
    """Layers take turns, partition by partition, to be dense; after its turn each is pruned back to its own count.

    A turn is ``update_every`` steps; the last one goes on to ``stop_at``, for less than twice as long, after which no
    position changes. The partition whose turn it is runs dense kernels, its new weights begin at zero; all others keep
    their positions and run sparse kernels. Of equal partitions with a fraction d of their weights, ``d + (1 - d) /
    partitions`` exists in a turn.

    Args:
        partitions: groups of consecutive layers, of about the same number; None for 2, or 1 of a single layer.
        update_every: steps of a turn. start_at: the step that begins the first, at least 1. stop_at: ends the last.
        model, optimizer, seed: as for :class:`Controller` (nothing here is random).
    """

    family = "sparse"
    start = "sparse"
    paper = "Ma et al., ICLR 2022"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, partitions: int | None = None,
                 update_every: int = 100, start_at: int = 1, stop_at: int | None = None, seed: int = 0):  # fmt: skip
        self._wanted = partitions  # checked by begin(): the number of layers is known then
        check_int(self._name, "start_at", start_at, 1)
        super().__init__(model, optimizer, sparsity=0.0, update_every=update_every, start_at=start_at, stop_at=stop_at,
                         seed=seed)  # fmt: skip

    def begin(self) -> None:
        op, names, wanted = self._name, list(self.layers), self.__dict__.pop("_wanted")
        n = check_int(op, "partitions", min(2, len(names)) if wanted is None else wanted, 1)
        if n > len(names):
            raise ValueError(f"{op}: partitions must be at most the number of layers, {len(names)}, got {n}")
        if self.stop_at < (least := self.start_at + n * self.update_every):
            raise ValueError(f"{op}: stop_at must be at least start_at + partitions * update_every = {least}, a turn "
                             f"of each, got {self.stop_at}")  # fmt: skip
        self.partitions = [names[i * len(names) // n : (i + 1) * len(names) // n] for i in range(n)]
        self.kept = {name: x.values.numel() for name, x in self.layers.items()}  # between the turns of a layer

    @classmethod
    def recipe(cls, steps: int) -> dict:
        """Three rounds of two partitions in three quarters of the steps."""
        every = max(1, steps // 8)
        return {"update_every": every, "start_at": 1, "stop_at": 1 + (6 if steps > 7 else 2) * every}

    def due(self, step: int) -> bool:
        turn, rest = divmod(step - self.start_at, self.update_every)
        return step == self.stop_at or (rest == 0 and 0 <= turn < (self.stop_at - self.start_at) // self.update_every)

    def update(self) -> None:
        self.check_movable()
        turn = (self.step - self.start_at) // self.update_every
        growing = [] if self.step == self.stop_at else self.partitions[turn % len(self.partitions)]
        self.prune({name: n for name, n in self.kept.items() if name not in growing})
        for name in growing:
            if self.layers[name].values.requires_grad:
                self.expand(name)

    def extra_state(self) -> dict:
        return {"kept": dict(self.kept)}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        found = check_names(self._name, "kept", state, self.kept)
        kept = {name: check_int(self._name, f"kept[{name!r}]", n, 1) for name, n in found.items()}

        def apply() -> None:
            self.kept = kept

        return apply
