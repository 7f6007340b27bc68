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
    """Base: ``rounds`` holds, of each weight (or block), in how many rounds between updates it has existed.

    The first round begins when the method is attached. Only updates touch the counters, which hold one byte per weight
    of the dense matrix and stop at 255.
    """

    def place(self) -> None:
        super().place()
        self.rounds = {n: torch.zeros(x.grid, dtype=torch.uint8, device=x.col.device) for n, x in self.layers.items()}
        self._count()

    @torch.no_grad()
    def update(self) -> None:
        super().update()
        self._count()

    @property
    def explored(self) -> float:
        """Fraction of all weights that have existed at some time. Waits for a GPU."""
        sizes = {name: x.out_features * x.in_features for name, x in self.layers.items()}
        tried = sum(n.ne(0).sum().item() * (sizes[name] // n.numel()) for name, n in self.rounds.items())
        return tried / sum(sizes.values())

    def extra_state(self) -> dict:
        rounds = {name: n.clone() for name, n in self.rounds.items()}
        return {**super().extra_state(), "rounds": rounds, "explored": self.explored}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        apply_others = super().read_state(state)
        rounds = check_tensors(self._name, "rounds", state, self.rounds)

        def apply() -> None:
            apply_others()
            for name, n in self.rounds.items():
                n.copy_(rounds[name])

        return apply

    def counter(self, name: str) -> Tensor:
        """The counter of a layer, where the layer is: the model may have gone to another device."""
        self.rounds[name] = self.rounds[name].to(self.layers[name].col.device)
        return self.rounds[name]

    def _count(self) -> None:
        for name, layer in self.layers.items():
            counter = self.counter(name)
            exists = torch.zeros_like(counter)
            exists.view(-1)[patterns.flat(*layer.pattern(), layer.grid[1])] = 1
            counter.add_(exists.masked_fill_(counter == MOST, 0))
