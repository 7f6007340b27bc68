"""Pruning by a threshold that rises (Narang et al., ICLR 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn.controllers.pruning.shrinking import Shrinking
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_int, check_names, check_number, check_positive


@register("narang")
class ThresholdRamp(Shrinking):
    """Removes, every ``update_every`` steps, the weights whose magnitude is below a threshold that rises with time.

    The threshold of a layer at step t is ``theta (t - start_at + 1)``, and from ``ramp_at`` on ``theta (ramp_at -
    start_at + 1) + phi (t - ramp_at + 1)``, with ``theta = 2 q / (2 (ramp_at - start_at) + 3 (stop_at - ramp_at))`` and
    ``phi = 1.5 theta``, which makes about q at ``stop_at``. How many weights remain emerges: those that have grown
    meanwhile stay, so that a layer may end less sparse than ``sparsity`` wants it, but never sparser: one that has
    reached its count is pruned no more.

    Args:
        q: magnitude to reach, ``{layer: q}`` or a number for all; by default that below which the ``sparsity`` of the
            layer's own magnitudes lies at ``start_at``.
        ramp_at: step from which the threshold rises faster; by default halfway from start_at to stop_at.
        update_every: steps between prunings. start_at: of the first one, stop_at: of the last.
        sparsity, distribution: of q and the most that layers are pruned to, as for :class:`Shrinking`.
        model, optimizer, seed: as for :class:`Controller` (nothing here is random).
    """

    paper = "Narang et al., ICLR 2017"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.9,
                 distribution: str | Mapping[str, float] = "erk", q: float | Mapping[str, float] | None = None,
                 update_every: int = 100, start_at: int = 0, ramp_at: int | None = None, stop_at: int | None = None,
                 seed: int = 0):  # fmt: skip
        self._q, self._ramp_at = q, ramp_at  # checked by begin(): layers and stop_at are known then
        super().__init__(model, optimizer, sparsity=sparsity, distribution=distribution, update_every=update_every,
                         start_at=start_at, stop_at=stop_at, seed=seed)  # fmt: skip

    def begin(self) -> None:
        super().begin()
        op, ramp, q = self._name, self.__dict__.pop("_ramp_at"), self.__dict__.pop("_q")
        if self.stop_at == self.start_at:
            raise ValueError(f"{op}: stop_at must be above start_at, got {self.stop_at} for both")
        ramp = self.start_at + (self.stop_at - self.start_at) // 2 if ramp is None else ramp
        self.ramp_at = check_int(op, "ramp_at", ramp, self.start_at)
        if self.ramp_at > self.stop_at:
            raise ValueError(f"{op}: ramp_at must be at most stop_at = {self.stop_at}, got {self.ramp_at}")
        if q is not None and not isinstance(q, Mapping):
            q = dict.fromkeys(self.layers, q)
        if q is not None and q.keys() != self.layers.keys():
            raise ValueError(f"{op}: q must be of the layers {list(self.layers)}, got {list(q)}")
        self.q = {} if q is None else {name: check_positive(op, f"q[{name!r}]", value) for name, value in q.items()}
        self.least: dict[str, int] = {}  # the counts where pruning ends, known at the first one

    @classmethod
    def recipe(cls, steps: int) -> dict:
        """Half of the steps, as in the paper; weights have grown in the first quarter, so that q means something."""
        start, stop = steps // 4, max(1, steps // 2)
        return {"update_every": max(1, steps // 40), "start_at": min(start, stop - 1), "stop_at": stop}

    def due(self, step: int) -> bool:
        return step == self.stop_at or super().due(step)

    def threshold(self, name: str, step: int) -> float:
        """Magnitude below which weights of a layer go at ``step``."""
        theta = 2 * self.q[name] / (2 * (self.ramp_at - self.start_at) + 3 * (self.stop_at - self.ramp_at))
        return theta * (min(step, self.ramp_at) - self.start_at + 1) + 1.5 * theta * max(0, step - self.ramp_at + 1)

    def counts(self) -> dict[str, int]:
        if not self.least:
            self.least = self.counts_at(1.0)
            ranked = {name: self._magnitudes(name).sort(descending=True).values for name in self.layers}
            self.q = self.q or {n: ranked[n][self._entries(n, k) - 1].item() for n, k in self.least.items()}
        return {name: max(self._above(name), n) for name, n in self.least.items()}

    def _above(self, name: str) -> int:
        entries = int((self._magnitudes(name) >= self.threshold(name, self.step)).sum())
        return entries * self.layers[name].values.numel() // self.layers[name].col.numel()

    def _entries(self, name: str, n: int) -> int:
        layer = self.layers[name]
        return min(layer.col.numel(), max(1, round(n * layer.col.numel() / layer.values.numel())))

    def _magnitudes(self, name: str) -> Tensor:
        """Mean magnitude of each entry of a layer's ``col``."""
        layer = self.layers[name]
        return layer.values.abs().view(layer.col.numel(), -1).mean(1)

    def extra_state(self) -> dict:
        return {"q": dict(self.q), "least": dict(self.least)}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        q = check_names(self._name, "q", state, self.layers if state["q"] else ())
        least = check_names(self._name, "least", state, self.layers if state["least"] else ())
        q = {name: check_number(self._name, f"q[{name!r}]", value, 0, math.inf) for name, value in q.items()}
        least = {name: check_int(self._name, f"least[{name!r}]", value, 1) for name, value in least.items()}

        def apply() -> None:
            self.q, self.least = q, least

        return apply
