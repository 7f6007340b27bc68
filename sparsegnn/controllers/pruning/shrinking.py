"""Methods whose layers get fewer weights: which counts they aim at, and how weights are removed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsegnn.controllers.attachment import check_even, check_held
from sparsegnn.controllers.base import Controller
from sparsegnn.controllers.distributions import allocate, global_magnitude
from sparsegnn.controllers.processes import check_single
from sparsegnn.controllers.schedules import Cubic
from sparsegnn.nn import SparseLinear
from sparsegnn.pattern import check_sparsity, subset, top


class Shrinking(Controller):
    """Base of methods that remove weights: a method defines :meth:`counts` and when it is due.

    The layers start with all their weights (``sparsify(model, 0.0)``, or ``SparseLinear(sparsity=0)``), and training
    gets cheaper as they go. Here the number of weights changes: an update gives ``values``, its optimizer state and
    the positions new, smaller storage (the Parameter object stays), so a compiled model is compiled again, and a
    :class:`~sparsegnn.CapturedStep` makes the update step itself and records the others anew after it. A layer of the
    pattern "2:4", whose sparsity is fixed, is refused.

    Args:
        sparsity: of all layers together at the end.
        distribution: ``"erk"``, ``"er"``, ``"uniform"``, ``{name: sparsity}``, or ``"global"``: magnitudes compete
            across layers.
        model, optimizer, update_every, start_at, stop_at, seed: as for :class:`Controller`.
    """

    family = "pruning"
    start = "dense"
    patterns = "any but 2:4"
    keeps_size = False

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, sparsity: float = 0.9,
                 distribution: str | Mapping[str, float] = "erk", update_every: int = 100, start_at: int = 0,
                 stop_at: int | None = None, seed: int = 0):  # fmt: skip
        self.sparsity = check_sparsity(sparsity, self._name)
        self.distribution = distribution
        super().__init__(model, optimizer, update_every=update_every, start_at=start_at, stop_at=stop_at, seed=seed)

    def begin(self) -> None:
        super().begin()
        check_even(self._name, self.layers)
        self.sizes = {name: x.in_features * x.out_features for name, x in self.layers.items()}
        shapes = {name: (x.out_features, x.in_features) for name, x in self.layers.items()}
        is_global = self.distribution == "global"
        self.final = None if is_global else allocate(shapes, self.sparsity, self.distribution, op=self._name)

    # --- to override ---

    def counts(self) -> dict[str, int]:
        """Number of weights that each layer should have after the current step."""
        raise NotImplementedError(f"{self._name} must define counts()")

    def scores(self, name: str, layer: SparseLinear) -> Tensor:
        """[nnz]: the weights with the lowest score go first."""
        return layer.values.abs()

    @torch.no_grad()
    def update(self) -> None:
        """Prune every layer to its count; a layer that has fewer weights already, or is frozen, is left as it is."""
        self.check_movable()
        self.prune(self.counts())

    # --- for methods ---

    def counts_at(self, share: float, scores: Mapping[str, Tensor] | None = None) -> dict[str, int]:
        """The counts when that ``share`` of all pruning is done, by other ``scores`` than those of the method."""
        if self.final is None:
            keep = 1 - self.sparsity * share
            scores = {name: self.scores(name, x) for name, x in self.layers.items()} if scores is None else scores
            left = sum(score.numel() for score in scores.values())
            return global_magnitude(scores, max(0.0, 1 - keep * sum(self.sizes.values()) / left))
        return {name: size - round((size - self.final[name]) * share) for name, size in self.sizes.items()}

    @torch.no_grad()
    def prune(self, counts: Mapping[str, int]) -> None:
        """Remove the weights of lowest score until each layer has its count."""
        for name, n in counts.items():
            layer = self.layers[name]
            if n < layer.values.numel() and layer.values.requires_grad:
                self.keep(name, survivors(layer, layer.per_position(self.scores(name, layer)), n))

    @torch.no_grad()
    def keep(self, name: str, slots: Tensor) -> None:
        """Keep the entries ``slots`` (ascending) of a layer's ``col`` and remove all others."""
        self.relocate(name, *subset(*self.layers[name].pattern(), slots), slots)

    def check_movable(self) -> None:
        """Raise where weights cannot go now."""
        check_held(self._name, self.layers, self.optimizer)
        self._check_single()

    # --- inner works ---

    def _find_layers(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, SparseLinear]:
        layers = super()._find_layers(model, optimizer)
        if fixed := [name for name, layer in layers.items() if layer.structure == "2:4"]:
            raise ValueError(
                f"{self._name}: model must have no layer of pattern '2:4', whose sparsity is fixed, got {fixed}: "
                "use RigL, SET or StaticSparse, or another pattern"
            )
        return layers

    def _check_state_of_optimizer(self) -> None:
        super()._check_state_of_optimizer()
        self._check_single()

    def _check_single(self) -> None:
        check_single(self._name, self.layers)


class Ramp(Shrinking):
    """Base of methods that prune along a cubic, :attr:`share`, whose last update is at ``stop_at``."""

    @classmethod
    def recipe(cls, steps: int) -> dict:
        settings = super().recipe(steps)
        return {**settings, "start_at": min(steps // 10, settings["stop_at"])}

    def begin(self) -> None:
        super().begin()
        self.share = Cubic(1.0, self.start_at, self.stop_at)  # of the pruning that is done by a step

    def due(self, step: int) -> bool:
        return step == self.stop_at or super().due(step)


def survivors(layer: SparseLinear, score: Tensor, n: int) -> Tensor:
    """The entries of ``layer.col`` (ascending) of highest ``score`` that hold ``n`` weights, at least one entry.

    As many of every output with constant fan-in.
    """
    if layer.structure == "fan_in":
        each = score.numel() // layer.out_features
        best = top(score.view(-1, each), max(1, round(n / layer.out_features))).sort(1).values
        return (best + torch.arange(0, score.numel(), each, device=best.device)[:, None]).flatten()
    return top(score, max(1, round(n * score.numel() / layer.values.numel()))).sort().values
