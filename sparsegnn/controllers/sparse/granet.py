"""Gradual pruning with zero-cost neuroregeneration (Liu et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from sparsegnn.controllers.distributions import global_magnitude
from sparsegnn.controllers.pruning.shrinking import Ramp, Shrinking
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_int, check_names
from sparsegnn.controllers.sparse.rigl import RigL
from sparsegnn.pattern import check_sparsity


@register("granet")
class GraNet(Ramp, RigL):
    """Prunes along a cubic, and after each pruning lets as many weights come back as it drops once more.

    An update removes the smallest magnitudes until the layers have the number of weights of that step
    (:class:`Shrinking`), then each layer drops its ``drop_fraction`` smallest and grows as many where the gradient is
    largest (:class:`RigL`), at the same step. The last update, at ``stop_at``, only prunes.

    Args:
        model, optimizer, update_every, seed: as for :class:`Controller`.
        sparsity, distribution: at the end, as for :class:`Shrinking`; ``"global"`` lets magnitudes compete.
        initial_sparsity: what the model begins with, at random by the ``distribution`` (ERK if that is global); None:
            as the model is, dense or not.
        start_at: first step that prunes. stop_at: last one; the default is ``start_at + 20 * update_every``.
        drop_fraction: as for :class:`Rewiring`.
    """

    paper = "Liu et al., NeurIPS 2021"
    family = "sparse"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.9,
                 distribution: str | Mapping[str, float] = "erk", initial_sparsity: float | None = None,
                 update_every: int = 100, start_at: int = 0, stop_at: int | None = None,
                 drop_fraction: float | Callable[[int], float] = 0.5, seed: int = 0):  # fmt: skip
        self.initial_sparsity = initial_sparsity
        self._drop = drop_fraction
        super().__init__(model, optimizer, sparsity=sparsity, distribution=distribution, update_every=update_every,
                         start_at=start_at, stop_at=stop_at, seed=seed)  # fmt: skip

    def begin(self) -> None:
        self._fraction = self.__dict__.pop("_drop")
        if self.initial_sparsity is not None:
            initial = check_sparsity(self.initial_sparsity, f"{self._name}: initial_sparsity")
            if initial > self.sparsity:
                raise ValueError(f"{self._name}: initial_sparsity must be at most the final one, {self.sparsity}, got "
                                 f"{initial}")  # fmt: skip
            named = isinstance(self.distribution, str) and self.distribution != "global"
            self._wanted = initial, self.distribution if named else "erk"
        super().begin()

    def place(self) -> None:
        super().place()
        self.first = {name: x.values.numel() for name, x in self.layers.items()}

    def counts(self) -> dict[str, int]:
        share = self.share(self.step)
        if self.final is not None:
            return {name: n - round(max(0, n - self.final[name]) * share) for name, n in self.first.items()}
        start, size = sum(self.first.values()), sum(self.sizes.values())
        wanted = start - round(max(0, start - (1 - self.sparsity) * size) * share)
        scores = {name: self.scores(name, x) for name, x in self.layers.items()}
        return global_magnitude(scores, max(0.0, 1 - wanted / sum(s.numel() for s in scores.values())))

    @torch.no_grad()
    def update(self) -> None:
        Shrinking.update(self)
        if self.step < self.stop_at:
            RigL.update(self)

    def extra_state(self) -> dict:
        return {**super().extra_state(), "first": dict(self.first)}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        apply_others = super().read_state(state)
        found = check_names(self._name, "first", state, self.first)
        first = {name: check_int(self._name, f"first[{name!r}]", n, 1) for name, n in found.items()}

        def apply() -> None:
            apply_others()
            self.first = first

        return apply
