"""In-time over-parameterisation: rare updates that never end (Liu et al., ICML 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from sparsegnn.controllers.registry import register
from sparsegnn.controllers.schedules import Cosine
from sparsegnn.controllers.settings import check_number
from sparsegnn.controllers.sparse.exploring import Exploring


@register("itop")
class ITOP(Exploring):
    """RigL whose weights have longer between updates to prove themselves, and which goes on to the end of the run.

    What counts in the end is how many weights were tried at some time: :attr:`explored`, also in :meth:`state_dict`.

    Args:
        model, optimizer, start_at, sparsity, distribution, seed: as for :class:`Rewiring`.
        update_every: steps between updates, more than for RigL.
        stop_at: the number of steps of the run; only updates before it are made.
        drop_fraction: a number, which falls to ``last_fraction`` at ``stop_at`` along a cosine, or a callable.
        last_fraction: in [0, ``drop_fraction``].
    """

    paper = "Liu et al., ICML 2021"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, update_every: int = 200,
                 start_at: int = 0, stop_at: int | None = None, drop_fraction: float | Callable[[int], float] = 0.5,
                 last_fraction: float = 0.005, sparsity: float | None = None,
                 distribution: str | Mapping[str, float] = "erk", seed: int = 0):  # fmt: skip
        self.last_fraction = check_number(self._name, "last_fraction", last_fraction, 0, 1)
        super().__init__(model, optimizer, update_every=update_every, start_at=start_at, stop_at=stop_at, seed=seed,
                         drop_fraction=drop_fraction, sparsity=sparsity, distribution=distribution)  # fmt: skip

    def schedule(self, start: float) -> Cosine:
        check_number(self._name, "last_fraction", self.last_fraction, 0, start)
        return Cosine(start, max(self.stop_at, 1), self.last_fraction)

    @property
    def settled_at(self) -> int:
        """It never settles: every epoch may be selected, all are equally sparse."""
        return 0

    @classmethod
    def recipe(cls, steps: int) -> dict:
        return {"update_every": max(1, steps // 10), "stop_at": steps}
