"""Gradual magnitude pruning (Zhu and Gupta, 2017)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsegnn.controllers.attachment import check_held
from sparsegnn.controllers.base import UPDATES, Controller, check_int
from sparsegnn.controllers.distributions import allocate, global_magnitude
from sparsegnn.controllers.optimizers import slots as slots_of
from sparsegnn.controllers.processes import is_replicated
from sparsegnn.controllers.schedules import Cubic
from sparsegnn.nn import SparseLinear
from sparsegnn.pattern import check_sparsity, subset, top


class GradualMagnitude(Controller):
    """Removes the smallest magnitudes step by step, along a cubic, until ``sparsity`` is reached at ``stop_at``.

    The layers start with all their weights (``sparsify(model, 0.0)``, or ``SparseLinear(sparsity=0)``), and training
    gets cheaper as they go. Here the number of weights changes: an update gives ``values``, its optimizer state and
    the positions new, smaller storage (the Parameter object stays), so a compiled model is compiled again, and a
    :class:`~sparsegnn.CapturedStep` makes the update step itself and records the others anew after it. A layer of the
    pattern "2:4", whose sparsity is fixed, is refused.

    Args:
        model, optimizer, update_every, seed: as for :class:`Controller` (nothing here is random).
        sparsity: of all layers together at the end.
        distribution: ``"erk"``, ``"uniform"``, ``{name: sparsity}``, or ``"global"``: magnitudes compete across layers.
        start_at: first step that prunes. stop_at: last one; the default is ``start_at + 20 * update_every``.
    """

    keeps_size = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        sparsity: float = 0.9,
        distribution: str | Mapping[str, float] = "erk",
        start_at: int = 0,
        update_every: int = 100,
        stop_at: int | None = None,
        seed: int = 0,
    ):
        self.sparsity = check_sparsity(sparsity, self._name)
        self.start_at = check_int(self._name, "start_at", start_at, 0)
        if stop_at is None:
            stop_at = start_at + UPDATES * check_int(self._name, "update_every", update_every, 1)
        check_int(self._name, "stop_at", stop_at, start_at)
        super().__init__(model, optimizer, update_every=update_every, stop_at=stop_at, seed=seed)
        self.share = Cubic(1.0, start_at, self.stop_at)  # of the pruning that is done by a step
        self.sizes = {name: x.in_features * x.out_features for name, x in self.layers.items()}
        shapes = {name: (x.out_features, x.in_features) for name, x in self.layers.items()}
        self.final = None if distribution == "global" else allocate(shapes, sparsity, distribution, op=self._name)

    def _find_layers(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, SparseLinear]:
        layers = super()._find_layers(model, optimizer)
        if fixed := [name for name, layer in layers.items() if layer.structure == "2:4"]:
            raise ValueError(
                f"{self._name}: model must have no layer of pattern '2:4', whose sparsity is fixed, got {fixed}: "
                "use RigL, SET or StaticSparse, or another pattern"
            )
        return layers

    def due(self, step: int) -> bool:
        regular = step > 0 and step >= self.start_at and (step - self.start_at) % self.update_every == 0
        return step == self.stop_at or (regular and step < self.stop_at)

    def counts(self) -> dict[str, int]:
        """Number of weights that each layer should have after the current step."""
        share = self.share(self.step)
        if self.final is None:
            keep = 1 - self.sparsity * share
            scores = {name: self.drop_scores(name, x) for name, x in self.layers.items()}
            left = sum(score.numel() for score in scores.values())
            return global_magnitude(scores, max(0.0, 1 - keep * sum(self.sizes.values()) / left))
        return {name: size - round((size - self.final[name]) * share) for name, size in self.sizes.items()}

    def _check_state_of_optimizer(self) -> None:
        super()._check_state_of_optimizer()
        self._check_single()

    def _check_single(self) -> None:
        if is_replicated(self.layers):
            raise RuntimeError(
                f"{self._name}: model must not be in a DistributedDataParallel, which cannot follow values that get "
                "fewer: use RigL or SET, or average gradients with torch.distributed.all_reduce() yourself"
            )

    @torch.no_grad()
    def update(self) -> None:
        """Prune every layer to its count; a layer that has fewer weights already, or is frozen, is left as it is."""
        check_held(self._name, self.layers, self.optimizer)
        self._check_single()
        for (name, layer), n in zip(self.layers.items(), self.counts().values(), strict=True):
            if n < layer.values.numel() and layer.values.requires_grad:
                self._keep(name, layer, survivors(layer, layer.per_position(self.drop_scores(name, layer)), n))

    def _keep(self, name: str, layer: SparseLinear, slots: Tensor) -> None:
        def kept(tensor: Tensor) -> Tensor:
            return tensor.view(layer.col.numel(), -1)[slots].flatten()

        moved = {key: kept(slot) for key, slot in slots_of(self._name, self.optimizer, layer.values).items()}
        averages = [(t, kept(t)) for t in self._along.get(name, ())]
        layer.set_pattern_(*subset(*layer.pattern(), slots), kept(layer.values))
        if moved:
            self.optimizer.state[layer.values].update(moved)  # last: where memory runs out nothing has changed
        for t, new in averages:
            t.data = new


def survivors(layer: SparseLinear, score: Tensor, n: int) -> Tensor:
    """The entries of ``layer.col`` (ascending) of highest ``score`` that hold ``n`` weights, at least one entry.

    As many of every output with constant fan-in.
    """
    if layer.structure == "fan_in":
        each = score.numel() // layer.out_features
        best = top(score.view(-1, each), max(1, round(n / layer.out_features))).sort(1).values
        return (best + torch.arange(0, score.numel(), each, device=best.device)[:, None]).flatten()
    return top(score, max(1, round(n * score.numel() / layer.values.numel()))).sort().values
