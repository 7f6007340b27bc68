"""Methods that know which weights have been tried: a small counter per weight of the dense matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sparsegnn import pattern as patterns
from sparsegnn.controllers.settings import check_tensors
from sparsegnn.controllers.sparse.rigl import RigL

MOST = 255  # rounds that are counted; a uint8


class Exploring(RigL):
    """Base: ``rounds`` holds, of each weight (or block), in how many of the rounds that updates have ended it existed.

    The first round begins when the method is attached. Only updates touch the counters, which hold one byte per weight
    of the dense matrix and stop at 255.
    """

    def begin(self) -> None:
        super().begin()
        self.rounds = {n: torch.zeros(x.grid, dtype=torch.uint8, device=x.col.device) for n, x in self.layers.items()}
        self._counted = False  # in an update that then failed

    @torch.no_grad()
    def update(self) -> None:
        if not self._counted:
            ended = {name: self._exists(name).masked_fill_(self.counter(name) == MOST, 0) for name in self.layers}
            for name, exists in ended.items():  # no memory is needed from here on
                self.rounds[name].add_(exists)
            self._counted = True
        super().update()
        self._counted = False

    @property
    def explored(self) -> float:
        """Fraction of all weights that have existed at some time. Waits for a GPU."""
        sizes = {name: x.out_features * x.in_features for name, x in self.layers.items()}
        tried = {name: self._exists(name).logical_or_(self.counter(name)) for name in self.rounds}
        return sum(t.sum().item() * (sizes[name] // t.numel()) for name, t in tried.items()) / sum(sizes.values())

    def undo(self, step: int, updates: int) -> None:
        self._counted = False
        super().undo(step, updates)

    def extra_state(self) -> dict:
        rounds = {name: n.clone() for name, n in self.rounds.items()}
        return {**super().extra_state(), "rounds": rounds, "explored": self.explored}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        apply_others = super().read_state(state)
        rounds = check_tensors(self._name, "rounds", state, self.rounds)

        def apply() -> None:
            apply_others()
            self._counted = False
            for name, n in self.rounds.items():
                n.copy_(rounds[name])

        return apply

    def counter(self, name: str) -> Tensor:
        """The counter of a layer, where the layer is: the model may have gone to another device."""
        self.rounds[name] = self.rounds[name].to(self.layers[name].col.device)
        return self.rounds[name]

    def _exists(self, name: str) -> Tensor:
        """1 where a layer has weights now."""
        layer, exists = self.layers[name], torch.zeros_like(self.counter(name))
        exists.view(-1)[patterns.flat(*layer.pattern(), layer.grid[1])] = 1
        return exists
