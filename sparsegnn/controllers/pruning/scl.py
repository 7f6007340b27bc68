"""Automatic sparse connectivity learning (Tang et al., TNNLS 2023): a penalty on the number of connections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsegnn.controllers.pruning.scores import Scored
from sparsegnn.controllers.registry import register
from sparsegnn.controllers.settings import check_number
from sparsegnn.nn import SparseLinear


@register("scl")
class SCL(Scored):
    """Keeps the weights whose score is above zero; their number follows from the loss and a penalty on it.

    The effective weight is ``w * (m > 0)`` for a score m that begins at 1, and the gradient passes straight through the
    step: for m it is ``g * w``, divided by its root mean square over the inputs of an output, plus ``penalty``, that of
    the number of connections. Scores descend along it at the rate ``lr``: one that the loss does not care for is gone
    after ``1 / (lr * penalty)`` steps, and may come back. How sparse a layer gets is up to that.

    Args:
        model, optimizer, start_at, stop_at, seed: as for :class:`Scored` (nothing here is random).
        penalty: lambda, for each connection, where gradients are 1 on average.
        lr: of plain gradient descent on the scores.
        sparsity: never sparser than this, of all layers together: then the highest scores stay.
    """

    paper = "Tang et al., TNNLS 2023"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, penalty: float = 0.5, lr: float = 0.02,
                 sparsity: float = 0.99, start_at: int = 0, stop_at: int | None = None, seed: int = 0):  # fmt: skip
        self.penalty = float(check_number(self._name, "penalty", penalty, 0, 1e31))
        super().__init__(model, optimizer, sparsity=sparsity, lr=lr, start_at=start_at, stop_at=stop_at, seed=seed)

    @classmethod
    def recipe(cls, steps: int) -> dict:
        return {**super().recipe(steps), "lr": 3.0 / steps, "penalty": 1.0}

    def first_scores(self, name: str, layer: SparseLinear) -> Tensor:
        return torch.ones(layer.out_features, layer.in_features, device=layer.values.device)

    def make_scorer(self, scores: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(scores, lr=self.lr)

    def score_gradient(self, name: str, gradient: Tensor) -> Tensor:
        own = (gradient * self.latent[name]).view(self.layers[name].out_features, -1)
        size = own.square().mean(1, keepdim=True).sqrt()
        return torch.where(size > 0, own / size, 0).flatten() + self.penalty

    def factors(self, names: list[str]) -> dict[str, Tensor]:
        least = self.best(names, 1.0)  # they stay whatever their score
        return {name: (self.scores[name] > 0) | least[name] for name in names}
