"""Progressive layer freezing (SpFDE: Yuan et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from sparsegnn.controllers.processes import check_single
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_int
from sparsegnn.controllers.sparse.frozen_forward import FrozenForward
from sparsegnn.controllers.sparse.mest import MEST

#: under these names a convolution has its weight; it is frozen as a whole, with bias and attention
INNER = ("lin", "lin_src", "lin_dst", "lin_l", "lin_r")


@register("freeze")
class Freeze(MEST):
    """MEST that freezes layers one after another, from front to back: their weights and positions are final then.

    A frozen layer (the convolution around a weight, with its bias) needs no gradient, so its part of the backward pass
    is skipped, and the forward too where its inputs do not change: see :class:`FrozenForward`, which says once where
    it cannot. The layers are in the order in which the model lists them. They stay frozen after :meth:`finalize`.

    Args:
        model, optimizer, update_every, start_at, stop_at, drop_fraction, lam, sparsity, distribution, seed: as for
            :class:`MEST`.
        freeze_at: the step after which each layer is frozen, front to back and ascending; fewer than there are layers,
            as the last one goes on. Default: the first half of the layers, from ``stop_at`` on, ``update_every`` steps
            apart.
        cache: whether the forward of frozen layers is skipped.
    """

    paper = "Yuan et al., NeurIPS 2022"
    keeps_size = False
    changes_activations = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, update_every: int = 100,
                 start_at: int = 0, stop_at: int | None = None, drop_fraction: float | Callable[[int], float] = 0.5,
                 lam: float = 0.0, freeze_at: Sequence[int] | None = None, cache: bool = True,
                 sparsity: float | None = None, distribution: str | Mapping[str, float] = "erk",
                 seed: int = 0):  # fmt: skip
        if not isinstance(cache, bool):
            raise TypeError(f"{self._name}: cache must be True or False, got {type(cache).__name__}")
        self.freeze_at, self.cache = freeze_at, cache
        super().__init__(model, optimizer, update_every=update_every, start_at=start_at, stop_at=stop_at, seed=seed,
                         drop_fraction=drop_fraction, lam=lam, sparsity=sparsity,
                         distribution=distribution)  # fmt: skip

    def begin(self) -> None:
        super().begin()
        op, self.keeps_size = self._name, False
        check_single(op, self.layers)
        self.units = units(self.model, self.layers)
        if self.freeze_at is None:
            self.freeze_at = [max(1, self.stop_at) + i * self.update_every for i in range(len(self.units) // 2)]
        if isinstance(self.freeze_at, (str, Mapping)) or not isinstance(self.freeze_at, Sequence):
            raise TypeError(f"{op}: freeze_at must be a list of steps, got {type(self.freeze_at).__name__}")
        self.freeze_at = [check_int(op, f"freeze_at[{i}]", step, 1) for i, step in enumerate(self.freeze_at)]
        if len(self.freeze_at) >= len(self.units):
            raise ValueError(f"{op}: freeze_at must have fewer steps than there are layers, {list(self.units)}, got "
                             f"{self.freeze_at}")  # fmt: skip
        if self.freeze_at != sorted(self.freeze_at):
            raise ValueError(f"{op}: freeze_at must ascend, as layers are frozen front to back, got {self.freeze_at}")
        self.caches: dict[str, FrozenForward] = {}
        self._froze: dict[str, list[nn.Parameter]] = {}

    @property
    def frozen(self) -> list[str]:
        """The names of the layers that are frozen."""
        return list(self._froze)

    @classmethod
    def recipe(cls, steps: int) -> dict:
        return {**super().recipe(steps), "freeze_at": None}

    def due(self, step: int) -> bool:
        return super().due(step) or step in self.freeze_at

    @torch.no_grad()
    def update(self) -> None:
        if super().due(self.step):
            super().update()
        self._freeze(self.step)

    def detach(self) -> None:
        super().detach()
        for cache in self.caches.values():
            cache.remove()
        self.caches = {}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        apply_others = super().read_state(state)

        def apply() -> None:
            apply_others()
            self._freeze(self.step)

        return apply

    # --- inner works ---

    def _freeze(self, step: int) -> None:
        """Let those layers be frozen that are after ``step``."""
        count = sum(at <= step for at in self.freeze_at)
        for i, (name, unit) in enumerate(self.units.items()):
            if i < count and name not in self._froze:
                self._froze[name] = [p for p in unit.parameters() if p.requires_grad]
                for p in self._froze[name]:
                    p.requires_grad_(False)
                    p.grad = None  # or the optimizer would go on with momentum and decay
                if self.cache:
                    self.caches[name] = FrozenForward(unit, name)
            elif i >= count and name in self._froze:
                for p in self._froze.pop(name):
                    p.requires_grad_(True)
                if name in self.caches:
                    self.caches.pop(name).remove()


def units(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """What is frozen as a whole: the convolutions around these weights, or the layers themselves."""
    found = {}
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        inner = last in INNER and not isinstance(model.get_submodule(parent), nn.Sequential)
        found.setdefault(parent if inner else name, model.get_submodule(parent) if inner else layer)
    return found
