"""Memory-economic sparse training (Yuan et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sparsegnn.controllers.initialisers import chosen
from sparsegnn.controllers.processes import check_single
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.schedules import Halving
from sparsegnn.controllers.settings import check_int, check_names, check_number
from sparsegnn.controllers.sparse.rewiring import Rewiring
from sparsegnn.nn import SparseLinear


@register("mest")
class MEST(Rewiring):
    """Drops the lowest ``|w| + lam |g|``, grows at random. No dense gradient ever: g is that of weights that exist.

    With ``soft`` (the paper's EM&S) the new weights come on top: between updates a layer has ``1 + drop_fraction`` of
    its weights, and each update first prunes it back, so that new ones compete with old ones once they have been
    trained. It ends with its own number of weights, at ``stop_at``. Sizes change then, as in :class:`Shrinking`.

    Args:
        model, optimizer, update_every, start_at, stop_at, sparsity, distribution, seed: as for :class:`Rewiring`.
        drop_fraction: of a layer's own number of weights, which is the paper's p over the fraction of weights that
            exist: 0.5 is p = 0.05 at 90 %. Halved at 3/4 of ``stop_at``, where it ends; or a callable step -> fraction.
        lam: what a gradient counts beside a magnitude, in weights per gradient; at least 0.
        soft: whether the memory bound is.
    """

    paper = "Yuan et al., NeurIPS 2021"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, update_every: int = 100,
                 start_at: int = 0, stop_at: int | None = None, drop_fraction: float | Callable[[int], float] = 0.5,
                 lam: float = 0.0, soft: bool = False, sparsity: float | None = None,
                 distribution: str | Mapping[str, float] = "erk", seed: int = 0):  # fmt: skip
        self.lam = check_number(self._name, "lam", lam, 0, 1e30)
        if not isinstance(soft, bool):
            raise TypeError(f"{self._name}: soft must be True or False, got {type(soft).__name__}")
        self.soft, self.keeps_size, self.every_step = soft, not soft, lam > 0
        super().__init__(model, optimizer, update_every=update_every, start_at=start_at, stop_at=stop_at, seed=seed,
                         drop_fraction=drop_fraction, sparsity=sparsity, distribution=distribution)  # fmt: skip

    def begin(self) -> None:
        super().begin()
        self._gradients: dict[str, Tensor] = {}
        if not self.soft:
            return
        check_single(self._name, self.layers)
        if fixed := [name for name, x in self.layers.items() if x.structure == "2:4"]:
            raise ValueError(f"{self._name}: model must have no layer of pattern '2:4', whose sparsity is fixed, with "
                             f"soft=True, got {fixed}")  # fmt: skip

    def place(self) -> None:
        super().place()
        self.own = {name: x.values.numel() for name, x in self.layers.items()}  # the number of weights of each layer

    def schedule(self, start: float) -> Halving:
        return Halving(start, int(0.75 * self.stop_at), self.stop_at)

    def due(self, step: int) -> bool:
        return super().due(step) or (self.soft and step == self.stop_at > 0)

    def drop_scores(self, name: str, layer: SparseLinear) -> Tensor:
        score = layer.values.abs()
        return score + self.lam * self._gradients[name] if name in self._gradients else score

    def grow_scores(self, name: str, layer: SparseLinear) -> Tensor:
        return self.random_scores(name, layer)

    def before_step(self) -> None:
        super().before_step()
        if self.lam > 0 and self.due(self.step + 1):  # afterwards it is another: SGD adds its momentum to it
            held = {name: x.values.grad for name, x in self.layers.items() if x.values.grad is not None}
            self._gradients = {name: g.abs() / self.gradient_scale() for name, g in held.items()}

    @torch.no_grad()
    def update(self) -> None:
        super().update()
        self._gradients = {}

    def moves(self, step: int) -> dict[str, int]:
        if not self.soft:
            return super().moves(step)
        fraction = self.fraction(step) if step < self.stop_at else 0.0
        sizes = {name: x.out_features * x.in_features for name, x in self.layers.items()}
        return {name: int(fraction * n) for name, n in self.own.items() if n < sizes[name]}  # none, too: it is pruned

    def rewire(self, name: str, drop: Tensor, grow: Tensor, n: int | Tensor) -> Tensor:
        if not self.soft:
            return super().rewire(name, drop, grow, n)
        layer, own = self.layers[name], self.own[name]
        most = layer.out_features * layer.in_features
        positions = chosen(layer, drop, grow, min(own, layer.values.numel()), min(own + n, most))
        return self.move(name, *positions)

    def extra_state(self) -> dict:
        return {**super().extra_state(), "own": dict(self.own)}

    def read_state(self, state: Mapping) -> Callable[[], None]:
        apply_others = super().read_state(state)
        found = check_names(self._name, "own", state, self.own)
        own = {name: check_int(self._name, f"own[{name!r}]", n, 1) for name, n in found.items()}

        def apply() -> None:
            apply_others()
            self.own = own

        return apply
